"""An encoder with its tokenizer, for predictions in batches on sequences of any length."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F

from mlm_dist.data.tokenizer import Tokenizer
from mlm_dist.model.encoder import as_encoder
from mlm_dist.model.loss import chunks
from mlm_dist.model.masked_model import MaskedModel

MAX_BATCH_SIZE = 64

# Entries of the vocabulary whose logits are computed at a time: on a CPU, they and their weights stay in its cache.
ENTRIES_AT_ONCE = {"cpu": 1 << 10, "cuda": 1 << 17}

Key = TypeVar("Key")


class Window(NamedTuple):
    """The part of a sequence that the model reads at once.

    Attributes:
        start: position of the first token, in the sequence.
        stop: position after the last token.
    """

    start: int
    stop: int


@dataclass(frozen=True)
class Predictor:
    """An encoder in evaluation mode, and its tokenizer."""

    encoder: MaskedModel
    tokenizer: Tokenizer
    device: torch.device

    @property
    def block_size(self) -> int:
        """The largest number of tokens that the model reads at once."""
        return self.encoder.config.block_size

    def window(self, length: int, position: int) -> Window:
        """The window of a sequence around a position, centred on it unless an end of the sequence is near."""
        start = max(0, min(position - self.block_size // 2, length - self.block_size))
        return Window(start, min(length, start + self.block_size))

    def in_batches(
        self, rows: Iterable[tuple[Key, Sequence[int]]], tokens: int = 0
    ) -> Iterator[tuple[list[Key], torch.Tensor]]:
        """Group rows of token ids by length into batches, since the model does not support padding.

        Less than a batch of each length is held back.

        Args:
            rows: each row has a key that identifies it, and 1 to `block_size` token ids.
            tokens: a batch has `MAX_BATCH_SIZE` rows, or more if they are so short that it has fewer than this many
                tokens.

        Yields:
            The keys of a batch and its (B, T) token ids. The order of the rows is not kept.
        """
        pending: dict[int, list[tuple[Key, Sequence[int]]]] = {}
        for row in rows:
            length = len(row[1])
            same_length = pending.setdefault(length, [])
            same_length.append(row)
            if len(same_length) == max(MAX_BATCH_SIZE, tokens // length):
                yield self._batch(pending.pop(length))
        for same_length in pending.values():
            yield self._batch(same_length)

    def _batch(self, rows: list[tuple[Key, Sequence[int]]]) -> tuple[list[Key], torch.Tensor]:
        return [key for key, _ in rows], torch.tensor([ids for _, ids in rows], device=self.device)

    @torch.no_grad()
    def logits(self, tokens: torch.Tensor, positions: Sequence[int]) -> torch.Tensor:
        """Logits at one position of each row: (B, T) ids and B positions -> (B, V)."""
        columns = torch.tensor(positions, device=self.device)[:, None]
        out: torch.Tensor = self.encoder(tokens, columns)[:, 0]
        return out

    @torch.no_grad()
    def log_likelihoods(
        self, tokens: torch.Tensor, positions: Sequence[int], rows: Sequence[int], targets: Sequence[int]
    ) -> torch.Tensor:
        """Log-probabilities of tokens, without all logits at once: on a CPU, these take most of the time to write.

        Args:
            tokens: (B, T) ids.
            positions: B positions, one in each row.
            rows: N rows. Each of the N targets is predicted at the position of its row.
            targets: N ids.

        Returns:
            (N,)
        """
        weight, bias = self.encoder.output.weight, self.encoder.output.bias
        hidden = self.encoder.encode(tokens, torch.tensor(positions, device=self.device)[:, None])[:, 0]  # (B, C)
        parts = chunks(len(weight), 1, ENTRIES_AT_ONCE[self.device.type])
        sums = [F.linear(hidden, weight[part], bias[part]).logsumexp(1) for part in parts]
        normalizers = torch.stack(sums).logsumexp(0)  # (B,)
        of_rows, ids = torch.tensor(rows, device=self.device), torch.tensor(targets, device=self.device)
        logits = (hidden[of_rows] * weight[ids]).sum(1) + bias[ids]
        return logits - normalizers[of_rows]

    def log_probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Log-probabilities among the tokens that stand for text; minus infinity for the others.

        (B, V) logits -> (B, vocabulary of the tokenizer).
        """
        without_text = torch.tensor(self.tokenizer.ids_without_text, device=logits.device)
        return logits[:, : self.tokenizer.vocab_size].float().index_fill(1, without_text, -torch.inf).log_softmax(1)

    @torch.no_grad()
    def states(self, tokens: torch.Tensor, layer: int | None = None) -> torch.Tensor:
        """The hidden states of a layer, by default the last: (B, T) ids -> (B, T, C)."""
        if layer is None:
            return self.encoder.last_hidden_states(tokens)
        return as_encoder(self.encoder, "a layer").hidden_states(tokens, layer)
