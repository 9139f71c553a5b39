"""Batches: the same for any number of ranks, and read faster than a model can learn from them."""

import statistics
import time
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
import torch

from mlm_dist.config import Config, MaskingConfig
from mlm_dist.data.batches import load_batch
from mlm_dist.data.corpus import Corpus
from mlm_dist.data.masking import MaskedBatch, Masker
from mlm_dist.data.sampler import GlobalBatchSampler, Selection

CPU = torch.device("cpu")
T, BATCH, SEED = 64, 16, 1337
BERT = MaskingConfig(replacement="80/10/10")


def masker(corpus: Corpus, device: torch.device = CPU, masking: MaskingConfig = BERT) -> Masker:
    return Masker.of(Config(masking=masking), T, corpus.tokenizer, SEED, BATCH, device)


def select(*rows: int, epoch: int = 0) -> Selection:
    return Selection(0, epoch, np.array(rows), np.arange(len(rows)))


def parts(batch: MaskedBatch) -> list[torch.Tensor]:
    return [batch.inputs, batch.positions, batch.targets, batch.weights]


def batches(
    corpus: Corpus, rank: int, world_size: int, steps: int, start_step: int = 0, masking: MaskingConfig = BERT
) -> list[MaskedBatch]:
    """What one rank trains on."""
    matrix = corpus.rows("train", T)
    sampler = GlobalBatchSampler(len(matrix), BATCH, SEED, rank, world_size, start_step)
    mask = masker(corpus, masking=masking)
    return [load_batch(matrix, selection, mask, CPU) for selection in islice(sampler, steps)]


DIALS = [
    BERT,
    MaskingConfig(mask_prob={"from": 0.4, "to": 0.1}),
    MaskingConfig(mask_prob=[0.0, 1.0]),
    MaskingConfig(mask_prob=[0.1, 0.5], unit="word"),
    MaskingConfig(unit="word"),
    MaskingConfig(unit="span"),
    MaskingConfig(mask_prob=[0.1, 0.5], unit="span"),
]


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("masking", DIALS, ids=str)
@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_together_read_the_rows_and_masks_of_one_rank(
    corpus: Corpus, world_size: int, masking: MaskingConfig
) -> None:
    steps = len(corpus.rows("train", T)) // BATCH + 3  # into the second epoch
    ranks = [batches(corpus, rank, world_size, steps, masking=masking) for rank in range(world_size)]
    for alone, *shares in zip(batches(corpus, 0, 1, steps, masking=masking), *ranks, strict=True):
        for whole, *cut in zip(parts(alone), *map(parts, shares), strict=True):
            assert torch.equal(torch.stack(cut, dim=1).flatten(0, 1), whole)


@pytest.mark.parametrize("masking", DIALS, ids=str)
def test_a_run_that_is_continued_reads_what_it_would_have_read(corpus: Corpus, masking: MaskingConfig) -> None:
    all_steps, rest = batches(corpus, 0, 1, 12, masking=masking), batches(corpus, 0, 1, 5, 7, masking)
    for whole, tail in zip(all_steps[7:], rest, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(parts(whole), parts(tail), strict=True))


def test_a_batch_holds_the_rows_asked_for_in_their_order(corpus: Corpus) -> None:
    matrix = corpus.rows("train", T)
    selection = select(5, 0, len(matrix) - 1, 5)
    batch = load_batch(matrix, selection, masker(corpus), CPU)
    true = torch.from_numpy(matrix[selection.rows].astype(np.int64))
    restored = batch.inputs.clone()
    for row in range(len(true)):
        counted = batch.weights[row] == 1
        restored[row, batch.positions[row, counted]] = batch.targets[row, counted]
    assert torch.equal(restored, true)


def test_masks_are_those_of_the_rows_and_the_epoch(corpus: Corpus) -> None:
    matrix, selection, mask = corpus.rows("train", T), select(5, 0, 77, 5, epoch=3), masker(corpus)
    tokens = torch.from_numpy(matrix[selection.rows].astype(np.int64))
    expected = mask(tokens, torch.from_numpy(selection.rows), 3, torch.from_numpy(mask.rate(selection)))
    batch = load_batch(matrix, selection, mask, CPU)
    assert all(torch.equal(one, other) for one, other in zip(parts(batch), parts(expected), strict=True))


def test_reads_at_a_rate_that_no_model_outruns(corpus: Corpus, one_thread: None) -> None:
    # 20 million tokens a second and more are what one core delivers when it is left alone. The machines that run
    # these tests are shared and noisy, so the floor is a quarter of that; `pytest -s` shows the figure.
    matrix, mask = corpus.rows("train", T), Masker.of(Config(), T, corpus.tokenizer, SEED, 256, CPU)
    sampler = iter(GlobalBatchSampler(len(matrix), 256, SEED))
    seconds = []
    for _ in range(200):
        start = time.perf_counter()
        load_batch(matrix, next(sampler), mask, CPU)
        seconds.append(time.perf_counter() - start)
    rate = 256 * T / statistics.median(seconds)
    print(f"\ninput path: {rate / 1e6:.1f} million tokens a second, {256 * T / min(seconds) / 1e6:.1f} at best")
    assert rate > 5e6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("masking", DIALS, ids=str)
def test_batches_on_the_gpu_are_those_on_the_cpu(corpus: Corpus, masking: MaskingConfig) -> None:
    device = torch.device("cuda")
    matrix = corpus.rows("train", T)
    selection = select(*range(0, 3 * BATCH, 3), epoch=2)
    here = load_batch(matrix, selection, masker(corpus, CPU, masking), CPU)
    there = load_batch(matrix, selection, masker(corpus, device, masking), device)
    for one, other in zip(parts(here), parts(there), strict=True):
        assert other.device.type == "cuda"
        assert torch.equal(one, other.cpu())
