"""Masks have the requested rate, show no pattern, and depend only on (seed, epoch, row)."""

import itertools
import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch

from mlm_dist.config import Config, MaskingConfig
from mlm_dist.data.corpus import Corpus
from mlm_dist.data.mask_rate import MaskRate
from mlm_dist.data.masking import MaskedBatch, Masker
from mlm_dist.data.sampler import Selection
from mlm_dist.data.tokenizer import END_OF_TEXT, GPT2_PATTERN, Tokenizer
from mlm_dist.data.tokenizer import MASK as MASK_TOKEN
from mlm_dist.data.words import WordTable
from tests.conftest import Rate, at_rate

CPU = torch.device("cpu")
T = 64
END, MASK = 100, 101
ROWS = 10_000


TOKENIZER = Tokenizer.build(
    "letters", GPT2_PATTERN, {bytes([n]): n for n in range(END)}, {END_OF_TEXT: END, MASK_TOKEN: MASK}
)


class Mask:
    """A masker that is called with rows as if they were one global batch."""

    def __init__(self, masker: Masker) -> None:
        self.masker = masker

    def __call__(self, tokens: torch.Tensor, rows: torch.Tensor, epoch: int, step: int = 0) -> MaskedBatch:
        indices = np.arange(len(rows)) % len(self.masker.rate.strata)
        return self.masker(tokens, Selection.of_epoch(step, epoch, rows.cpu().numpy(), indices))


def masker(
    mask_prob: Rate = 0.15,
    replacement: Literal["mask", "80/10/10"] = "mask",
    block_size: int = T,
    seed: int = 1,
    device: torch.device = CPU,
    unit: Literal["token", "word", "span"] = "token",
    tokenizer: Tokenizer = TOKENIZER,
    batch_size: int = ROWS,
) -> Mask:
    rate = MaskRate(at_rate(mask_prob), seed, batch_size, max_iters=11)
    return Mask(Masker(rate, replacement, unit, block_size, tokenizer, seed, device))


def random_tokens(rows: int, end_fraction: float = 0.0, block_size: int = T) -> torch.Tensor:
    """(rows, block_size) random tokens, of which `end_fraction` are `<|endoftext|>`."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, END, (rows, block_size), generator=generator)
    return tokens.masked_fill(torch.rand(rows, block_size, generator=generator) < end_fraction, END)


def is_masked(batch: MaskedBatch) -> torch.Tensor:
    """(B, T) bool: which tokens are predicted."""
    return torch.zeros(batch.inputs.shape).scatter_add(1, batch.positions, batch.loss_weights) > 0


def parts(batch: MaskedBatch) -> list[torch.Tensor]:
    return [batch.inputs, batch.positions, batch.targets, batch.loss_weights]


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    """(ROWS, T), without `<|endoftext|>`."""
    return random_tokens(ROWS)


@pytest.fixture(scope="module")
def batch(tokens: torch.Tensor) -> MaskedBatch:
    return masker()(tokens, torch.arange(ROWS), 0)


@pytest.mark.parametrize("mask_prob", [0.01, 0.15, 0.3, 0.77, 0.99])
def test_the_masked_fraction_of_a_row_is_the_rate_on_average(tokens: torch.Tensor, mask_prob: float) -> None:
    counts = masker(mask_prob)(tokens, torch.arange(ROWS), 0).loss_weights.sum(1)
    expected = mask_prob * T
    assert set(counts.tolist()) == {math.floor(expected), math.ceil(expected)}
    rest = expected % 1
    assert abs(counts.mean().item() - expected) < 4 * math.sqrt(rest * (1 - rest) / ROWS)


@pytest.mark.parametrize(
    ("mask_prob", "block_size", "count"),
    [(0.5, 64, 32), (0.15, 20, 3), (0.07, 100, 7), (0.29, 100, 29), (0.9999, 16, 16)],
)
def test_a_whole_number_of_masked_tokens_is_the_same_in_every_row(
    mask_prob: float, block_size: int, count: int
) -> None:
    tokens = random_tokens(1000, 0, block_size)
    loss_weights = masker(mask_prob, block_size=block_size)(tokens, torch.arange(1000), 0).loss_weights
    assert loss_weights.shape == (1000, count)
    assert loss_weights.eq(1).all()


def test_the_rate_is_a_fraction_of_the_maskable_tokens() -> None:
    tokens = random_tokens(ROWS)
    lengths = torch.arange(ROWS) % (T + 1)
    tokens[torch.arange(T) >= lengths[:, None]] = END
    counts = masker()(tokens, torch.arange(ROWS), 0).loss_weights.sum(1)
    for length in range(T + 1):
        expected, of_length = 0.15 * length, counts[lengths == length]
        assert math.floor(expected + 1e-9) <= of_length.min() and of_length.max() <= math.ceil(expected - 1e-9)
        rest = expected % 1
        error = math.sqrt(rest * (1 - rest) / len(of_length))
        assert abs(of_length.mean().item() - expected) < 4.5 * error + 1e-6


def test_every_position_is_equally_likely_to_be_masked(batch: MaskedBatch) -> None:
    masked = is_masked(batch)
    # Also within the rows that mask 9 tokens and those that mask 10: the count is independent of the positions.
    for rows in (masked, masked[masked.sum(1) == 9], masked[masked.sum(1) == 10]):
        counts = rows.sum(0).double()
        expected = counts.mean()
        # Chi-square of sampling without replacement: each count varies by rows * p * (1 - p).
        variance = expected * (1 - expected / len(rows))
        statistic = ((counts - expected) ** 2 / variance).sum().item() * (T - 1) / T
        assert abs(statistic - (T - 1)) < 5 * math.sqrt(2 * (T - 1))


def test_masked_positions_at_any_distance_are_uncorrelated(batch: MaskedBatch) -> None:
    masked = is_masked(batch).double()
    both_masked = (masked.T @ masked).numpy()
    count = masked.sum(1)
    expected = (count * (count - 1)).mean().item() / (T * (T - 1)) * ROWS
    for distance in range(1, T):
        pairs = np.diagonal(both_masked, distance)
        assert abs(pairs.sum() - expected * len(pairs)) < 5 * math.sqrt(expected * len(pairs))


def test_masked_positions_are_distinct(batch: MaskedBatch) -> None:
    assert torch.equal(is_masked(batch).sum(1).float(), batch.loss_weights.sum(1))


def test_loss_weights_are_0_or_1_and_unused_slots_have_position_0(batch: MaskedBatch) -> None:
    assert set(batch.loss_weights.unique().tolist()) == {0.0, 1.0}
    assert batch.positions[batch.loss_weights == 0].eq(0).all()


def test_shapes_and_types_do_not_depend_on_the_tokens(batch: MaskedBatch) -> None:
    slots = math.ceil(0.15 * T)
    only_ends = masker()(torch.full((ROWS, T), END), torch.arange(ROWS), 0)
    for one in (batch, only_ends):
        assert [part.shape for part in parts(one)] == [(ROWS, T), (ROWS, slots), (ROWS, slots), (ROWS, slots)]
        assert [part.dtype for part in parts(one)] == [torch.int64, torch.int64, torch.int64, torch.float32]


@pytest.mark.parametrize("replacement", ["mask", "80/10/10"])
@pytest.mark.parametrize("end_fraction", [0.1, 0.9, 0.99, 1.0])
def test_end_of_text_is_never_masked(end_fraction: float, replacement: Literal["mask", "80/10/10"]) -> None:
    tokens = random_tokens(2000, end_fraction)
    batch = masker(0.3, replacement)(tokens, torch.arange(2000), 0)
    assert not (is_masked(batch) & (tokens == END)).any()
    assert batch.inputs[tokens == END].eq(END).all()
    assert batch.targets[batch.loss_weights == 1].ne(END).all()


@pytest.mark.parametrize("replacement", ["mask", "80/10/10"])
@pytest.mark.parametrize("end_fraction", [0.0, 0.5])
def test_inputs_equal_the_tokens_except_where_masked(
    end_fraction: float, replacement: Literal["mask", "80/10/10"]
) -> None:
    tokens = random_tokens(2000, end_fraction)
    before = tokens.clone()
    batch = masker(0.15, replacement)(tokens, torch.arange(2000), 0)
    assert torch.equal(tokens, before)
    assert torch.equal(batch.inputs[~is_masked(batch)], tokens[~is_masked(batch)])
    if replacement == "mask":
        assert batch.inputs[is_masked(batch)].eq(MASK).all()


@pytest.mark.parametrize("end_fraction", [0.0, 0.9])
def test_targets_are_the_original_tokens(end_fraction: float) -> None:
    tokens = random_tokens(2000, end_fraction)
    batch = masker()(tokens, torch.arange(2000), 0)
    counted = batch.loss_weights == 1
    assert torch.equal(batch.targets[counted], tokens.gather(1, batch.positions)[counted])


def test_80_10_10_replaces_in_these_proportions(tokens: torch.Tensor) -> None:
    batch = masker(0.15, "80/10/10")(tokens, torch.arange(ROWS), 0)
    inputs, targets = batch.inputs[is_masked(batch)], tokens[is_masked(batch)]
    by_mask, unchanged = inputs == MASK, inputs == targets
    random = inputs[~by_mask & ~unchanged]
    count = len(inputs)
    for fraction, expected in (
        (by_mask.float().mean().item(), 0.8),
        (unchanged.float().mean().item(), 0.1 + 0.1 / END),  # a random token may equal the original one
        (len(random) / count, 0.1 - 0.1 / END),
    ):
        assert abs(fraction - expected) < 4 * math.sqrt(expected * (1 - expected) / count)
    # Random tokens are uniform over all tokens except the special ones.
    assert random.max() < END
    counts = random.bincount(minlength=END).double()
    statistic = ((counts - counts.mean()) ** 2 / counts.mean()).sum().item()
    assert abs(statistic - (END - 1)) < 5 * math.sqrt(2 * (END - 1))


def test_random_tokens_are_uniform_over_those_of_an_extended_tokenizer_too(tokens: torch.Tensor) -> None:
    added = dict(zip((b"%c!" % n for n in range(65, 75)), range(MASK + 1, MASK + 11), strict=True))
    extended = Tokenizer.build("extended", GPT2_PATTERN, TOKENIZER.ranks | added, TOKENIZER.special_tokens)
    batch = masker(0.15, "80/10/10", tokenizer=extended)(tokens, torch.arange(ROWS), 0)
    inputs, targets = batch.inputs[is_masked(batch)], tokens[is_masked(batch)]
    counts = inputs[(inputs != MASK) & (inputs != targets)].bincount(minlength=MASK + 11)
    assert counts[[END, MASK]].tolist() == [0, 0]
    counts = torch.cat([counts[:END], counts[MASK + 1 :]]).double()
    assert len(counts) == END + 10
    statistic = ((counts - counts.mean()) ** 2 / counts.mean()).sum().item()
    assert abs(statistic - len(counts)) < 5 * math.sqrt(2 * len(counts))


def test_the_choice_of_tokens_does_not_depend_on_the_replacement(tokens: torch.Tensor) -> None:
    plain = masker(0.15, "mask")(tokens[:500], torch.arange(500), 0)
    mixed = masker(0.15, "80/10/10")(tokens[:500], torch.arange(500), 0)
    assert torch.equal(plain.positions, mixed.positions)
    assert torch.equal(plain.loss_weights, mixed.loss_weights)


@pytest.mark.parametrize("unit", ["token", "word", "span"])
@pytest.mark.parametrize("replacement", ["mask", "80/10/10"])
def test_the_mask_of_a_row_does_not_depend_on_the_rest_of_the_batch(
    replacement: Literal["mask", "80/10/10"], unit: Literal["token", "word", "span"]
) -> None:
    mask, tokens, rows = masker(0.15, replacement, unit=unit), random_tokens(64, 0.05), torch.arange(64) * 1009
    whole = mask(tokens, rows, 3)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    shuffled = mask(tokens[order], rows[order], 3)
    for one, other in zip(parts(whole), parts(shuffled), strict=True):
        assert torch.equal(one[order], other)
    for row in range(64):
        alone = mask(tokens[row : row + 1], rows[row : row + 1], 3)
        for one, other in zip(parts(whole), parts(alone), strict=True):
            assert torch.equal(one[row : row + 1], other)


def test_masks_of_different_epochs_seeds_and_rows_are_independent(tokens: torch.Tensor) -> None:
    rows = torch.arange(2000)
    reference = is_masked(masker()(tokens[:2000], rows, 0))
    others = [
        is_masked(masker()(tokens[:2000], rows, 1)),
        is_masked(masker(seed=2)(tokens[:2000], rows, 0)),
        is_masked(masker()(tokens[:2000], rows + 1, 0)),
        is_masked(masker()(tokens[:2000], rows + 2**20, 0)),
    ]
    for other in others:
        assert (reference != other).any(1).float().mean() > 0.999
        # Two independent masks share 9.6 * 9.6 / 64 positions on average, with a variance of about 1.
        shared = (reference & other).sum(1).float().mean().item()
        assert abs(shared - 9.6 * 9.6 / 64) < 5 * math.sqrt(1.1 / 2000)


def test_masks_do_not_depend_on_earlier_calls() -> None:
    mask, tokens, rows = masker(), random_tokens(8), torch.arange(8)
    first = mask(tokens, rows, 0)
    mask(random_tokens(3), torch.arange(3), 7)
    for one, other in zip(parts(first), parts(mask(tokens, rows, 0)), strict=True):
        assert torch.equal(one, other)


def test_the_masks_of_a_seed_never_change() -> None:
    # If these values change, a run that is resumed after an update masks other tokens.
    mask = masker(0.33, "80/10/10", block_size=20, seed=1337)
    batch = mask(torch.arange(80).reshape(4, 20), torch.tensor([0, 1, 5, 70_000]), 2)
    assert batch.loss_weights.sum(1).tolist() == [7.0, 6.0, 6.0, 7.0]
    assert batch.positions.tolist() == [
        [19, 0, 17, 1, 18, 6, 10],
        [11, 5, 3, 1, 6, 15, 0],
        [5, 4, 17, 2, 6, 15, 0],
        [0, 1, 2, 13, 10, 9, 19],
    ]
    assert batch.inputs.gather(1, batch.positions).tolist() == [
        [101, 0, 72, 101, 101, 101, 101],
        [101, 101, 2, 101, 101, 101, 20],
        [101, 101, 101, 101, 46, 101, 40],
        [101, 101, 101, 73, 101, 69, 101],
    ]


def test_from_config_takes_its_settings_from_the_config_and_the_tokenizer(corpus: Corpus) -> None:
    config = Config(masking=MaskingConfig(mask_prob=0.2, replacement="80/10/10"))
    built = Masker.from_config(config, 16, corpus.tokenizer, 7, 8, CPU)
    assert (built.tokenizer, built.seed) == (corpus.tokenizer, 7)
    assert built.replacement == "80/10/10"
    assert Mask(built)(torch.zeros(1, 16, dtype=torch.int64), torch.tensor([0]), 0).loss_weights.shape == (1, 4)


def test_micro_batches_concatenate_to_the_batch(batch: MaskedBatch) -> None:
    micro_batches = batch.micro_batches(3000)
    assert [len(one.inputs) for one in micro_batches] == [3000] * 3 + [1000]
    for index, whole in enumerate(parts(batch)):
        assert torch.equal(torch.cat([parts(one)[index] for one in micro_batches]), whole)


def test_the_digest_of_a_batch_is_the_sum_over_its_parts_in_any_order(batch: MaskedBatch) -> None:
    whole = batch.digest()
    assert whole.dtype == torch.int64
    assert sum(part.digest() for part in batch.micro_batches(3000)) == whole
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(0))
    assert MaskedBatch(*(part[order] for part in parts(batch))).digest() == whole


def add_to(name: str, row: int, column: int, amount: int) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name][row, column] += amount

    return change


def swap_columns(tensors: dict[str, torch.Tensor]) -> None:
    tensors["inputs"][0, [0, 1]] = tensors["inputs"][0, [1, 0]]


def swap_targets(tensors: dict[str, torch.Tensor]) -> None:
    tensors["targets"][0, [0, 1]] = tensors["targets"][0, [1, 0]]


def swap_between_rows(tensors: dict[str, torch.Tensor]) -> None:
    tensors["inputs"][[0, 1], 0] = tensors["inputs"][[1, 0], 0]


def swap_masked_tokens_between_rows(tensors: dict[str, torch.Tensor]) -> None:
    for name in ("targets", "positions", "loss_weights"):
        tensors[name][[0, 1]] = tensors[name][[1, 0]]


@pytest.mark.parametrize(
    "change",
    [
        add_to("inputs", 1, 5, 1),
        add_to("targets", 1, 0, 1),
        add_to("positions", 1, 0, 1),
        add_to("loss_weights", 1, 0, -1),
        swap_columns,
        swap_targets,
        swap_between_rows,
        swap_masked_tokens_between_rows,
    ],
    ids=["input", "target", "position", "loss weight", "columns", "targets", "rows", "masked tokens"],
)
def test_any_single_change_to_a_batch_changes_its_digest(
    change: Callable[[dict[str, torch.Tensor]], None], tokens: torch.Tensor
) -> None:
    batch = masker()(tokens[:4], torch.arange(4), 0)
    changed = {name: tensor.clone() for name, tensor in vars(batch).items() if tensor is not None}
    change(changed)
    assert MaskedBatch(**changed).digest() != batch.digest()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("replacement", ["mask", "80/10/10"])
def test_masks_on_the_gpu_equal_those_on_the_cpu(replacement: Literal["mask", "80/10/10"]) -> None:
    device = torch.device("cuda")
    tokens, rows = random_tokens(ROWS, 0.02), torch.arange(ROWS) + 2**20
    here = masker(0.15, replacement)(tokens, rows, 4)
    there = masker(0.15, replacement, device=device)(tokens.to(device), rows.to(device), 4)
    for one, other in zip(parts(here), parts(there), strict=True):
        assert other.device.type == "cuda"
        assert torch.equal(one, other.cpu())


def test_a_falling_schedule_masks_fewer_tokens_in_the_same_shape() -> None:
    tokens, mask = random_tokens(2000), masker((0.5, 0.25), batch_size=2000)
    counts = [mask(tokens, torch.arange(2000), 0, step).loss_weights.sum(1) for step in (0, 5, 10)]
    assert [count.mean().item() for count in counts] == [32, pytest.approx(24, abs=0.1), 16]
    assert mask(tokens, torch.arange(2000), 0, 10).loss_weights.shape == (2000, 32)


@pytest.mark.parametrize("end_fraction", [0.0, 0.2])
def test_with_sampled_rates_counts_are_rounded_up_and_loss_weights_sum_to_the_maskable_tokens(
    end_fraction: float,
) -> None:
    tokens, mask = random_tokens(256, end_fraction), masker([0.0, 1.0], batch_size=256)
    rates = mask.masker.rate(Selection.of_epoch(0, 3, np.arange(256), np.arange(256)))
    batch = mask(tokens, torch.arange(256), 3)
    maskable, counts = (tokens != END).sum(1), (batch.loss_weights > 0).sum(1)
    assert counts.tolist() == [math.ceil(rate * count) for rate, count in zip(rates, maskable.tolist(), strict=True)]
    torch.testing.assert_close(batch.loss_weights.sum(1), maskable.float())
    assert all(len(set(row[row > 0].tolist())) == 1 for row in batch.loss_weights)
    assert torch.equal(is_masked(batch).sum(1), counts)  # no position is repeated


def test_with_rates_from_0_to_1_every_number_of_masked_tokens_is_equally_likely() -> None:
    mask, size = masker([0.0, 1.0], block_size=8, batch_size=50), 50
    batches = [mask(random_tokens(size, 0, 8), torch.arange(size), epoch) for epoch in range(400)]
    counts = torch.cat([(batch.loss_weights > 0).sum(1) for batch in batches]).bincount(minlength=9)[1:].double()
    expected = 400 * size / 8
    assert ((counts - expected) ** 2 / expected).sum() < 7 + 5 * math.sqrt(2 * 7)


@pytest.mark.parametrize(("mask_prob", "most"), [([0.1, 0.3], 20), ([0.25, 0.5], 32), ([0.0, 1.0], 64)])
def test_with_sampled_rates_no_row_masks_more_tokens_than_it_has_slots(mask_prob: list[float], most: int) -> None:
    mask = masker(mask_prob, batch_size=64)
    by_index = mask.masker._max_masked_by_index()
    assert by_index.max() == mask.masker.slots == most
    for epoch in range(20):
        counts = (mask(random_tokens(64), torch.arange(64), epoch).loss_weights > 0).sum(1).numpy()
        assert (counts <= by_index).all()
        assert (counts >= math.ceil(mask_prob[0] * T)).all()


@pytest.mark.parametrize("mask_prob", [1e-12, [0.0, 1e-12]], ids=str)
def test_even_the_smallest_rate_has_one_slot(mask_prob: Rate) -> None:
    batch = masker(mask_prob, batch_size=8)(random_tokens(8), torch.arange(8), 0)
    assert batch.loss_weights.shape == (8, 1)


def enumerated_bound(probabilities: torch.Tensor) -> float:
    """The negative log-likelihood of a row of n tokens written in a random order, averaged over all orders.

    Args:
        probabilities: (2**n, n), of the true token at each position, by the bit set of masked positions.
    """
    n = probabilities.shape[1]
    orders = list(itertools.permutations(range(n)))
    total = 0.0
    for order in orders:
        masked = (1 << n) - 1
        for position in order:
            total -= math.log(probabilities[masked, position])
            masked ^= 1 << position
    return total / len(orders)


@pytest.mark.parametrize("end_at", [None, 2])
def test_with_rates_from_0_to_1_the_weighted_loss_is_an_unbiased_estimate_of_the_bound(end_at: int | None) -> None:
    # The model is a table: for each set of masked positions, the probability of the true token at each position.
    n, size, epochs = 5, 40, 500
    probabilities = torch.rand(1 << n, n, generator=torch.Generator().manual_seed(3)) * 0.9 + 0.05
    tokens = torch.arange(n).expand(size, n).clone()
    if end_at is not None:
        tokens[:, end_at] = END
        maskable = [position for position in range(n) if position != end_at]
        subsets = [sum(1 << p for k, p in enumerate(maskable) if code >> k & 1) for code in range(1 << (n - 1))]
        exact = enumerated_bound(probabilities[subsets][:, maskable])
    else:
        exact = enumerated_bound(probabilities)
    mask = masker([0.0, 1.0], block_size=n, batch_size=size)
    estimates = []
    for epoch in range(epochs):
        batch = mask(tokens, torch.arange(size) + size * epoch, epoch)
        masked = ((batch.inputs == MASK) << torch.arange(n)).sum(1)
        losses = -probabilities[masked[:, None], batch.positions].log()
        estimates.append((losses * batch.loss_weights).sum(1).mean().item())
    error = np.std(estimates) / math.sqrt(epochs)
    assert error < 0.01 * exact
    assert abs(np.mean(estimates) - exact) < 4 * error


# `a` and `c` continue a word, ` b` (written as `b` below) starts one, ` ` is a word, `|` ends a document.
LETTERS = Tokenizer.build(
    "letters", GPT2_PATTERN, {b"a": 0, b" b": 1, b"c": 2, b" ": 3}, {END_OF_TEXT: 4, MASK_TOKEN: 5}
)


def letter_ids(row: str) -> torch.Tensor:
    """(T,) ids of `LETTERS`, one per character."""
    return torch.tensor(["abc |".index(letter) for letter in row])


@pytest.mark.parametrize("replacement", ["mask", "80/10/10"])
@pytest.mark.parametrize(
    ("unit", "mask_prob", "digest"),
    [
        ("token", 0.15, {"mask": 136684920852, "80/10/10": 145981174741}),
        ("token", (0.5, 0.25), {"mask": 142732274574, "80/10/10": 136445903108}),
        ("token", [0.0, 1.0], {"mask": 130494629795, "80/10/10": 147078591542}),
        ("word", 0.15, {"mask": 148584130203, "80/10/10": 127761203019}),
        ("word", (0.5, 0.25), {"mask": 135393460819, "80/10/10": 141686242347}),
        ("word", [0.1, 0.5], {"mask": 127789187139, "80/10/10": 125016822780}),
    ],
    ids=str,
)
def test_masks_of_tokens_and_words_never_change(
    unit: Literal["token", "word"],
    mask_prob: Rate,
    digest: dict[str, int],
    replacement: Literal["mask", "80/10/10"],
) -> None:
    # Recorded when these units were added. If they change, a resumed run masks other tokens.
    tokens = (torch.arange(64 * T) ** 2 % 1009 % 5).reshape(64, T)
    mask = masker(mask_prob, replacement, unit=unit, tokenizer=LETTERS, batch_size=64)
    digests = [int(mask(tokens, torch.arange(64) * 1009, epoch, step).digest()) for epoch, step in ((0, 0), (3, 7))]
    assert sum(digests) == digest[replacement]


ONE_TOKEN_WORDS = " " * 16
FEW_WORDS = "   " + "|" * 13
DOCUMENTS = "    |  |      | "
LONG_WORDS = "baaaaaaabbabaaba"  # of 8, 1, 2, 3 and 2 tokens
ONE_LONG_WORD = "baaaaaaa||||||||"


def loss_weights_over_a_million_rows(row: str, mask: Mask) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss weight of each position of a row, summed over 10**6 rows, and the sum of the squares."""
    tokens = letter_ids(row).repeat(ROWS, 1)
    sums = torch.zeros(2, len(row), dtype=torch.float64)
    for start in range(0, 10**6, ROWS):
        batch = mask(tokens, torch.arange(start, start + ROWS), 0)
        weights = torch.zeros(tokens.shape).scatter_add_(1, batch.positions, batch.loss_weights).double()
        sums += torch.stack([weights.sum(0), weights.square().sum(0)])
    return sums[0], sums[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("row", "mask_prob"),
    [
        (ONE_TOKEN_WORDS, 0.15),
        (FEW_WORDS, 0.15),
        (DOCUMENTS, 0.15),
        (LONG_WORDS, 0.15),
        (LONG_WORDS, 0.5),
        (ONE_LONG_WORD, 0.15),
    ],
)
def test_with_spans_every_token_is_masked_at_the_rate(row: str, mask_prob: float) -> None:
    mask = masker(mask_prob, unit="span", tokenizer=LETTERS, block_size=len(row))
    counts, _ = loss_weights_over_a_million_rows(row, mask)
    rates = counts[letter_ids(row) != LETTERS.end_id] / 10**6
    assert counts.sum() == counts[letter_ids(row) != LETTERS.end_id].sum()
    error = math.sqrt(mask_prob * (1 - mask_prob) / 10**6)
    assert ((rates - mask_prob).abs() < 4 * error).all()
    assert ((rates / mask_prob - 1).abs() < 0.02).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("row", "mask_prob"), [(ONE_TOKEN_WORDS, [0.0, 1.0]), (DOCUMENTS, [0.1, 0.3]), (LONG_WORDS, [0.1, 0.3])], ids=str
)
def test_with_spans_and_sampled_rates_every_token_has_the_same_mean_loss_weight(
    row: str, mask_prob: list[float]
) -> None:
    mask = masker(mask_prob, unit="span", tokenizer=LETTERS, block_size=len(row))
    sums, squares = loss_weights_over_a_million_rows(row, mask)
    maskable = letter_ids(row) != LETTERS.end_id
    means = sums[maskable] / 10**6
    error = (squares[maskable] / 10**6 - means**2).sqrt() / 10**3
    assert ((means - 1).abs() < 4 * error).all()
    assert ((means - 1).abs() < 0.02).all()


@pytest.mark.parametrize("mask_prob", [1e-12, 0.07, 0.15, 0.29, 5 / 24, 0.77, 1 - 1e-9])
@pytest.mark.parametrize("block_size", [1, 5, 24, 100])
def test_spans_never_need_more_slots_than_they_have(block_size: int, mask_prob: float) -> None:
    # Words of four tokens, the longest that are always masked whole. Half of the rows end with end-of-text tokens.
    row = "baaa" * (block_size // 4) + "baaa"[: block_size % 4]
    tokens = letter_ids(row).repeat(ROWS, 1)
    ends = torch.arange(ROWS) % (2 * block_size)
    tokens[torch.arange(block_size) >= block_size - (ends - block_size).clamp(min=0)[:, None]] = LETTERS.end_id
    mask = masker(mask_prob, unit="span", tokenizer=LETTERS, block_size=block_size)
    maskable = tokens != LETTERS.end_id
    count = maskable.sum(1)
    masked = is_masked(mask(tokens, torch.arange(ROWS), 0))
    words = torch.nn.functional.pad(masked, (0, -block_size % 4)).unflatten(1, (-1, 4))
    size = torch.nn.functional.pad(maskable, (0, -block_size % 4)).unflatten(1, (-1, 4)).sum(2)
    assert ((words.sum(2) == 0) | (words.sum(2) == size)).all()  # no masked word was cut off for lack of slots
    most = torch.minimum((mask_prob * count - 1e-9).ceil().clamp(min=1) + 3, count)
    assert (masked.sum(1) <= most).all()
    if mask_prob == 1 - 1e-9:
        assert torch.equal(masked, maskable)
    if (block_size, mask_prob) == (24, 5 / 24):
        assert masked.sum(1).max() == mask.masker.slots == 8


WORDS = "Aunt Zoë's naïve boys, 1234 in all, went up-stairs; 我们去 понедельник! unbelievably don't"


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return Tokenizer.train_bpe([WORDS], 280)  # few merges, so words have many tokens


def rows_of_words(tokenizer: Tokenizer, rows: int, block_size: int = T) -> torch.Tensor:
    """Rows that start at any token of a text, each with one `<|endoftext|>`."""
    ids = torch.from_numpy(np.tile(tokenizer.encode(WORDS + " "), 3).astype(np.int64))
    starts = torch.arange(rows) * 7 % (len(ids) - block_size)
    tokens = ids[starts[:, None] + torch.arange(block_size)]
    return tokens.scatter(1, (starts % block_size)[:, None], tokenizer.end_id)


def words_of(tokenizer: Tokenizer, tokens: torch.Tensor) -> list[list[list[int]]]:
    """The positions of each word of each row."""
    words: list[list[list[int]]] = []
    for row in WordTable(tokenizer, CPU).starts(tokens).tolist():
        words.append([])
        for position, is_start in enumerate(row):
            if is_start:
                words[-1].append([position])
            else:
                words[-1][-1].append(position)
    return words


@pytest.mark.parametrize("mask_prob", [0.15, 0.6, [0.0, 1.0], [0.1, 0.5]], ids=str)
@pytest.mark.parametrize("unit", ["word", "span"])
def test_words_are_masked_whole_or_not_at_all(bpe: Tokenizer, unit: Literal["word", "span"], mask_prob: Rate) -> None:
    tokens = rows_of_words(bpe, 500)
    batch = masker(mask_prob, unit=unit, tokenizer=bpe, batch_size=500)(tokens, torch.arange(500), 0)
    masked = is_masked(batch)
    assert masked.any(1).float().mean() > 0.9
    # At a fixed rate, spans may mask a part of a word that needs more than the 3 additional slots of a row.
    longest = 4 if unit == "span" and not isinstance(mask_prob, list) else T
    for row, words in zip(masked, words_of(bpe, tokens), strict=True):
        assert all(row[word].all() or not row[word].any() for word in words if len(word) <= longest)
    assert not masked[tokens == bpe.end_id].any()


def test_the_rate_of_words_and_spans_is_that_of_tokens() -> None:
    # Words of one to four tokens, none too long for the additional slots of a row.
    tokenizer = Tokenizer.build("letters", GPT2_PATTERN, {b"a": 0, b" b": 1, b"c": 2}, {END_OF_TEXT: 3, MASK_TOKEN: 4})
    tokens = torch.randint(0, 3, (ROWS, 2 * T), generator=torch.Generator().manual_seed(5))
    tokens[:, ::4] = 1
    for unit in ("word", "span"):
        mask = masker(0.15, unit=unit, tokenizer=tokenizer, block_size=2 * T)
        loss_weights = mask(tokens, torch.arange(ROWS), 0).loss_weights
        assert loss_weights.sum(1).mean().item() == pytest.approx(0.15 * 2 * T, abs=0.05)


def test_spans_are_runs_of_words(bpe: Tokenizer) -> None:
    tokens = torch.full((2000, T), int(bpe.encode(" ")[0]))  # every token is a word
    runs = {}
    for unit in ("word", "span"):
        mask = masker(0.15, unit=unit, tokenizer=bpe, batch_size=2000)
        masked = is_masked(mask(tokens, torch.arange(2000), 0)).int()
        starts = (masked - torch.nn.functional.pad(masked, (1, -1))).clamp(min=0).sum(1)
        runs[unit] = (masked.sum(1) / starts).mean().item()
    assert runs["word"] < 1.3
    assert 2.5 < runs["span"] < 4.5  # the window cuts the spans at its ends


def test_no_span_continues_into_the_next_document(bpe: Tokenizer) -> None:
    tokens = torch.full((4000, T), int(bpe.encode(" ")[0]))
    tokens[:, T // 2] = bpe.end_id
    masked = is_masked(masker(0.15, unit="span", tokenizer=bpe, batch_size=4000)(tokens, torch.arange(4000), 0))
    last_but_one, last, first_of_next = (masked[:, T // 2 + shift].double() for shift in (-2, -1, 1))
    assert (last * last_but_one).mean().item() > 0.09  # neighbours in a document are often masked together
    assert (last * first_of_next).mean().item() < 0.04  # across documents they are independent: 0.15 squared


@pytest.mark.parametrize("unit", ["word", "span"])
def test_with_sampled_rates_words_are_counted_and_weighted(bpe: Tokenizer, unit: Literal["word", "span"]) -> None:
    tokens = rows_of_words(bpe, 64)
    mask = masker([0.0, 1.0], unit=unit, tokenizer=bpe, batch_size=64)
    rates = mask.masker.rate(Selection.of_epoch(0, 0, np.arange(64), np.arange(64)))
    batch = mask(tokens, torch.arange(64), 0)
    masked = is_masked(batch)
    for row, rate, loss_weights, words, ids in zip(
        masked, rates, batch.loss_weights, words_of(bpe, tokens), tokens, strict=True
    ):
        maskable = [word for word in words if ids[word[0]] != bpe.end_id]
        count = sum(bool(row[word[0]]) for word in maskable)
        assert count == math.ceil(rate * len(maskable))
        assert loss_weights[loss_weights > 0].tolist() == pytest.approx([len(maskable) / count] * int(row.sum()))
