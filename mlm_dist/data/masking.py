"""Which tokens of a row are masked: chosen by hashing (seed, epoch, row, position), in tensors of a fixed shape.

The rank plays no part; data/sampler.py selects the rows of a rank.

The tokens of a row, or its words, are sorted by their hashes and masked from the first one up to a cut.

**Fixed rate p.** A row of n maskable tokens is cut at p * n. A unit that straddles the cut is masked with probability
equal to its fraction before the cut, so p * n tokens are masked on average.

**Spans.** A cut would be biased: it masks the left end of the span that it crosses and never the right end, and it
favours short spans over long ones. Instead, the spans of a row lie on a circle, sorted by their hashes. Their n
maskable tokens have the coordinates 0 to n - 1, those of a span next to each other. A window [U, U + p * n) masks the
words whose first token is in it, where U is uniform over [0, n). A word whose first token is at s is masked if (s - U)
mod n is below p * n. For every s, that difference is uniform over [0, n), so each word is masked with probability p
exactly, whatever its length, position and span; and so is each token, since it is masked if and only if its word is. (U
has 2**24 values, so p is met up to a relative error of n / 2**24 and an absolute error of 2 / 2**24.)

**Sampled rate t.** If each row samples its rate from a range, k = ceil(t * n) tokens (or words) are masked, each with
loss weight n / k. With t uniform over (0, 1], k is uniform over 1 to n, and the expected loss of a row is exactly the
negative log-likelihood of its tokens written in a random order, an upper bound on their negative log-likelihood. This
is the masked-diffusion objective (MDLM, arXiv 2406.07524, whose integral over t has the same value), with less variance
at small t. With words or spans it is the objective of a model that writes the tokens of a word at once, independently.
Spans lie on a circle here too: it starts at a word that is uniform among the row's words, so each of w words is among
the k masked ones with probability k / w exactly.

`<|endoftext|>` is never masked.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import pad

from mlm_dist.config import Config
from mlm_dist.data.mask_rate import MaskRate
from mlm_dist.data.randomness import BITS, GOLDEN, derive_key, hash32, threshold, uniform
from mlm_dist.data.sampler import Selection
from mlm_dist.data.shards import StoredRows
from mlm_dist.data.tokenizer import Tokenizer
from mlm_dist.data.words import WordTable, last_true

LARGEST = 2**31 - 1
ROUNDING = 1e-9  # absorbs floating-point error in a product that is a whole number: 0.29 * 100

# Span lengths, in words, are geometrically distributed with the mean of SpanBERT (Joshi et al. 2020).
MEAN_SPAN = 3.8

# Slots of a row in addition to those of its rate. A word that straddles the cut, or the end of the window, is masked
# whole if it needs no more than these. With spans, each token of a longer word counts as a word of its own.
OVERHANG = 3


@dataclass(frozen=True)
class MaskedBatch:
    """Rows with some of their tokens masked: B rows of T tokens, K slots for predictions in each.

    Attributes:
        inputs: (B, T) int64, token ids after masking.
        positions: (B, K) int64, where tokens are predicted; 0 where the loss weight is 0.
        targets: (B, K) int64, the original token ids at these positions.
        loss_weights: (B, K) float32: 0 for a slot that only pads the shape, else 1, or, with sampled rates, the inverse
            of the masked fraction of the row; times the weight of the target, if tokens have weights.
        documents: (B, T) int64, the document of each token, counted from 0 in each row, if documents are isolated.
    """

    inputs: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    loss_weights: torch.Tensor
    documents: torch.Tensor | None = None

    def digest(self) -> torch.Tensor:
        """A hash of the batch, as an int64 scalar. The digests of parts of a batch add up to that of the batch.

        Every token of a row is hashed with its position, every masked token with its target, then every row.
        """
        columns = torch.arange(self.inputs.shape[1], dtype=torch.int32, device=self.inputs.device) * GOLDEN
        seen = hash32(self.inputs.to(torch.int32) ^ columns).sum(1, dtype=torch.int32)
        masked = hash32(hash32(self.targets.to(torch.int32)) ^ (self.positions.to(torch.int32) * GOLDEN))
        rows = hash32(seen) ^ hash32((masked * (self.loss_weights > 0)).sum(1, dtype=torch.int32))
        return (hash32(rows) & LARGEST).sum(dtype=torch.int64)

    def micro_batches(self, size: int) -> list["MaskedBatch"]:
        """Split into batches of `size` rows; the last one may be smaller."""
        parts = {name: tensor.split(size) for name, tensor in vars(self).items() if tensor is not None}
        return [MaskedBatch(**dict(zip(parts, tensors, strict=True))) for tensors in zip(*parts.values(), strict=True)]


class MaskInputs(NamedTuple):
    """What the masks of rows depend on besides their tokens.

    All of it is tensors. In a captured graph, a Python number would keep the value that it had at the capture, and all
    epochs after it would get the masks of one.

    Attributes:
        hashes: (B,) int32, of the seed, the epoch of each row and its index in the corpus.
        rates: (B,) float64, the mask rate of each row.
    """

    hashes: torch.Tensor
    rates: torch.Tensor


class Order(NamedTuple):
    """The order in which rows mask their tokens, up to K of them. Without words, each token is a word.

    Attributes:
        positions: (B, K) of the tokens.
        offset: (B, K) index of each token in its word.
        length: (B, K) number of tokens of its word.
        words: (B,) number of words that may be masked.
    """

    positions: torch.Tensor
    offset: torch.Tensor
    length: torch.Tensor
    words: torch.Tensor


def find_maskable(tokens: torch.Tensor, tokenizer: Tokenizer) -> torch.Tensor:
    """Which tokens may be masked, (B, T) -> (B, T) bool: all but `<|endoftext|>`. The others are never predicted.

    This function is the mask policy: docs/extending.md shows how to replace it.
    """
    return tokens != tokenizer.end_id


def number_documents(tokens: torch.Tensor, tokenizer: Tokenizer) -> torch.Tensor:
    """The document of each token, (B, T) -> (B, T) int64, counted from 0. `<|endoftext|>` is the last token of one."""
    is_end = tokens == tokenizer.end_id
    return is_end.cumsum(1) - is_end.long()


class Masker:
    """Masks tokens of rows.

    Args:
        rate: the masked fraction of each row.
        replacement: `mask` replaces every predicted token by the mask token; `80/10/10` does so for 80 %, replaces 10 %
            by a random token and leaves the rest unchanged (BERT, Devlin et al. 2018).
        unit: what is masked as a whole.
        block_size: tokens per row, T.
        tokenizer: of the rows.
        seed: of the run.
        device: of the batches.
        isolates_documents: whether a token attends to its own document alone.
        token_weights: (V,) float32, above 0, on `device`: factors of the loss weights, by token. None: they are 1.

    Attributes:
        slots: K, the largest number of masked tokens in a row.
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
        isolates_documents: bool = False,
        token_weights: torch.Tensor | None = None,
    ) -> None:
        self.token_weights = token_weights
        self.isolates_documents = isolates_documents
        self.rate = rate
        self.replacement = replacement
        self.unit = unit
        self.block_size = block_size
        self.tokenizer = tokenizer
        self.seed = seed
        self.device = device
        self.words = WordTable(tokenizer, device) if unit != "token" else None
        self.slots = int(self._max_masked_by_index().max())
        self.columns = torch.arange(block_size + 1, dtype=torch.int32, device=device) * GOLDEN
        self.slot_indices = torch.arange(self.slots, device=device)
        self.zero_and_one = torch.arange(2, device=device)
        # Computed once: a graph cannot contain the hash function of `derive_key`.
        self.span_key, self.replacement_key, self.token_key = map(derive_key, ("span", "replacement", "token"))

    @classmethod
    def from_config(
        cls,
        config: Config,
        block_size: int,
        tokenizer: Tokenizer,
        seed: int,
        batch_size: int,
        device: torch.device,
        token_weights: torch.Tensor | None = None,
    ) -> "Masker":
        """Build the masker of a config for rows of `block_size` tokens in global batches of `batch_size` rows."""
        masking, isolates = config.masking, config.data.documents == "isolated"
        rate = MaskRate(masking, seed, batch_size, config.train.max_iters)
        return cls(
            rate, masking.replacement, masking.unit, block_size, tokenizer, seed, device, isolates, token_weights
        )

    def max_masked(self, micro_batch_size: int, world_size: int) -> int:
        """The largest number of masked tokens in a micro-batch of any rank.

        Args:
            micro_batch_size: rows of a micro-batch.
            world_size: number of ranks, which take the rows of a global batch in turn.
        """
        by_index = self._max_masked_by_index().reshape(-1, micro_batch_size, world_size)
        return int(by_index.sum(1).max())

    def __call__(self, tokens: torch.Tensor, selection: Selection) -> MaskedBatch:
        """Mask tokens.

        Args:
            tokens: (B, T) int64, on `device`.
            selection: which rows these are, and when they are read: a row is masked anew in each epoch.
        """
        inputs = (copy_to(self.device, part) for part in self.inputs(selection))
        return self.mask(tokens, MaskInputs(*inputs))

    def inputs(self, selection: Selection) -> MaskInputs:
        """What the masks of selected rows depend on, on the CPU."""
        hashes = hash32(hash32(selection.rows.astype(np.int32)) ^ selection.keys(self.seed, "mask"))
        return MaskInputs(torch.from_numpy(hashes), torch.from_numpy(self.rate(selection)))

    def mask(self, tokens: torch.Tensor, inputs: MaskInputs) -> MaskedBatch:
        """Mask tokens. No operation of this waits for the device, and all shapes are static."""
        maskable = find_maskable(tokens, self.tokenizer)  # (B, T)
        maskable_count = maskable.sum(1, keepdim=True)  # (B, 1)
        row_hashes = inputs.hashes[:, None]
        # Distinct within a row: `hash32` is one to one, and so are multiples of an odd number.
        hashes = hash32(row_hashes + self.columns)  # (B, 1 + T)
        u = uniform(hashes[:, :1]).long()  # (B, 1)
        order = self._order(tokens, hashes[:, 1:], u, maskable, maskable_count)
        loss_weights = self._loss_weights(order, u, inputs.rates, maskable_count)  # (B, K)
        is_masked, positions = loss_weights.bool(), order.positions
        targets = tokens.gather(1, positions)  # (B, K)
        replaced = self._replace(targets, is_masked, row_hashes, positions)
        if self.token_weights is not None:
            loss_weights = loss_weights * self.token_weights[targets]
        return MaskedBatch(
            inputs=tokens.scatter(1, positions, replaced),
            positions=positions * is_masked,
            targets=targets,
            loss_weights=loss_weights.float(),
            documents=number_documents(tokens, self.tokenizer) if self.isolates_documents else None,
        )

    def _max_masked_by_index(self) -> npt.NDArray[np.int64]:
        """The largest number of masked tokens of the row at each index of a global batch, (batch_size,)."""
        highest = self.rate.highest_by_index() * self.block_size
        tokens = np.maximum(np.ceil(highest - ROUNDING), 1).astype(np.int64)
        if self.words is None:
            return tokens
        if self.rate.is_sampled:  # counted in words then, and a few words may have all tokens of a row
            return np.full_like(tokens, self.block_size)
        return np.minimum(tokens + OVERHANG, self.block_size)

    def _loss_weights(
        self, order: Order, u: torch.Tensor, rates: torch.Tensor, maskable_count: torch.Tensor
    ) -> torch.Tensor:
        """The loss weight of each token of the order, 0 if it is not masked: (B, K).

        Args:
            order: of the tokens.
            u: (B, 1) int64, uniform over [0, 2**BITS).
            rates: (B,) float64.
            maskable_count: (B, 1) int64, the number of maskable tokens, n.
        """
        is_maskable = self.slot_indices < maskable_count  # (B, K)
        if self.rate.is_sampled:
            masked_words = (rates * order.words - ROUNDING).ceil()  # (B,)
            word_index = (order.offset == 0).cumsum(1)  # (B, K), from 1
            weight = order.words / masked_words.clamp(min=1)
            return (word_index <= masked_words[:, None]) * is_maskable * weight[:, None]
        cut = rates[:, None] * maskable_count
        if self.words is None:
            return u < ((cut - self.slot_indices).clamp(0, 1) * (1 << BITS)).round()
        start = self.slot_indices - order.offset
        if self.unit == "span":
            # In integer units of 2**-BITS tokens. The window starts less than one token before index 0 of the order;
            # index n is index 0 again.
            starts_earlier = u * maskable_count & ((1 << BITS) - 1)
            into_window = (start.remainder(maskable_count.clamp(min=1)) << BITS) + starts_earlier
            return is_maskable & (into_window < (cut * (1 << BITS)).round())
        before_cut = ((cut - start) / order.length).clamp(0, 1)
        return (u < (before_cut * (1 << BITS)).round()) & (start + order.length <= self.slots)

    def _order(
        self,
        tokens: torch.Tensor,
        hashes: torch.Tensor,
        u: torch.Tensor,
        maskable: torch.Tensor,
        maskable_count: torch.Tensor,
    ) -> Order:
        """The order in which rows mask their tokens.

        Args:
            tokens: (B, T) ids.
            hashes: (B, T) int32, of each position.
            u: (B, 1) int64, uniform over [0, 2**BITS).
            maskable: (B, T) bool.
            maskable_count: (B, 1) int64.
        """
        keys = hashes.clamp(max=LARGEST - 1)
        if self.words is None:
            positions = self._first(torch.where(maskable, keys, LARGEST))
            offset, length = (part.expand_as(positions) for part in self.zero_and_one)
            return Order(positions, offset, length, maskable_count[:, 0])
        columns = torch.arange(self.block_size, device=tokens.device)
        starts = self.words.starts(tokens)  # (B, T) bool
        first = last_true(starts)  # (B, T), the position of the first token of each token's word
        length = torch.zeros_like(tokens).scatter_add(1, first, torch.ones_like(tokens)).gather(1, first)
        if self.unit == "span":
            ended = pad(~maskable, (1, -1), value=True)
            starts_span = starts & (ended | (uniform(hash32(hashes ^ self.span_key)) < threshold(1 / MEAN_SPAN)))
            may_come_first = maskable & starts if self.rate.is_sampled else maskable
            keys = self._rotate(hashes.long().gather(1, last_true(starts_span)), may_come_first, u)
            if not self.rate.is_sampled:
                first = torch.where(length > OVERHANG + 1, columns, first)
        else:
            keys = keys.long().gather(1, first)
        in_order = keys * self.block_size + columns
        positions = self._first(in_order.masked_fill(~maskable, torch.iinfo(torch.int64).max))
        offset = positions - first.gather(1, positions)
        return Order(positions, offset, length.gather(1, positions), (starts & maskable).sum(1))

    def _rotate(self, keys: torch.Tensor, may_come_first: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        """Rotate the circle of spans so that it starts at a uniformly sampled token.

        Args:
            keys: (B, T) int64, within the range of int32: the sort key of each token's span.
            may_come_first: (B, T) bool, the tokens to sample from.
            u: (B, 1) int64, uniform over [0, 2**BITS).

        Returns:
            (B, T) int64 sort keys, at most 2**32. The tokens of the first span before the sampled one come last.
        """
        index = u * may_come_first.sum(1, keepdim=True) >> BITS
        sampled = torch.searchsorted(may_come_first.cumsum(1), index, right=True).clamp(max=self.block_size - 1)
        rotated = (keys - keys.gather(1, sampled)) & 0xFFFFFFFF
        columns = torch.arange(self.block_size, device=keys.device)
        return rotated.masked_fill((rotated == 0) & (columns < sampled), 1 << 32)

    def _first(self, keys: torch.Tensor) -> torch.Tensor:
        """The positions of the K smallest keys of each row, in ascending order: (B, T) -> (B, K)."""
        return keys.topk(self.slots, dim=1, largest=False, sorted=True).indices

    def _replace(
        self, targets: torch.Tensor, is_masked: torch.Tensor, row_hashes: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        """The targets, replaced where they are masked, (B, K)."""
        if self.replacement == "mask":
            return targets.masked_fill(is_masked, self.tokenizer.mask_id)
        columns = positions.to(torch.int32) * GOLDEN
        u = uniform(hash32((row_hashes ^ self.replacement_key) + columns))
        # Of the tokens before the special ones, and of those after them.
        below, after = self.tokenizer.end_id, self.tokenizer.mask_id + 1
        random = (hash32((row_hashes ^ self.token_key) + columns) & LARGEST) % (below + self.tokenizer.added_tokens)
        random = torch.where(random < below, random, random + (after - below))
        other = torch.where(u < threshold(0.9), random, targets)
        return torch.where(is_masked, other.masked_fill(u < threshold(0.8), self.tokenizer.mask_id), targets)


def load_batch(matrix: StoredRows, selection: Selection, masker: Masker) -> MaskedBatch:
    """Read rows from the memory map and mask them, on the masker's device.

    Args:
        matrix: (rows of the corpus, T) token ids.
        selection: which rows to read, and when.
        masker: of rows of T tokens.
    """
    tokens = torch.from_numpy(matrix[selection.rows].astype(np.int64))
    return masker(copy_to(masker.device, tokens), selection)


def copy_to(device: torch.device, tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor from the CPU to a device: to a GPU from pinned memory, while its previous work still runs."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
