"""The tokenizer: a tiktoken encoding with an additional mask token, stored in two files.

It is one of tiktoken's encodings, a byte-level BPE trained on the corpus, or an extension of either by more tokens. All
are stored in the same way, with the ranks in tiktoken's file format, so that nothing after `prepare` needs the network.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import regex
import tiktoken

from mlm_dist.errors import UserError
from mlm_dist.files import read_bytes, read_json, replacing

END_OF_TEXT = "<|endoftext|>"
MASK = "[MASK]"
SPECIAL_TOKENS = 2
BYTES = 256
MAX_UNUSED_IDS = 1 << 16  # ids without a token; tiktoken's encodings have up to 1000
SIGNAL_CHECK_SECONDS = 0.5

# The pattern with which GPT-2 splits text into words before it merges (Radford et al. 2019, "Language Models are
# Unsupervised Multitask Learners"). `tokenizers` trains with the same pattern.
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""

RANKS_FILE = "ranks.tiktoken"
ENCODING_FILE = "encoding.json"


@dataclass(frozen=True)
class Tokenizer:
    """A tiktoken encoding with `<|endoftext|>` and `[MASK]` among its special tokens."""

    name: str
    pattern: str
    ranks: dict[bytes, int]
    special_tokens: dict[str, int]
    encoding: tiktoken.Encoding

    @classmethod
    def build(cls, name: str, pattern: str, ranks: dict[bytes, int], special_tokens: dict[str, int]) -> "Tokenizer":
        """Build a tokenizer from its parts."""
        encoding = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special_tokens)
        return cls(name, pattern, ranks, special_tokens, encoding)

    @classmethod
    def from_tiktoken(cls, name: str) -> "Tokenizer":
        """Load a tiktoken encoding by name and add the mask token after its last id.

        Raises:
            UserError: there is no such encoding, or its file is not cached and cannot be downloaded.
        """
        if name not in tiktoken.list_encoding_names():
            names = ", ".join([*tiktoken.list_encoding_names(), "bpe"])
            folders = "the folder of a corpus, run or exported model"
            raise UserError(f"there is no tokenizer '{name}': choose one of {names}, or {folders}")
        try:
            base = tiktoken.get_encoding(name)
        except (OSError, ValueError) as error:  # OSError includes those of requests; ValueError: a damaged file
            raise UserError(
                f"the vocabulary of '{name}' could not be downloaded ({type(error).__name__}): run "
                f"`TIKTOKEN_CACHE_DIR=DIR python -c \"import tiktoken; tiktoken.get_encoding('{name}')\"` on a machine "
                f"with a network, copy DIR here and set TIKTOKEN_CACHE_DIR to it; or use `bpe`, which needs no network"
            ) from error
        # tiktoken's README documents these private fields as the way to extend an encoding.
        special_tokens = {**base._special_tokens, MASK: base.n_vocab}
        return cls.build(name, base._pat_str, base._mergeable_ranks, special_tokens)

    @classmethod
    def train_bpe(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Train a byte-level BPE on texts.

        Args:
            texts: the training texts.
            vocab_size: the vocabulary size, including the two special tokens. The result is smaller if the texts are
                too short: once every word is a token, no pair is left to merge.

        Raises:
            UserError: the vocabulary size is too small for the single bytes.
        """
        from tokenizers import Tokenizer as Trained  # noqa: PLC0415 (slow to import)
        from tokenizers import models, pre_tokenizers, trainers  # noqa: PLC0415

        if vocab_size < BYTES + SPECIAL_TOKENS:
            raise UserError(
                f"a bpe vocabulary of {vocab_size} is too small: the minimum is {BYTES + SPECIAL_TOKENS} "
                f"({BYTES} bytes, {END_OF_TEXT} and {MASK})"
            )
        trained = Trained(models.BPE())
        trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - SPECIAL_TOKENS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        run_interruptibly(lambda: trained.train_from_iterator(texts, trainer))
        to_byte = {character: byte for byte, character in enumerate(byte_characters())}
        ranks = {bytes(to_byte[c] for c in token): rank for token, rank in trained.get_vocab().items()}
        ranks = dict(sorted(ranks.items(), key=lambda item: item[1]))
        return cls.build("bpe", GPT2_PATTERN, ranks, {END_OF_TEXT: len(ranks), MASK: len(ranks) + 1})

    @classmethod
    def load(cls, folder: Path, advice: str = "restore a copy") -> "Tokenizer":
        """Read a tokenizer that `save` wrote.

        Args:
            folder: the folder of the tokenizer.
            advice: what the user can do if a file is missing or damaged, for the message.

        Raises:
            UserError: a file is missing or damaged.
        """
        try:
            parts = read_json(folder / ENCODING_FILE)
            content = read_bytes(folder / RANKS_FILE)
            if hashlib.sha256(content).hexdigest() != parts["sha256"]:
                raise ValueError(f"the SHA-256 of {RANKS_FILE} is not the one in {ENCODING_FILE}")
            ranks = parse_ranks(content)
            check_vocabulary(ranks, parts["special_tokens"])
            if not isinstance(parts["name"], str):
                raise ValueError("its name is not a string")
            try:
                return cls.build(parts["name"], parts["pattern"], ranks, parts["special_tokens"])
            except ValueError as error:
                raise ValueError("its pattern is not a regular expression") from error
        except OSError as error:
            raise UserError(f"{error.filename}: {error.strerror}: {advice}") from error
        except ValueError as error:
            raise UserError(f"{folder}: the tokenizer is damaged ({error}): {advice}") from error
        except (KeyError, TypeError, AttributeError) as error:
            reason = f"a value in {ENCODING_FILE} is missing or has the wrong type"
            raise UserError(f"{folder}: the tokenizer is damaged ({reason}): {advice}") from error

    def save(self, folder: Path) -> None:
        """Write the tokenizer to a folder: the ranks in tiktoken's format, the rest as JSON."""
        folder.mkdir(parents=True, exist_ok=True)
        content = self._ranks_content()
        with replacing(folder / RANKS_FILE) as file:
            file.write(content)
        parts = {
            "name": self.name,
            "pattern": self.pattern,
            "special_tokens": self.special_tokens,
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        with replacing(folder / ENCODING_FILE) as file:
            file.write((json.dumps(parts, indent=2) + "\n").encode())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that determines the token ids of a text. Equal fingerprints mean equal ids."""
        rest = json.dumps([self.pattern, sorted(self.special_tokens.items())])
        return hashlib.sha256(self._ranks_content() + rest.encode()).hexdigest()

    def _ranks_content(self) -> bytes:
        by_rank = sorted(self.ranks.items(), key=lambda item: item[1])
        return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in by_rank)

    @property
    def vocab_size(self) -> int:
        """The vocabulary size: the largest id plus one."""
        return self.encoding.n_vocab

    @property
    def end_id(self) -> int:
        """The id of `<|endoftext|>`, which separates documents."""
        return self.special_tokens[END_OF_TEXT]

    @cached_property
    def ids_without_text(self) -> list[int]:
        """The ids of special tokens, and the ids without a token, which some encodings have."""
        return sorted(set(range(self.vocab_size)) - set(self.ranks.values()))

    @cached_property
    def byte_lengths(self) -> npt.NDArray[np.int64]:
        """The bytes of each token, (V,); 0 for special tokens."""
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for token, rank in self.ranks.items():
            lengths[rank] = len(token)
        return lengths

    @property
    def mask_id(self) -> int:
        """The id of `[MASK]`."""
        return self.special_tokens[MASK]

    @property
    def added_tokens(self) -> int:
        """The number of tokens after `[MASK]`, with which a tokenizer was extended (data/bpe_extension.py)."""
        return self.vocab_size - 1 - self.mask_id

    def extends(self, base: "Tokenizer") -> bool:
        """Whether all ids of `base` mean the same here: this is the same tokenizer, or `base` with more tokens."""
        same_rules = (self.pattern, self.special_tokens) == (base.pattern, base.special_tokens)
        return same_rules and base.ranks.items() <= self.ranks.items()

    def pieces_of_new(self, base: "Tokenizer") -> dict[int, list[int]]:
        """For the id of each token that `base` lacks: the ids of `base` that the token's bytes are encoded to.

        Raises:
            ValueError: this tokenizer does not extend `base`.
        """
        if not self.extends(base):
            raise ValueError(f"the tokenizer {self.name} does not extend {base.name}")
        return {rank: base.encode_piece(token) for token, rank in self.ranks.items() if token not in base.ranks}

    def encode_piece(self, content: bytes) -> list[int]:
        """Token ids of bytes that are not split into words. They may begin or end inside a character."""
        return self.encoding._encode_single_piece(content)

    def encode(self, text: str) -> npt.NDArray[np.uint32]:
        """Token ids of a text. The names of special tokens are encoded as plain text.

        Raises:
            UserError: the text contains a lone surrogate.
        """
        check_characters(text)
        return self.encoding.encode_to_numpy(text, disallowed_special=())

    def encode_documents(self, texts: list[str], is_last: bool = True) -> npt.NDArray[np.uint32]:
        """Token ids of texts with `<|endoftext|>` after each, encoded by a single call, because each call takes locks.

        Args:
            texts: the texts.
            is_last: whether `<|endoftext|>` follows the last text too.
        """
        if any(END_OF_TEXT in text for text in texts):
            end = np.array([self.end_id], dtype=np.uint32)
            ids = np.concatenate([part for text in texts for part in (self.encode(text), end)])
            return ids if is_last else ids[:-1]
        joined = END_OF_TEXT.join([*texts, ""] if is_last else texts)
        return self.encoding.encode_to_numpy(joined, allowed_special={END_OF_TEXT}, disallowed_special=())

    def encode_words(self, text: str) -> list[list[int]]:
        """Token ids of each word of a text, split by the encoding's pattern. Concatenated, they equal `encode(text)`.

        tiktoken and `regex` may use different versions of Unicode and disagree about new letters. If a word of `regex`
        ends inside a token, it is joined with the next word.
        """
        ids = self.encode(text).tolist()
        words = (word.group() for word in regex.finditer(self.pattern, text))
        word_ends = set(accumulate(len(word.encode()) for word in words))
        token_ends = accumulate(map(len, self.encoding.decode_tokens_bytes(ids)))
        cuts = {0, len(ids), *(index for index, end in enumerate(token_ends, start=1) if end in word_ends)}
        return [ids[start:stop] for start, stop in pairwise(sorted(cuts))]

    def encode_with_masks(self, text: str) -> list[int]:
        """Token ids of a text in which `[MASK]` is encoded as the mask token.

        A space before `[MASK]` is dropped. It belongs to the masked token, as the space before a word does in
        byte-level BPEs.

        Raises:
            UserError: the text contains a lone surrogate.
        """
        check_characters(text)
        return self.encoding.encode(text.replace(" " + MASK, MASK), allowed_special={MASK}, disallowed_special=())

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids. Bytes of incomplete characters become U+FFFD."""
        return self.encoding.decode(list(ids))


def parse_ranks(content: bytes) -> dict[bytes, int]:
    """The ranks in a file of tiktoken's format: a token in base64 and its rank per line.

    Raises:
        ValueError: the file has a different format.
    """
    try:
        return {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, content.splitlines())}
    except ValueError as error:
        raise ValueError(f"{RANKS_FILE} is not in tiktoken's format") from error


def check_characters(text: str) -> None:
    """Raise a UserError if a text contains a lone surrogate, which no Unicode encoding can express."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"the text contains a lone surrogate, half of a character (U+{ord(text[error.start]):04X} at character "
            f"{error.start}): remove it, or decode the text with errors='replace'"
        ) from error


def check_vocabulary(ranks: dict[bytes, int], special_tokens: dict[str, int]) -> None:
    """Raise ValueError if tiktoken would panic, or would allocate memory for many ids without a token."""
    ids = [*ranks.values(), *special_tokens.values()]
    if not {END_OF_TEXT, MASK} <= special_tokens.keys():
        raise ValueError(f"{END_OF_TEXT} or {MASK} is missing")
    if not all(type(token) is int and 0 <= token < len(ids) + MAX_UNUSED_IDS for token in ids):
        raise ValueError("an id is negative, not an integer, or far beyond the number of tokens")
    if len(set(ids)) < len(ids):
        raise ValueError("two tokens have the same id")
    if not all(bytes([byte]) in ranks for byte in range(BYTES)):
        raise ValueError("a byte has no token")


def run_interruptibly(work: Callable[[], None]) -> None:
    """Run work that ignores Ctrl-C, such as BPE training, in a daemon thread, so that Ctrl-C ends the program."""
    outcome: Future[None] = Future()

    def run() -> None:
        try:
            work()
            outcome.set_result(None)
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    # Not a single wait without a timeout: a signal just before Python starts to wait is handled only after the wait.
    while not wait([outcome], timeout=SIGNAL_CHECK_SECONDS).done:
        pass
    outcome.result()


def byte_characters() -> list[str]:
    """The printable character for each of the 256 bytes in a byte-level BPE of `tokenizers`.

    Printable Latin-1 bytes map to themselves. The others map, in order, to the characters from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(BYTES, 2 * BYTES))
    return [chr(byte if byte in printable else next(others)) for byte in range(BYTES)]
