"""The inputs of a step are the same from the memory map and from the device, read now or ahead."""

import threading
from typing import Any

import numpy as np
import pytest
import torch

from mlm_dist.config import Config, MaskingConfig
from mlm_dist.data.corpus import Corpus
from mlm_dist.data.masking import Masker
from mlm_dist.data.mixture import Shares
from mlm_dist.data.rows import TrainingRows
from mlm_dist.data.sampler import GlobalBatchSampler
from mlm_dist.data.shards import StoredTokens
from mlm_dist.training import inputs
from mlm_dist.training.inputs import STEPS_AHEAD, InputReader, ReadAhead, fits_on

CPU = torch.device("cpu")
BATCH, SEED = 24, 7


def make_reader(
    corpora: list[StoredTokens], length: int, corpus: Corpus, rank: int = 0, is_shifted: bool = False, pieces: int = 1
) -> InputReader:
    config = Config(masking=MaskingConfig(mask_prob_range=[0.0, 1.0]))
    masker = Masker.from_config(config, length // pieces, corpus.tokenizer, SEED, BATCH * pieces, CPU)
    rows = TrainingRows(corpora, length, SEED, is_shifted)
    shares = Shares([1.0] * len(corpora), BATCH, SEED) if len(corpora) > 1 else None
    cuts_epochs = not is_shifted and shares is None
    sampler = GlobalBatchSampler(rows.counts, BATCH, SEED, rank, 2, cuts_epochs=cuts_epochs, shares=shares)
    reader = InputReader(rows, sampler, CPU)
    reader.begin(masker)
    return reader


@pytest.mark.parametrize("is_shifted", [False, True])
@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
@pytest.mark.parametrize("length", [1, 15, 16])
@pytest.mark.parametrize("on_device", [False, True])
def test_batches_are_those_of_the_corpus(
    on_device: bool, length: int, dtype: str, is_shifted: bool, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "fits_on", lambda *_: on_device)
    monkeypatch.setattr(inputs, "UPLOAD_BYTES", 1000)  # in many parts
    tokens: Any = np.asarray(corpus.train).astype(dtype)
    tokens[::20] = corpus.tokenizer.end_id  # never masked
    tokens[1::40] += np.array(1 << 8 * tokens.itemsize - 1, dtype=dtype)  # ids with the highest bit
    reader = make_reader([tokens], length, corpus, rank=1, is_shifted=is_shifted)
    for step in (0, 1, len(reader.sampler), 1000):
        read = reader.read(step, 0.25 * step)
        assert len(read.tokens.flatten()) == (0 if on_device else BATCH // 2 * length)
        selection = reader.sampler.select(step)
        expected = reader.masker(torch.from_numpy(reader.rows.read(selection).astype(np.int64)), selection)
        for name, value in vars(reader.batch(read.to(CPU))).items():
            assert name == "documents" or torch.equal(value, getattr(expected, name)), name
        assert read.lr == 0.25 * step


@pytest.mark.parametrize("is_shifted", [False, True])
@pytest.mark.parametrize("on_device", [False, True])
def test_rows_are_cut_into_pieces_which_the_ranks_read_in_turn(
    on_device: bool, is_shifted: bool, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "fits_on", lambda *_: on_device)
    whole, *ranks = (
        make_reader([corpus.train], 16, corpus, rank, is_shifted, pieces) for rank, pieces in [(0, 1), (0, 4), (1, 4)]
    )
    for step in (0, 3, len(whole.sampler)):
        first, second = (reader.batch(reader.read(step, 0.0).to(CPU)) for reader in ranks)
        assert first.inputs.shape == (4 * BATCH // 2, 4)
        for reader, batch in zip(ranks, (first, second), strict=True):
            rows = torch.from_numpy(reader.rows.read(reader.sampler.select(step)).astype(np.int64))
            tokens = batch.inputs.scatter(1, batch.positions, batch.targets)
            expected = rows.view(-1, 4, 4).swapaxes(0, 1).reshape(-1, 4)
            assert torch.equal(tokens[:, 1:], expected[:, 1:])  # unused slots have position 0
        pieces = ranks[0].sampler.select(step).pieces(4, BATCH)
        assert sorted(pieces.batch_indices) == list(range(0, 4 * BATCH, 2))
        assert len({*pieces.rows}) == len(pieces.rows)


def test_the_rows_of_several_corpora_are_read_by_the_host(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "fits_on", lambda *_: True)
    reader = make_reader([corpus.train, corpus.val], 16, corpus)
    assert reader.on_device is None
    selection = reader.sampler.select(3)
    assert set(selection.corpora.tolist()) == {0, 1}
    assert torch.equal(reader.read(3, 0.0).tokens, torch.from_numpy(reader.rows.read(selection).astype(np.int16)))


def test_corpora_in_16_and_in_32_bits_are_read_together(corpus: Corpus) -> None:
    reader = make_reader([corpus.train, np.array(corpus.val).astype("<u4") + 70_000], 16, corpus)
    selection = reader.sampler.select(3)
    stored, large = reader.read(3, 0.0), torch.from_numpy(selection.corpora == 1)
    assert torch.equal(stored.tokens, torch.from_numpy(reader.rows.read(selection).astype(np.int32)))
    assert (stored.tokens[large] >= 70_000).all() and (stored.tokens[~large] < 300).all()
    assert torch.equal(reader.batch(stored).targets >= 70_000, large[:, None].expand(-1, 16))


def test_a_thread_reads_the_next_steps_in_order_and_each_once(corpus: Corpus) -> None:
    reader = make_reader([corpus.train], 16, corpus)
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
        return inputs.StepInputs.in_buffer(torch.zeros(28, dtype=torch.uint8), 1, torch.int16)

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
