"""The judge: a small causal language model that tells how likely a text is.

It shares nothing with the models that it judges: it is GPT-2 as transformers builds it, which reads from left to
right, with a byte-level BPE of its own. Every row that it learns from begins with `<|endoftext|>` and goes on at a
random place of the texts: after that token it expects any place of a novel and not the beginning of one.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tokenizers
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

from mlm_dist.errors import UserError

logging.disable_progress_bar()  # type: ignore[no-untyped-call]

END_OF_TEXT = "<|endoftext|>"
TOKENIZER_FILE = "tokenizer.json"
BLOCK = 128  # tokens of a row, the first of which is `<|endoftext|>`
ROWS_AT_A_TIME = 64


class Judge:
    """A causal language model with its tokenizer.

    Args:
        tokenizer: with `<|endoftext|>` among its tokens.
        model: sees `BLOCK` tokens.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, model: GPT2LMHeadModel) -> None:
        self.tokenizer = tokenizer
        self.model = model
        self.end_id: int = tokenizer.get_vocab()[END_OF_TEXT]

    @classmethod
    def untrained(cls, texts: Sequence[str], vocab_size: int = 4096, width: int = 256, layers: int = 4) -> "Judge":
        """Train a vocabulary on texts and draw the weights of a model from torch's generator.

        Args:
            texts: what the vocabulary is learned from.
            vocab_size: entries of the vocabulary at most; fewer where the texts are short.
            width: of the embeddings and of every layer; 32 to a head.
            layers: of attention and feed-forward.
        """
        tokenizer = tokenizers.ByteLevelBPETokenizer()
        tokenizer.train_from_iterator(texts, vocab_size, special_tokens=[END_OF_TEXT], show_progress=False)
        config = GPT2Config(
            vocab_size=tokenizer.get_vocab_size(),
            n_positions=BLOCK,
            n_embd=width,
            n_layer=layers,
            n_head=width // 32,
            activation_function="gelu_pytorch_tanh",  # GPT-2's own function, computed in one pass
            resid_pdrop=0.0,  # so that the model is the same in training and after
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=tokenizer.token_to_id(END_OF_TEXT),
            eos_token_id=tokenizer.token_to_id(END_OF_TEXT),
        )
        return cls(tokenizer._tokenizer, GPT2LMHeadModel(config))

    @classmethod
    def load(cls, folder: Path) -> "Judge":
        """Read what `save` wrote.

        Raises:
            UserError: there is no judge in the folder, or it is damaged.
        """
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(folder / TOKENIZER_FILE))
            return cls(tokenizer, GPT2LMHeadModel.from_pretrained(folder, local_files_only=True))
        except Exception as error:  # `tokenizers` raises nothing more precise
            raise UserError(f"{folder} holds no whole judge: train one with docs/generation/train_judge.py") from error

    def save(self, folder: Path) -> None:
        """Write the judge into a folder, each file in the place of the one that is there when it is whole."""
        partial = folder / ".partial"
        partial.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(str(partial / TOKENIZER_FILE))
        self.model.save_pretrained(partial)
        for file in partial.iterdir():
            file.replace(folder / file.name)
        partial.rmdir()

    def encode(self, text: str) -> npt.NDArray[np.int64]:
        """Token ids of a text."""
        return np.array(self.tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int64)

    def nats(self, texts: Sequence[str]) -> list[float]:
        """How unlikely each text is: minus the logarithm of its probability, in nats, computed in fp32.

        A text's first token has `<|endoftext|>` before it. A text too long for a row is read in rows that overlap by
        half, so that every later token has at least half a row before it.
        """
        totals = [0.0] * len(texts)
        windows = [(number, *window) for number, text in enumerate(texts) if text for window in self._windows(text)]
        for start in range(0, len(windows), ROWS_AT_A_TIME):
            numbers, rows, news = zip(*windows[start : start + ROWS_AT_A_TIME], strict=True)
            with torch.no_grad():
                losses = self.losses(self._padded(rows))
            for number, row, new, of_row in zip(numbers, rows, news, losses, strict=True):
                totals[number] += float(of_row[new : len(row)].double().sum())
        return totals

    def losses(self, rows: torch.Tensor) -> torch.Tensor:
        """Nats of each token of rows of token ids, (rows, length), but the first: (rows, length - 1)."""
        logits = self.model(rows[:, :-1]).logits
        return F.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none")

    def _windows(self, text: str) -> Iterator[tuple[npt.NDArray[np.int64], int]]:
        """Rows of a text's tokens, the end token before them left out, and where what is new in each begins."""
        ids = self.encode(text)
        size = BLOCK - 1
        step = size // 2
        for start in range(0, max(1, len(ids) - (size - step)), step):
            yield ids[start : start + size], size - step if start else 0

    def _padded(self, rows: Sequence[npt.NDArray[np.int64]]) -> torch.Tensor:
        """Rows with the end token before them and, up to the length of the longest, after them."""
        tokens = torch.full((len(rows), 1 + max(map(len, rows))), self.end_id)
        for padded, row in zip(tokens, rows, strict=True):
            padded[1 : 1 + len(row)] = torch.from_numpy(row)
        return tokens
