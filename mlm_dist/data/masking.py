"""Which tokens a row hides: a fixed number of places a row, chosen by hashing (seed, epoch, row, position).

A row of n maskable tokens hides mask_prob * n of them on average: the whole part of that number always, one more
with the probability that is left over. That one more is computed in every row and has weight 0 where it is not
wanted, so that shapes never change. `<|endoftext|>` is never hidden.
"""

import math
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Literal

import torch

from mlm_dist.config import MaskingConfig
from mlm_dist.data.randomness import GOLDEN, mix, salt, threshold, uniform
from mlm_dist.data.tokenizer import Tokenizer

LARGEST = 2**31 - 1


@dataclass(frozen=True)
class MaskedBatch:
    """Rows with some of their tokens hidden.

    Attributes:
        inputs: (B, T) int64, tokens with the hidden ones replaced.
        positions: (B, K) int64, where tokens are predicted; 0 where the weight is 0.
        targets: (B, K) int64, the tokens that belong there.
        weights: (B, K) float32, 1 for a place that counts, 0 for one that is there to keep the shape.
    """

    inputs: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor

    def digest(self) -> torch.Tensor:
        """A number, as an int64 scalar, that stands for the batch; those of a batch's parts add up to it.

        Each token of a row is hashed with its column, each hidden one with what was there; then each row.
        """
        columns = torch.arange(self.inputs.shape[1], dtype=torch.int32, device=self.inputs.device) * GOLDEN
        seen = mix(self.inputs.to(torch.int32) ^ columns).sum(1, dtype=torch.int32)
        hidden = mix(mix(self.targets.to(torch.int32)) ^ (self.positions.to(torch.int32) * GOLDEN))
        rows = mix(seen) ^ mix((hidden * self.weights.to(torch.int32)).sum(1, dtype=torch.int32))
        return (mix(rows) & LARGEST).sum(dtype=torch.int64)

    def micro_batches(self, size: int) -> list["MaskedBatch"]:
        """Cut into batches of `size` rows, the last one perhaps smaller."""
        parts = [getattr(self, item.name).split(size) for item in fields(self)]
        return [MaskedBatch(*tensors) for tensors in zip(*parts, strict=True)]


class Masker:
    """Hides tokens of rows.

    Args:
        mask_prob: the probability of every maskable token to be predicted.
        replacement: `mask` puts the mask token in the place of all predicted tokens; `80/10/10` does so for 80 %,
            puts a random token for 10 % and leaves the rest as they are (BERT, Devlin et al. 2018).
        block_size: tokens in a row, T.
        mask_id, end_id: the special tokens. Random tokens are drawn from the ids below `end_id`.
        seed: of the run.
        device: where rows come from and batches stay.
    """

    def __init__(
        self,
        mask_prob: float,
        replacement: Literal["mask", "80/10/10"],
        block_size: int,
        mask_id: int,
        end_id: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.replacement = replacement
        self.mask_id = mask_id
        self.end_id = end_id
        self.seed = seed
        # By the number of maskable tokens in a row: how many are hidden at least, and the bound for one more.
        # Fractions, because 0.15 * 20 has to be 3 and not 3 and a rounding error.
        expected = [Fraction(str(mask_prob)) * count for count in range(block_size + 1)]
        self.masked_places = math.ceil(expected[-1])
        self.at_least = torch.tensor([math.floor(e) for e in expected], device=device)
        self.one_more = torch.tensor([threshold(float(e % 1)) for e in expected], device=device)
        self.columns = torch.arange(block_size + 1, dtype=torch.int32, device=device) * GOLDEN
        self.ranking = torch.arange(self.masked_places, device=device)

    @classmethod
    def of(
        cls, config: MaskingConfig, block_size: int, tokenizer: Tokenizer, seed: int, device: torch.device
    ) -> "Masker":
        """Make a masker for a tokenizer's ids."""
        return cls(config.mask_prob, config.replacement, block_size, tokenizer.mask_id, tokenizer.end_id, seed, device)

    def __call__(self, tokens: torch.Tensor, rows: torch.Tensor, epoch: int) -> MaskedBatch:
        """Hide tokens.

        Args:
            tokens: (B, T) int64.
            rows: (B,) int64, the rows' numbers in the corpus.
            epoch: a row is masked anew in each.
        """
        maskable = tokens != self.end_id
        count = maskable.sum(1)
        row_hashes = mix(mix(rows.to(torch.int32)) ^ salt(self.seed, epoch, "mask"))[:, None]
        # No value stands twice in a row of these: `mix` is one to one, and so are steps of an odd number.
        hashes = mix(row_hashes + self.columns)
        keys = hashes[:, 1:].clamp(max=LARGEST - 1).masked_fill(~maskable, LARGEST)
        positions = keys.topk(self.masked_places, dim=1, largest=False, sorted=True).indices
        one_more = uniform(hashes[:, 0]) < self.one_more[count]
        wanted = self.ranking < (self.at_least[count] + one_more)[:, None]
        targets = tokens.gather(1, positions)
        replaced = torch.where(wanted, self._replace(targets, row_hashes, positions), targets)
        return MaskedBatch(
            inputs=tokens.scatter(1, positions, replaced),
            positions=positions.masked_fill(~wanted, 0),
            targets=targets,
            weights=wanted.float(),
        )

    def _replace(self, targets: torch.Tensor, row_hashes: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """What stands in the inputs where `targets` are hidden, (B, K)."""
        if self.replacement == "mask":
            return torch.full_like(targets, self.mask_id)
        columns = positions.to(torch.int32) * GOLDEN
        lot = uniform(mix((row_hashes ^ salt("replacement")) + columns))
        random = (mix((row_hashes ^ salt("token")) + columns) & LARGEST) % self.end_id
        other = torch.where(lot < threshold(0.9), random, targets)
        return other.masked_fill(lot < threshold(0.8), self.mask_id)
