"""Batches are the same for any number of ranks and are read without a loop over rows."""

from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mlm_dist.config import Config, MaskingConfig
from mlm_dist.data.corpus import Corpus
from mlm_dist.data.masking import MaskedBatch, Masker, load_batch
from mlm_dist.data.sampler import GlobalBatchSampler, Selection
from mlm_dist.data.shards import StoredRows, Tokens

CPU = torch.device("cpu")
T, BATCH, SEED = 64, 16, 1337
BERT = MaskingConfig(replacement="80/10/10")


def masker(corpus: Corpus, device: torch.device = CPU, masking: MaskingConfig = BERT) -> Masker:
    return Masker.from_config(Config(masking=masking), T, corpus.tokenizer, SEED, BATCH, device)


def select(*rows: int, epoch: int = 0) -> Selection:
    return Selection.of_epoch(0, epoch, np.array(rows), np.arange(len(rows)))


def parts(batch: MaskedBatch) -> list[torch.Tensor]:
    return [batch.inputs, batch.positions, batch.targets, batch.loss_weights]


def batches(
    corpus: Corpus, rank: int, world_size: int, steps: int, start_step: int = 0, masking: MaskingConfig = BERT
) -> list[MaskedBatch]:
    """The batches of one rank."""
    matrix = corpus.rows("train", T)
    sampler = GlobalBatchSampler(len(matrix), BATCH, SEED, rank, world_size, start_step)
    mask = masker(corpus, masking=masking)
    return [load_batch(matrix, selection, mask) for selection in islice(sampler, steps)]


MASKINGS = [
    BERT,
    MaskingConfig(mask_prob=0.4, mask_prob_end=0.1),
    MaskingConfig(mask_prob_range=[0.0, 1.0]),
    MaskingConfig(mask_prob_range=[0.1, 0.5], unit="word"),
    MaskingConfig(unit="word"),
    MaskingConfig(unit="span"),
    MaskingConfig(mask_prob_range=[0.1, 0.5], unit="span"),
]


class Operations(TorchDispatchMode):
    """Counts the torch operations in a `with` block."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


class ReadMatrix:
    """Rows that count how often they are read."""

    def __init__(self, rows: StoredRows) -> None:
        self.rows = rows
        self.reads = 0

    def __getitem__(self, indices: Any) -> Tokens:
        self.reads += 1
        selected: Tokens = self.rows[indices]
        return selected


@pytest.mark.parametrize("masking", MASKINGS, ids=str)
@pytest.mark.parametrize("world_size", [2, 4])
def test_all_ranks_together_read_the_rows_and_masks_of_a_single_rank(
    corpus: Corpus, world_size: int, masking: MaskingConfig
) -> None:
    steps = len(corpus.rows("train", T)) // BATCH + 3  # into the second epoch
    ranks = [batches(corpus, rank, world_size, steps, masking=masking) for rank in range(world_size)]
    for alone, *local in zip(batches(corpus, 0, 1, steps, masking=masking), *ranks, strict=True):
        for whole, *shards in zip(parts(alone), *map(parts, local), strict=True):
            assert torch.equal(torch.stack(shards, dim=1).flatten(0, 1), whole)


@pytest.mark.parametrize("masking", MASKINGS, ids=str)
def test_a_resumed_run_reads_the_same_batches_as_an_uninterrupted_one(corpus: Corpus, masking: MaskingConfig) -> None:
    uninterrupted, resumed = batches(corpus, 0, 1, 12, masking=masking), batches(corpus, 0, 1, 5, 7, masking)
    for expected, found in zip(uninterrupted[7:], resumed, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(parts(expected), parts(found), strict=True))


def test_a_batch_contains_the_selected_rows_in_order(corpus: Corpus) -> None:
    matrix = corpus.rows("train", T)
    selection = select(5, 0, len(matrix) - 1, 5)
    batch = load_batch(matrix, selection, masker(corpus))
    true = torch.from_numpy(matrix[selection.rows].astype(np.int64))
    restored = batch.inputs.clone()
    for row in range(len(true)):
        counted = batch.loss_weights[row] == 1
        restored[row, batch.positions[row, counted]] = batch.targets[row, counted]
    assert torch.equal(restored, true)


def test_masks_depend_only_on_the_rows_and_the_epoch(corpus: Corpus) -> None:
    matrix, selection, mask = corpus.rows("train", T), select(5, 0, 77, 5, epoch=3), masker(corpus)
    tokens = torch.from_numpy(matrix[selection.rows].astype(np.int64))
    expected = mask(tokens, Selection.of_epoch(7, 3, selection.rows, selection.batch_indices[::-1]))
    batch = load_batch(matrix, selection, mask)
    assert all(torch.equal(one, other) for one, other in zip(parts(batch), parts(expected), strict=True))


@pytest.mark.parametrize("masking", MASKINGS, ids=str)
def test_a_large_batch_takes_no_more_reads_and_operations_than_a_small_one(
    corpus: Corpus, masking: MaskingConfig
) -> None:
    # A loop over rows would make the input pipeline slower than the model. `benchmark` measures its speed.
    rows, mask = corpus.rows("train", T), masker(corpus, masking=masking)
    mask.rate.strata = np.arange(256)
    counts = []
    for size in (2, 256):
        matrix = ReadMatrix(rows)
        with Operations() as operations:
            load_batch(matrix, select(*np.arange(size) % len(rows)), mask)  # type: ignore[arg-type]
        counts.append((matrix.reads, operations.count))
    assert counts[0] == counts[1] == (1, counts[1][1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("masking", MASKINGS, ids=str)
def test_batches_on_the_gpu_equal_those_on_the_cpu(corpus: Corpus, masking: MaskingConfig) -> None:
    device = torch.device("cuda")
    matrix = corpus.rows("train", T)
    selection = select(*range(0, 3 * BATCH, 3), epoch=2)
    here = load_batch(matrix, selection, masker(corpus, CPU, masking))
    there = load_batch(matrix, selection, masker(corpus, device, masking))
    for one, other in zip(parts(here), parts(there), strict=True):
        assert other.device.type == "cuda"
        assert torch.equal(one, other.cpu())
