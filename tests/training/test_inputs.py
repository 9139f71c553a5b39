"""The inputs of a step are the same from the memory map and from the device, read now or ahead."""

import threading
from typing import Any

import numpy as np
import pytest
import torch

from mlm_dist.config import Config, MaskingConfig
from mlm_dist.data.corpus import Corpus, Tokens
from mlm_dist.data.masking import Masker, load_batch
from mlm_dist.data.sampler import GlobalBatchSampler
from mlm_dist.training import inputs
from mlm_dist.training.inputs import STEPS_AHEAD, InputReader, ReadAhead, fits_on

CPU = torch.device("cpu")
BATCH, SEED = 24, 7


def make_reader(matrix: Tokens, corpus: Corpus, rank: int = 0) -> InputReader:
    config = Config(masking=MaskingConfig(mask_prob_range=[0.0, 1.0]))
    masker = Masker.from_config(config, matrix.shape[1], corpus.tokenizer, SEED, BATCH, CPU)
    return InputReader(matrix, GlobalBatchSampler(len(matrix), BATCH, SEED, rank, world_size=2), masker)


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
@pytest.mark.parametrize("length", [1, 15, 16])
@pytest.mark.parametrize("on_device", [False, True])
def test_batches_are_those_of_the_corpus(
    on_device: bool, length: int, dtype: str, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "fits_on", lambda *_: on_device)
    monkeypatch.setattr(inputs, "UPLOAD_BYTES", 1000)  # in many parts
    matrix: Any = corpus.rows("train", length).astype(dtype)
    matrix[::2, 0] = corpus.tokenizer.end_id  # never masked
    matrix[1::4, -1] += np.array(1 << 8 * matrix.itemsize - 1, dtype=dtype)  # ids with the highest bit
    reader = make_reader(matrix, corpus, rank=1)
    for step in (0, 1, len(reader.sampler), 1000):
        read = reader.read(step, 0.25 * step)
        assert len(read.tokens.flatten()) == (0 if on_device else BATCH // 2 * length)
        expected = load_batch(matrix, reader.sampler.select(step), reader.masker)
        for name, value in vars(reader.batch(read.to(CPU))).items():
            assert torch.equal(value, getattr(expected, name)), name
        assert read.lr == 0.25 * step


def test_a_thread_reads_the_next_steps_in_order_and_each_once(corpus: Corpus) -> None:
    reader = make_reader(corpus.rows("train", 16), corpus)
    calls: list[tuple[int, str]] = []

    def read(step: int) -> inputs.StepInputs:
        calls.append((step, threading.current_thread().name))
        return reader._read_now(step)

    ahead = ReadAhead(read)
    for step in (5, 6, 7, 20, 21):
        assert torch.equal(ahead(step).tokens, reader.read(step, 0.0).tokens)
    for pending in ahead._pending.values():
        pending.result()
    assert [step for step, _ in calls] == [*range(5, 8 + STEPS_AHEAD), *range(20, 22 + STEPS_AHEAD)]
    assert {name for _, name in calls} == {"rows_0"}


def test_an_error_while_reading_ahead_is_raised_by_its_own_step() -> None:
    def read(step: int) -> inputs.StepInputs:
        if step == 2:
            raise OSError("a disk that is gone")
        return inputs.StepInputs.in_buffer(torch.zeros(20, dtype=torch.uint8), 1, torch.int16)

    ahead = ReadAhead(read)
    ahead(0)
    ahead(1)
    with pytest.raises(OSError, match="gone"):
        ahead(2)


def test_a_corpus_that_takes_a_tenth_of_the_free_memory_is_copied_to_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 5000))
    assert fits_on(torch.device("cuda"), 100)
    assert not fits_on(torch.device("cuda"), 101)
    assert not fits_on(CPU, 1)
