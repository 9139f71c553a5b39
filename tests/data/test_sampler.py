"""The rows of a step are the same for any number of ranks and from any start step."""

from itertools import islice

import numpy as np
import pytest
from torch.utils.data import DistributedSampler

from mlm_dist.data.sampler import GlobalBatchSampler, Selection
from mlm_dist.errors import UserError

ROWS, BATCH, SEED = 103, 8, 1337
STEPS_PER_EPOCH = ROWS // BATCH


def steps(count: int, start_step: int = 0, seed: int = SEED) -> list[tuple[int, list[int]]]:
    """(epoch, rows) of some steps, as one rank reads them."""
    sampler = GlobalBatchSampler(ROWS, BATCH, seed, start_step=start_step)
    return [(epoch_of(selection), selection.rows.tolist()) for selection in islice(sampler, count)]


def epoch_of(selection: Selection) -> int:
    """The epoch of all rows of a step."""
    [epoch] = set(selection.epochs.tolist())
    return int(epoch)


def test_pieces_of_rows_are_rows_of_their_own() -> None:
    rows = Selection(7, np.array([0, 1]), np.array([3, 5]), np.array([0, 2]), np.array([0, 1]))
    pieces = rows.pieces(2, batch_size=4)
    assert pieces.step == 7
    assert pieces.rows.tolist() == [6, 10, 7, 11]
    assert pieces.batch_indices.tolist() == [0, 2, 4, 6]
    assert (pieces.epochs.tolist(), pieces.corpora.tolist()) == ([0, 1, 0, 1], [0, 1, 0, 1])


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_a_step_reads_the_same_rows_with_any_number_of_ranks(world_size: int) -> None:
    ranks = [
        islice(GlobalBatchSampler(ROWS, BATCH, SEED, rank, world_size), 2 * STEPS_PER_EPOCH)
        for rank in range(world_size)
    ]
    for (epoch, alone), *parts in zip(steps(2 * STEPS_PER_EPOCH), *ranks, strict=True):
        assert {epoch_of(part) for part in parts} == {epoch}
        assert [len(part.rows) for part in parts] == [BATCH // world_size] * world_size
        # Rank r reads every world_size-th row from the r-th on, so the rows of all ranks interleave to the batch.
        assert np.stack([part.rows for part in parts], axis=1).ravel().tolist() == alone
        assert np.stack([part.batch_indices for part in parts], axis=1).ravel().tolist() == list(range(BATCH))


def test_no_row_appears_twice_in_an_epoch() -> None:
    for epoch in range(3):
        part = steps(STEPS_PER_EPOCH, epoch * STEPS_PER_EPOCH)
        assert {found for found, _ in part} == {epoch}
        rows = [row for _, batch in part for row in batch]
        assert len(rows) == len(set(rows)) == STEPS_PER_EPOCH * BATCH
        assert set(rows) <= set(range(ROWS))


def test_an_epoch_contains_only_complete_global_batches() -> None:
    assert {len(rows) for _, rows in steps(3 * STEPS_PER_EPOCH)} == {BATCH}
    epochs = [epoch for epoch, _ in steps(3 * STEPS_PER_EPOCH)]
    assert epochs == [0] * STEPS_PER_EPOCH + [1] * STEPS_PER_EPOCH + [2] * STEPS_PER_EPOCH


def test_an_epoch_of_one_batch_reads_all_rows() -> None:
    sampler = GlobalBatchSampler(BATCH, BATCH, SEED)
    assert [sorted(selection.rows.tolist()) for selection in islice(sampler, 3)] == [list(range(BATCH))] * 3


def test_every_row_is_read_eventually_although_epochs_skip_some() -> None:
    assert {row for _, rows in steps(5 * STEPS_PER_EPOCH) for row in rows} == set(range(ROWS))


@pytest.mark.parametrize("start_step", [1, 7, STEPS_PER_EPOCH - 1, STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH + 3, 30])
def test_a_later_start_step_gives_the_remaining_steps(start_step: int) -> None:
    assert steps(40 - start_step, start_step) == steps(40)[start_step:]


def test_a_distant_start_step_takes_no_time() -> None:
    selection = next(iter(GlobalBatchSampler(ROWS, BATCH, SEED, start_step=10**12)))
    assert (selection.step, epoch_of(selection)) == (10**12, 10**12 // STEPS_PER_EPOCH)
    assert len(set(selection.rows.tolist())) == BATCH


def test_iterating_again_starts_over() -> None:
    sampler = GlobalBatchSampler(ROWS, BATCH, SEED, start_step=5)
    first, second = ([selection.rows.tolist() for selection in islice(sampler, 4)] for _ in range(2))
    assert first == second


def test_epochs_and_seeds_shuffle_differently() -> None:
    orders = [
        tuple(row for _, rows in steps(STEPS_PER_EPOCH, epoch * STEPS_PER_EPOCH, seed) for row in rows)
        for epoch in range(5)
        for seed in range(5)
    ]
    assert len(set(orders)) == 25
    assert all(list(order) != sorted(order) for order in orders)


def test_the_rows_of_a_seed_never_change() -> None:
    # A checkpoint stores only the step. If this order changes, a resumed run reads other rows.
    assert steps(1) == [(0, [43, 33, 53, 69, 73, 30, 96, 55])]


def test_the_sampler_is_a_distributed_sampler() -> None:
    sampler = GlobalBatchSampler(ROWS, BATCH, SEED, rank=1, world_size=4)
    assert isinstance(sampler, DistributedSampler)
    assert (sampler.rank, sampler.num_replicas) == (1, 4)


def test_fewer_rows_than_a_batch_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"7 rows .*train.batch_size 8"):
        GlobalBatchSampler(7, 8, SEED)


@pytest.mark.parametrize("batch_size", [8, 13, ROWS])
def test_an_epoch_that_is_not_cut_reads_every_row_once(batch_size: int) -> None:
    selections = islice(GlobalBatchSampler(ROWS, batch_size, SEED, cuts_epochs=False), 20 * ROWS // batch_size)
    read = [pair for s in selections for pair in zip(s.epochs.tolist(), s.rows.tolist(), strict=True)]
    for epoch in range(5):
        assert read[epoch * ROWS : (epoch + 1) * ROWS] != [(epoch, row) for row in range(ROWS)]
        assert sorted(read[epoch * ROWS : (epoch + 1) * ROWS]) == [(epoch, row) for row in range(ROWS)]
