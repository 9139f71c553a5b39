"""Which tokens a row hides: chosen by hashing (seed, epoch, row, position), in a shape that never changes.

The tokens of a row, or its words, are put in an order by their hashes, and hidden from the first on up to a cut.

With a rate p that is a number, n maskable tokens are cut at p * n. What the cut goes through is hidden with the
probability that is the part of it before the cut, so p * n tokens are hidden on average.

A cut would not do for spans of words: it hides the left end of the span that it goes through and never the right one,
and it favors short spans over long ones. Instead the spans of a row lie on a circle, in the order of their hashes.
Their n maskable tokens are at 0 to n - 1, those of a span next to one another. A window [U, U + p * n) hides the words
whose first token is in it, with U uniform over [0, n). A word whose first token is at s is hidden if (s - U) mod n is
below p * n. For every s that difference is uniform over [0, n), so each word is hidden with probability p exactly,
whatever its length, its place, its span and the order of the spans; and so is each token, being hidden if and only if
its word is. (U takes 2**24 values, so p is met up to a relative error of n / 2**24 and an absolute one of 2 / 2**24.)

With a rate t that is drawn from a range, so many tokens (or words) are hidden that they are the part t of them,
rounded up, and each counts with the inverse of the part that they are. With t uniform over (0, 1] their number is
uniform over 1 to n then, and the expected loss of a row is exactly the negative log-likelihood of its tokens written
in a random order, a bound of their likelihood: the masked-diffusion objective (MDLM, arXiv 2406.07524, whose integral
over t comes to the same), with less variance at small t. Of words or spans it is that of a model that writes the
tokens of a word at once, each for itself. Spans lie on the circle here too: the order begins at a word that is uniform
among the row's words, so k of w words hide each of them with probability k / w exactly.

`<|endoftext|>` is never hidden.
"""

from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import pad

from mlm_dist.config import Config
from mlm_dist.data.mask_rate import MaskRate
from mlm_dist.data.randomness import BITS, GOLDEN, mix, salt, threshold, uniform
from mlm_dist.data.tokenizer import Tokenizer
from mlm_dist.data.words import WordTable, last_true

LARGEST = 2**31 - 1
ROUNDING = 1e-9  # what floating point may add to a number of tokens that is a whole one: 0.29 * 100

# Spans of words have lengths that are distributed geometrically, with the mean of SpanBERT's (Joshi et al. 2020).
MEAN_SPAN = 3.8

# How many places a row has besides those of its rate. A word that lies across the cut, or across the end of the window,
# is hidden whole if it needs no more of them. With spans every token of a longer word counts as a word of its own.
OVERHANG = 3


@dataclass(frozen=True)
class MaskedBatch:
    """Rows with some of their tokens hidden.

    Attributes:
        inputs: (B, T) int64, tokens with the hidden ones replaced.
        positions: (B, K) int64, where tokens are predicted; 0 where the weight is 0.
        targets: (B, K) int64, the tokens that belong there.
        weights: (B, K) float32, how much a place counts: 0 if it is there to keep the shape, else 1, or where rates
            are drawn the inverse of the share of the row that is hidden.
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
        rows = mix(seen) ^ mix((hidden * (self.weights > 0)).sum(1, dtype=torch.int32))
        return (mix(rows) & LARGEST).sum(dtype=torch.int64)

    def micro_batches(self, size: int) -> list["MaskedBatch"]:
        """Cut into batches of `size` rows, the last one perhaps smaller."""
        parts = [getattr(self, item.name).split(size) for item in fields(self)]
        return [MaskedBatch(*tensors) for tensors in zip(*parts, strict=True)]


class Order(NamedTuple):
    """The order in which rows hide their tokens, as far as they may. A token that is hidden for itself is a word.

    Attributes:
        positions: (B, K) of the tokens.
        before: (B, K) how many tokens of its word stand before each.
        length: (B, K) how many tokens its word has.
        words: (B,) how many words may be hidden.
    """

    positions: torch.Tensor
    before: torch.Tensor
    length: torch.Tensor
    words: torch.Tensor


class Masker:
    """Hides tokens of rows.

    Args:
        rate: the share of each row that is hidden.
        replacement: `mask` puts the mask token in the place of all predicted tokens; `80/10/10` does so for 80 %,
            puts a random token for 10 % and leaves the rest as they are (BERT, Devlin et al. 2018).
        unit: what is hidden as a whole.
        block_size: tokens in a row, T.
        tokenizer: of the rows.
        seed: of the run.
        device: where rows come from and batches stay.

    Attributes:
        masked_places: K, places where a row may have a predicted token.
    """

    def __init__(
        self,
        rate: MaskRate,
        replacement: Literal["mask", "80/10/10"],
        unit: Literal["token", "word", "span"],
        block_size: int,
        tokenizer: Tokenizer,
        seed: int,
        device: torch.device,
    ) -> None:
        self.rate = rate
        self.replacement = replacement
        self.unit = unit
        self.block_size = block_size
        self.mask_id, self.end_id = tokenizer.mask_id, tokenizer.end_id
        self.seed = seed
        self.words = WordTable(tokenizer, device) if unit != "token" else None
        self.masked_places = int(self.most_hidden().max())
        self.columns = torch.arange(block_size + 1, dtype=torch.int32, device=device) * GOLDEN
        self.ranking = torch.arange(self.masked_places, device=device)

    @classmethod
    def of(
        cls, config: Config, block_size: int, tokenizer: Tokenizer, seed: int, batch_size: int, device: torch.device
    ) -> "Masker":
        """Make a masker for rows of a tokenizer's ids, so many of which are drawn together."""
        masking = config.masking
        rate = MaskRate(masking.mask_prob, seed, batch_size, config.train.max_iters)
        return cls(rate, masking.replacement, masking.unit, block_size, tokenizer, seed, device)

    def most_hidden(self) -> npt.NDArray[np.int64]:
        """How many tokens the row at each place of a global batch may have hidden, (batch_size,)."""
        highest = self.rate.highest_by_place() * self.block_size
        tokens = np.maximum(np.ceil(highest - ROUNDING), 1).astype(np.int64)
        if self.words is None:
            return tokens
        if self.rate.is_drawn:  # words are counted then, and a few may have all of a row's tokens
            return np.full_like(tokens, self.block_size)
        return np.minimum(tokens + OVERHANG, self.block_size)

    def __call__(self, tokens: torch.Tensor, rows: torch.Tensor, epoch: int, rates: torch.Tensor) -> MaskedBatch:
        """Hide tokens.

        Args:
            tokens: (B, T) int64.
            rows: (B,) int64, the rows' numbers in the corpus.
            epoch: a row is masked anew in each.
            rates: (B,) float64, what `rate` gives for them.
        """
        maskable = tokens != self.end_id
        row_hashes = mix(mix(rows.to(torch.int32)) ^ salt(self.seed, epoch, "mask"))[:, None]
        # No value stands twice in a row of these: `mix` is one to one, and so are steps of an odd number.
        hashes = mix(row_hashes + self.columns)
        lots = uniform(hashes[:, :1]).long()
        order = self._order(tokens, hashes[:, 1:], lots, maskable)
        weights = self._weights(order, lots, rates, maskable.sum(1, keepdim=True))
        wanted, positions = weights > 0, order.positions
        targets = tokens.gather(1, positions)
        replaced = torch.where(wanted, self._replace(targets, row_hashes, positions), targets)
        return MaskedBatch(
            inputs=tokens.scatter(1, positions, replaced),
            positions=positions.masked_fill(~wanted, 0),
            targets=targets,
            weights=weights.float(),
        )

    def _weights(
        self, order: Order, lots: torch.Tensor, rates: torch.Tensor, maskable_count: torch.Tensor
    ) -> torch.Tensor:
        """How much each token of the order counts, 0 if it is not hidden.

        Args:
            order: of the tokens.
            lots: (B, 1) int64, uniform over [0, 2**BITS).
            rates: (B,) float64.
            maskable_count: (B, 1) int64, how many tokens may be hidden, n.

        Returns:
            (B, K).
        """
        is_maskable = self.ranking < maskable_count
        if self.rate.is_drawn:
            hidden_words = (rates * order.words - ROUNDING).ceil()
            number = (order.before == 0).cumsum(1)  # of the word that a token is in
            return (number <= hidden_words[:, None]) * is_maskable * (order.words / hidden_words.clamp(min=1))[:, None]
        start = self.ranking - order.before
        cut = rates[:, None] * maskable_count
        if self.unit == "span":
            # Integers in units of 2**-BITS tokens. The window begins before place 0 of the order by less than a token;
            # place n is place 0 again.
            begins_earlier = lots * maskable_count & ((1 << BITS) - 1)
            into_window = (start.remainder(maskable_count.clamp(min=1)) << BITS) + begins_earlier
            return is_maskable & (into_window < (cut * (1 << BITS)).round())
        before_cut = ((cut - start) / order.length).clamp(0, 1)
        return (lots < (before_cut * (1 << BITS)).round()) & (start + order.length <= self.masked_places)

    def _order(self, tokens: torch.Tensor, hashes: torch.Tensor, lots: torch.Tensor, maskable: torch.Tensor) -> Order:
        """The order in which rows hide their tokens.

        Args:
            tokens: (B, T) ids.
            hashes: (B, T) int32, of each place.
            lots: (B, 1) int64, uniform over [0, 2**BITS).
            maskable: (B, T) bool.
        """
        keys = hashes.clamp(max=LARGEST - 1)
        if self.words is None:
            positions = self._first(keys.masked_fill(~maskable, LARGEST))
            return Order(positions, torch.zeros_like(positions), torch.ones_like(positions), maskable.sum(1))
        columns = torch.arange(self.block_size, device=tokens.device)
        begins = self.words.begins(tokens)
        first = last_true(begins)
        length = torch.zeros_like(tokens).scatter_add(1, first, torch.ones_like(tokens)).gather(1, first)
        if self.unit == "span":
            ended = pad(~maskable, (1, -1), value=True)
            begins_span = begins & (ended | (uniform(mix(hashes ^ salt("span"))) < threshold(1 / MEAN_SPAN)))
            may_come_first = maskable & begins if self.rate.is_drawn else maskable
            keys = self._on_circle(hashes.long().gather(1, last_true(begins_span)), may_come_first, lots)
            if not self.rate.is_drawn:
                first = torch.where(length > OVERHANG + 1, columns, first)
        else:
            keys = keys.long().gather(1, first)
        in_order = keys * self.block_size + columns
        positions = self._first(in_order.masked_fill(~maskable, torch.iinfo(torch.int64).max))
        before = positions - first.gather(1, positions)
        return Order(positions, before, length.gather(1, positions), (begins & maskable).sum(1))

    def _on_circle(self, keys: torch.Tensor, may_come_first: torch.Tensor, lots: torch.Tensor) -> torch.Tensor:
        """The keys of spans, changed so that the order of them is a circle which begins at a token drawn uniformly.

        Args:
            keys: (B, T) int64, within the range of int32, of the span that each token is in.
            may_come_first: (B, T) bool, the tokens to draw from.
            lots: (B, 1) int64, uniform over [0, 2**BITS), to draw with.

        Returns:
            (B, T) int64, at most 2**32. The tokens of the first span that lie before the drawn one come last.
        """
        number = lots * may_come_first.sum(1, keepdim=True) >> BITS
        drawn = torch.searchsorted(may_come_first.cumsum(1), number, right=True).clamp(max=self.block_size - 1)
        turned = (keys - keys.gather(1, drawn)) & 0xFFFFFFFF
        columns = torch.arange(self.block_size, device=keys.device)
        return turned.masked_fill((turned == 0) & (columns < drawn), 1 << 32)

    def _first(self, keys: torch.Tensor) -> torch.Tensor:
        """Where the K smallest keys of a row stand, in their order."""
        return keys.topk(self.masked_places, dim=1, largest=False, sorted=True).indices

    def _replace(self, targets: torch.Tensor, row_hashes: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """What stands in the inputs where `targets` are hidden, (B, K)."""
        if self.replacement == "mask":
            return torch.full_like(targets, self.mask_id)
        columns = positions.to(torch.int32) * GOLDEN
        lot = uniform(mix((row_hashes ^ salt("replacement")) + columns))
        random = (mix((row_hashes ^ salt("token")) + columns) & LARGEST) % self.end_id
        other = torch.where(lot < threshold(0.9), random, targets)
        return other.masked_fill(lot < threshold(0.8), self.mask_id)
