"""The judge: a small causal language model that computes the likelihood of a text.

It shares nothing with the models that it judges: it is a GPT-2 of transformers, which reads from left to right, with
its own byte-level BPE. Every row of its training begins with `<|endoftext|>` and continues at a random position of the
texts. After that token, the judge therefore expects any passage of a novel, not the beginning of one.
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
BLOCK = 128  # tokens per row, including `<|endoftext|>` at its start
ROWS_PER_PASS = 64


class Judge:
    """A causal language model with its tokenizer.

    Args:
        tokenizer: its vocabulary has `<|endoftext|>`.
        model: its context window is `BLOCK` tokens.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, model: GPT2LMHeadModel) -> None:
        self.tokenizer = tokenizer
        self.model = model
        self.end_id: int = tokenizer.get_vocab()[END_OF_TEXT]

    @classmethod
    def untrained(cls, texts: Sequence[str], vocab_size: int = 4096, width: int = 256, layers: int = 4) -> "Judge":
        """Train a tokenizer on texts and initialize the parameters of a model from torch's generator.

        Args:
            texts: to train the tokenizer on.
            vocab_size: upper bound on the vocabulary size; short texts give a smaller one.
            width: of the embeddings and of every layer. Each head has a width of 32.
            layers: number of layers, each of attention and feed-forward.
        """
        tokenizer = tokenizers.ByteLevelBPETokenizer()
        tokenizer.train_from_iterator(texts, vocab_size, special_tokens=[END_OF_TEXT], show_progress=False)
        config = GPT2Config(
            vocab_size=tokenizer.get_vocab_size(),
            n_positions=BLOCK,
            n_embd=width,
            n_layer=layers,
            n_head=width // 32,
            activation_function="gelu_pytorch_tanh",  # GPT-2's own activation, in a fused implementation
            resid_pdrop=0.0,  # no dropout
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
            UserError: the folder contains no judge, or a damaged one.
        """
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(folder / TOKENIZER_FILE))
            return cls(tokenizer, GPT2LMHeadModel.from_pretrained(folder, local_files_only=True))
        except Exception as error:  # `tokenizers` raises nothing more specific
            raise UserError(
                f"{folder} contains no complete judge: train one with docs/generation/train_judge.py"
            ) from error

    def save(self, folder: Path) -> None:
        """Write the judge into a folder. Existing files are replaced only once the new ones are complete."""
        partial = folder / ".partial"
        partial.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(str(partial / TOKENIZER_FILE))
        self.model.save_pretrained(partial)
        for file in partial.iterdir():
            file.replace(folder / file.name)
        partial.rmdir()

    def encode(self, text: str) -> npt.NDArray[np.int64]:
        """The token ids of a text."""
        return np.array(self.tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int64)

    def nats(self, texts: Sequence[str]) -> list[float]:
        """The negative log-likelihood of each text, in nats, computed in fp32.

        The first token of a text is predicted from `<|endoftext|>`. A text that is too long for a row is split into
        rows that overlap by half, so that every later token is predicted from at least half a row.
        """
        totals = [0.0] * len(texts)
        windows = [(i, *window) for i, text in enumerate(texts) if text for window in self._windows(text)]
        for start in range(0, len(windows), ROWS_PER_PASS):
            indices, rows, firsts = zip(*windows[start : start + ROWS_PER_PASS], strict=True)
            with torch.no_grad():
                losses = self.losses(self._padded(rows))
            for i, row, first, row_losses in zip(indices, rows, firsts, losses, strict=True):
                totals[i] += float(row_losses[first : len(row)].double().sum())
        return totals

    def losses(self, rows: torch.Tensor) -> torch.Tensor:
        """The loss of every token but the first of each row, in nats: (rows, length) ids -> (rows, length - 1)."""
        logits = self.model(rows[:, :-1]).logits
        return F.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none")

    def _windows(self, text: str) -> Iterator[tuple[npt.NDArray[np.int64], int]]:
        """Yield rows of a text's tokens, without the end token, each with the index of its first new token."""
        ids = self.encode(text)
        size = BLOCK - 1
        step = size // 2
        for start in range(0, max(1, len(ids) - (size - step)), step):
            yield ids[start : start + size], size - step if start else 0

    def _padded(self, rows: Sequence[npt.NDArray[np.int64]]) -> torch.Tensor:
        """Stack rows, each preceded by the end token and padded with it to the length of the longest."""
        tokens = torch.full((len(rows), 1 + max(map(len, rows))), self.end_id)
        for padded, row in zip(tokens, rows, strict=True):
            padded[1 : 1 + len(row)] = torch.from_numpy(row)
        return tokens
