"""Shifted rows cut each epoch at other places and read every token; rows without a shift are those of the corpus."""

from itertools import islice
from typing import Any

import numpy as np
import pytest

from mlm_dist.data.corpus import Corpus
from mlm_dist.data.rows import TrainingRows
from mlm_dist.data.sampler import GlobalBatchSampler, Selection

T, BATCH, SEED = 16, 8, 5
TOKENS = np.arange(1000, dtype=np.uint16)  # 62 rows and a half


def epoch_of(rows: TrainingRows, epoch: int, seed: int = SEED) -> np.ndarray:
    """All rows of an epoch in the order of training, (rows, T)."""
    sampler = GlobalBatchSampler(rows.counts[0], BATCH, seed, cuts_epochs=not rows.is_shifted)
    selections = list(islice(sampler, (epoch + 2) * rows.counts[0] // BATCH))
    is_in_epoch = np.concatenate([selection.epochs for selection in selections]) == epoch
    found: np.ndarray = np.concatenate([rows.read(selection) for selection in selections])[is_in_epoch]
    return found


def test_rows_without_a_shift_are_those_of_the_corpus(corpus: Corpus) -> None:
    rows, matrix = TrainingRows([corpus.train], T, SEED, is_shifted=False), corpus.rows("train", T)
    assert rows.counts[0] == len(matrix)
    for epoch in range(2):
        every = np.arange(rows.counts[0])
        read = rows.read(Selection.of_epoch(0, epoch, every, every))
        assert np.array_equal(read, matrix[every])
        assert read.dtype == corpus.train.dtype


@pytest.mark.parametrize("epoch", range(5))
def test_an_epoch_of_shifted_rows_reads_every_token_once_but_for_less_than_a_row(epoch: int) -> None:
    read = epoch_of(TrainingRows([TOKENS], T, SEED, is_shifted=True), epoch)
    seen = np.bincount(read.ravel(), minlength=len(TOKENS))
    assert seen.max() == 1
    assert (seen == 0).sum() < T
    assert ((np.diff(read, axis=1) == 1) | (read[:, 1:] == 0)).all()  # the first token follows the last one


@pytest.mark.parametrize("seed", range(3))
def test_no_two_epochs_cut_at_the_same_places(seed: int) -> None:
    rows = TrainingRows([TOKENS], T, seed, is_shifted=True)
    starts = [set(epoch_of(rows, epoch, seed)[:, 0].tolist()) for epoch in range(T)]
    assert not any(one & other for i, one in enumerate(starts) for other in starts[:i])


def test_no_token_is_always_at_the_edge_of_a_row_or_never_read() -> None:
    rows = TrainingRows([TOKENS], T, SEED, is_shifted=True)
    columns: dict[int, set[int]] = {}
    for epoch in range(3):
        for row in epoch_of(rows, epoch):
            for column, token in enumerate(row.tolist()):
                columns.setdefault(token, set()).add(column)
    assert columns.keys() == set(TOKENS.tolist())
    assert all(columns[token] - {0, T - 1} for token in columns)


def test_the_shifts_of_a_seed_never_change() -> None:
    # A checkpoint stores only the step. If the shifts change, a resumed run reads other rows.
    assert TrainingRows([TOKENS], T, SEED, is_shifted=True).shifts(np.arange(4)).tolist() == [14, 15, 4, 13]


@pytest.mark.parametrize("order", [1, -1])
def test_rows_of_corpora_in_16_and_in_32_bits_are_read_without_loss(order: int) -> None:
    large = TOKENS.astype(np.uint32) + 70_000
    corpora: list[Any] = [TOKENS, large][::order]
    rows = TrainingRows(corpora, T, SEED, is_shifted=False)
    numbers = np.arange(4)
    read = rows.read(Selection(0, numbers * 0, numbers, numbers, np.array([0, 1, 1, 0])))
    assert read.dtype == rows.dtype == np.uint32
    assert read[:, 0].tolist() == [corpora[corpus][row * T] for row, corpus in enumerate([0, 1, 1, 0])]


@pytest.mark.parametrize("world_size", [2, 4])
def test_all_ranks_together_read_the_shifted_rows_of_a_single_rank(world_size: int) -> None:
    rows = TrainingRows([TOKENS], T, SEED, is_shifted=True)

    def read(rank: int, world_size: int) -> list[Any]:
        sampler = GlobalBatchSampler(rows.counts[0], BATCH, SEED, rank, world_size, cuts_epochs=False)
        return [rows.read(selection) for selection in islice(sampler, 20)]

    ranks = [read(rank, world_size) for rank in range(world_size)]
    for alone, *parts in zip(read(0, 1), *ranks, strict=True):
        assert np.array_equal(np.stack(parts, axis=1).reshape(BATCH, T), alone)
