"""Measurements without a training step."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mlm_dist.benchmarks.candidate import MlmDist, Peer
from mlm_dist.benchmarks.parts import encoding_rates, is_random, matrix_ceiling, random_corpus, texts_of
from mlm_dist.benchmarks.suite import open_corpora
from mlm_dist.config import Config, DataConfig, MaskingConfig, ModelConfig, Part, TrainConfig
from mlm_dist.data.corpus import Corpus


def small(**model: Any) -> Config:
    shape = ModelConfig(vocab_size=3000, block_size=16, embedding_dim=32, heads=2, blocks=3)
    shape = dataclasses.replace(shape, **model)
    return Config(model=shape, masking=MaskingConfig(mask_prob=0.25), train=TrainConfig(batch_size=12))


@pytest.mark.slow
def test_the_matrix_ceiling_is_between_1_gflops_and_1_pflops() -> None:
    ceiling = matrix_ceiling(torch.device("cpu"), torch.float32, rounds=1)
    assert 1e9 < ceiling < 1e15


def test_without_texts_the_corpus_consists_of_random_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config, [corpus] = open_corpora(small(), tmp_path)
    assert is_random(corpus)
    assert Path(config.data.paths) == corpus.folder
    assert len(corpus.rows("train", 16)) >= 12
    assert np.asarray(corpus.train[:-1]).max() < corpus.tokenizer.end_id
    assert "Ferry" in texts_of(corpus)[0]


def test_the_corpus_of_the_config_is_used(corpus: Corpus, tmp_path: Path) -> None:
    config = small()
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=str(corpus.folder)))
    _, [opened] = open_corpora(config, tmp_path)
    assert opened.folder == corpus.folder
    assert not is_random(opened)
    assert "".join(texts_of(opened)).startswith("The Keeper of Hollin")


def test_the_candidates_read_the_rows_of_a_mixture(corpus: Corpus, paragraphs: Path, tmp_path: Path) -> None:
    parts = [Part(path=str(corpus.folder), weight=3), Part(path=str(paragraphs), weight=1)]
    config = dataclasses.replace(small(), data=DataConfig(path=parts), device="cpu")
    config, corpora = open_corpora(config, tmp_path)
    assert [opened.folder for opened in corpora] == [corpus.folder, paragraphs]
    peer, own = Peer("naive", config, corpora), MlmDist(config, corpora, tmp_path / "own")
    selection = own.trainer.sampler.select(0)
    assert sorted(selection.corpora.tolist()) == [0] * 9 + [1] * 3
    np.testing.assert_equal(next(peer.selections)._asdict(), selection._asdict())
    expected = torch.from_numpy(peer.rows.read(selection).astype(np.int16))
    assert torch.equal(own.trainer.eager_step.reader.read(0, 0.0).tokens, expected)
    for candidate in (peer, own):
        candidate.step()


def test_a_null_vocabulary_size_becomes_that_of_the_corpus_or_of_gpt2_without_a_corpus(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = Config(train=TrainConfig(batch_size=12))
    assert open_corpora(config, tmp_path)[0].model.vocab_size == 50258
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=str(corpus.folder)))
    assert open_corpora(config, tmp_path)[0].model.vocab_size == 300


def test_a_random_corpus_contains_at_least_one_batch(tmp_path: Path) -> None:
    config = dataclasses.replace(small(), train=TrainConfig(batch_size=1000))
    random_corpus(tmp_path / "random", config)
    assert len(Corpus.open(tmp_path / "random").rows("train", 16)) >= 1000


def test_encoding_rates_are_in_bytes_per_second(corpus: Corpus) -> None:
    rates = encoding_rates(corpus, rounds=1)
    assert rates.keys() == {"prepare", "tiktoken"}
    assert all(1e4 < rate < 1e9 for rate in rates.values())
