"""Each corpus of a mixture has its share of the rows, whatever the number of ranks and the step."""

from dataclasses import replace
from itertools import islice, pairwise

import numpy as np
import pytest
import torch

from mlm_dist.config import Config
from mlm_dist.data.bpe_extension import extend_bpe
from mlm_dist.data.corpus import Corpus
from mlm_dist.data.masking import MaskedBatch, Masker
from mlm_dist.data.mixture import Shares, join_corpora
from mlm_dist.data.rows import TrainingRows
from mlm_dist.data.sampler import GlobalBatchSampler, Selection

SEED, T = 3, 16
COUNTS, WEIGHTS = [70, 31, 500], [3.0, 1.5, 2.0]


def corpora_of(weights: list[float], batch_size: int, steps: int, start: int = 0, seed: int = SEED) -> np.ndarray:
    """The corpus of each row of some steps, (steps, B)."""
    numbers = np.arange(start * batch_size, (start + steps) * batch_size)
    return Shares(weights, batch_size, seed)(numbers)[0].reshape(steps, batch_size)


@pytest.mark.parametrize("weights", [[1.0, 1.0], [3.0, 1.0], [1.0] * 7, [0.7, 0.2, 0.05, 0.05], [1e6, 1.0], [2.0]])
@pytest.mark.parametrize("batch_size", [1, 7, 64, 256])
def test_any_1000_steps_have_the_shares_to_a_row(weights: list[float], batch_size: int) -> None:
    corpora = corpora_of(weights, batch_size, 2200)
    exact = np.array(weights) / sum(weights) * 1000 * batch_size
    for corpus, share in enumerate(exact):
        total = np.append(0, np.cumsum((corpora == corpus).sum(1)))
        windows = total[1000:] - total[:-1000]
        assert np.abs(windows - share).max() < 1


def test_every_step_has_nearly_the_shares() -> None:
    corpora = corpora_of([3.0, 1.0], 256, 1000)
    assert np.abs((corpora == 1).sum(1) - 64).max() <= 4


def test_the_rows_of_a_corpus_are_numbered_without_a_gap() -> None:
    corpora, numbers = Shares(WEIGHTS, 8, SEED)(np.arange(3 * 8000))
    for corpus in range(3):
        assert sorted(numbers[corpora == corpus]) == list(range((corpora == corpus).sum()))


def test_seeds_give_other_orders_and_the_order_of_a_seed_never_changes() -> None:
    # A checkpoint stores only the step. If the order changes, a resumed run reads other rows.
    assert corpora_of([3.0, 1.0], 8, 2).tolist() == [[0, 0, 0, 0, 1, 0, 0, 1], [0, 0, 0, 0, 1, 0, 0, 1]]
    assert (corpora_of([3.0, 1.0], 8, 100, seed=4) != corpora_of([3.0, 1.0], 8, 100)).any()


def sampler(rank: int = 0, world_size: int = 1, start_step: int = 0, batch_size: int = 8) -> GlobalBatchSampler:
    shares = Shares(WEIGHTS, batch_size, SEED)
    return GlobalBatchSampler(COUNTS, batch_size, SEED, rank, world_size, start_step, cuts_epochs=False, shares=shares)


def test_each_corpus_has_its_own_epochs_that_read_every_row_once() -> None:
    selections = list(islice(sampler(), 3000))
    corpora, epochs, rows = (
        np.concatenate([getattr(selection, name) for selection in selections]) for name in ("corpora", "epochs", "rows")
    )
    for corpus, count in enumerate(COUNTS):
        for epoch in range(8):
            read = rows[(corpora == corpus) & (epochs == epoch)]
            assert sorted(read) == list(range(count))
    orders = [rows[(corpora == 0) & (epochs == epoch)].tolist() for epoch in range(3)]
    assert all(one != other for one, other in pairwise(orders))


@pytest.mark.parametrize("world_size", [2, 4])
def test_a_step_reads_the_same_rows_with_any_number_of_ranks(world_size: int) -> None:
    ranks = [islice(sampler(rank, world_size), 50) for rank in range(world_size)]
    for alone, *parts in zip(islice(sampler(), 50), *ranks, strict=True):
        for name in ("corpora", "epochs", "rows", "batch_indices"):
            together = np.stack([getattr(part, name) for part in parts], axis=1).ravel()
            assert np.array_equal(together, getattr(alone, name)), name


def test_a_later_start_step_gives_the_remaining_steps() -> None:
    for expected, found in zip(islice(sampler(), 1200, 1230), islice(sampler(start_step=1200), 30), strict=True):
        assert all(map(np.array_equal, expected[1:], found[1:]))
        assert expected.step == found.step


@pytest.mark.parametrize("is_shifted", [False, True])
def test_rows_are_those_of_their_corpora(is_shifted: bool) -> None:
    tokens = [np.arange(count * T, dtype=np.uint32) + 100_000 * corpus for corpus, count in enumerate(COUNTS)]
    rows = TrainingRows(tokens, T, SEED, is_shifted)
    assert rows.counts == COUNTS
    selection = sampler().select(70)
    assert len(set(selection.corpora.tolist())) > 1
    read = rows.read(selection)
    assert (read // 100_000 == selection.corpora[:, None]).all()
    alone = [TrainingRows([part], T, SEED, is_shifted) for part in tokens]
    for index, corpus in enumerate(selection.corpora.tolist()):
        here = slice(index, index + 1)
        same = Selection.of_epoch(70, int(selection.epochs[index]), selection.rows[here], selection.batch_indices[here])
        assert np.array_equal(read[here], alone[corpus].read(same))


def test_the_masks_of_the_same_row_of_two_corpora_differ(corpus: Corpus) -> None:
    masker = Masker.from_config(Config(), T, corpus.tokenizer, SEED, 8, torch.device("cpu"))
    rows, tokens = np.arange(8), np.ascontiguousarray(corpus.train[: 8 * T].reshape(8, T))

    def masked(of_corpus: int) -> MaskedBatch:
        return masker(
            torch.from_numpy(tokens.astype(np.int64)),
            Selection(0, np.zeros(8, dtype=np.int64), rows, rows, np.full(8, of_corpus)),
        )

    first, again, second = masked(0), masked(0), masked(1)
    assert (first.digest() == again.digest()).all()
    assert first.digest() != second.digest()


@pytest.mark.parametrize("others", [0, 1, 2])
@pytest.mark.parametrize("order", [1, -1])
def test_the_corpora_of_a_run_have_the_tokenizer_that_extends_the_others(
    order: int, others: int, corpus: Corpus
) -> None:
    extended = replace(corpus, tokenizer=extend_bpe(corpus.tokenizer, ["Once more and once more"], 5))
    joined = join_corpora([extended, *[corpus] * others][::order], T)
    assert [each.tokenizer.vocab_size for each in joined] == [305] * (others + 1)
    assert all(each.train is corpus.train for each in joined)
