"""An encoder with its tokenizer, asked in batches about sequences of any length."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch

from mlm_dist.data.tokenizer import Tokenizer
from mlm_dist.model.encoder import Encoder

ROWS_AT_A_TIME = 64

Key = TypeVar("Key")


class Window(NamedTuple):
    """What the model sees of a sequence around one of its tokens.

    Attributes:
        start: index, in the sequence, of the first token seen.
        stop: index behind the last one.
    """

    start: int
    stop: int


@dataclass(frozen=True)
class Predictor:
    """An encoder in evaluation mode, and the tokenizer of its texts."""

    encoder: Encoder
    tokenizer: Tokenizer
    device: torch.device

    @property
    def block_size(self) -> int:
        """How many tokens the model sees at once."""
        return self.encoder.config.block_size

    def window(self, length: int, index: int) -> Window:
        """The stretch of a sequence that is seen with one token, in its middle where the ends allow it."""
        start = max(0, min(index - self.block_size // 2, length - self.block_size))
        return Window(start, min(length, start + self.block_size))

    def in_batches(self, rows: Iterable[tuple[Key, Sequence[int]]]) -> Iterator[tuple[list[Key], torch.Tensor]]:
        """Gather rows of token ids into batches of equal length, for the model knows no padding.

        Args:
            rows: token ids, at least one and at most `block_size`, each row with a key by which to know it again.

        Yields:
            The keys of a batch and its (B, T) token ids, in any order, and holding few rows at a time.
        """
        waiting: dict[int, list[tuple[Key, Sequence[int]]]] = {}
        for row in rows:
            alike = waiting.setdefault(len(row[1]), [])
            alike.append(row)
            if len(alike) == ROWS_AT_A_TIME:
                yield self._batch(waiting.pop(len(row[1])))
        for alike in waiting.values():
            yield self._batch(alike)

    def _batch(self, rows: list[tuple[Key, Sequence[int]]]) -> tuple[list[Key], torch.Tensor]:
        return [key for key, _ in rows], torch.tensor([ids for _, ids in rows], device=self.device)

    @torch.no_grad()
    def logits(self, tokens: torch.Tensor, places: Sequence[int]) -> torch.Tensor:
        """Logits at one place of each row: (B, T) ids and B places -> (B, V)."""
        positions = torch.tensor(places, device=self.device)[:, None]
        out: torch.Tensor = self.encoder(tokens, positions)[:, 0]
        return out

    def log_probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of the tokens that stand for text, minus infinity for the others.

        (B, V) logits -> (B, vocabulary of the tokenizer).
        """
        without_text = torch.tensor(self.tokenizer.ids_without_text, device=logits.device)
        return logits[:, : self.tokenizer.vocab_size].float().index_fill(1, without_text, -torch.inf).log_softmax(1)

    @torch.no_grad()
    def states(self, tokens: torch.Tensor) -> torch.Tensor:
        """The last hidden states: (B, T) ids -> (B, T, C)."""
        return self.encoder.last_hidden_states(tokens)
