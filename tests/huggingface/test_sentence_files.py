"""Stock sentence-transformers returns the vectors of `embed`."""

from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

import mlm_dist
from mlm_dist.config import ModelConfig
from mlm_dist.data.corpus import Corpus
from mlm_dist.huggingface.export import export_model
from mlm_dist.huggingface.importing import read_exported
from mlm_dist.inference.model import TrainedModel
from tests.huggingface.conftest import make_run, random_encoder, run_last_example

pytestmark = pytest.mark.slow

SHORT = ["The lamp went out.", "x", "Ned", "", "Aunt Zoë", "Nobody saw it.", "the harbour", "He"]
LONG = "Nobody saw the ferry come in under the harbour wall, and nobody heard it."


@pytest.fixture(scope="module")
def model(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    encoder = random_encoder(ModelConfig(vocab_size=300, block_size=16, embedding_dim=16, heads=2, blocks=2))
    return make_run(tmp_path_factory.mktemp("random") / "run", encoder.config, corpus.tokenizer, encoder)


@pytest.fixture(scope="module")
def sentences(model: TrainedModel, tmp_path_factory: pytest.TempPathFactory) -> SentenceTransformer:
    folder = tmp_path_factory.mktemp("sentences") / "out"
    export_model(model, folder, ["sentence_transformers"])
    return SentenceTransformer(str(folder), device="cpu")


@pytest.mark.parametrize("batch_size", [2, 32])
@pytest.mark.parametrize("normalize", [False, True])
def test_encode_returns_the_vectors_of_embed(
    model: TrainedModel, sentences: SentenceTransformer, batch_size: int, normalize: bool
) -> None:
    assert len({len(model.tokenizer.encode(text)) for text in SHORT}) > 4  # so that batches are padded
    vectors = sentences.encode(SHORT, batch_size=batch_size, normalize_embeddings=normalize)
    expected = model.embed(SHORT, normalize=normalize)
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-4)
    assert np.abs(expected).max() > 0.1


def test_a_longer_text_is_truncated_to_the_block(model: TrainedModel, sentences: SentenceTransformer) -> None:
    assert sentences.max_seq_length == 16
    first = model.tokenizer.decode(model.tokenizer.encode(LONG)[:16].tolist())
    vectors = sentences.encode([LONG, "x"])
    np.testing.assert_allclose(vectors[0], model.embed([first])[0], rtol=0, atol=1e-4)
    assert np.abs(vectors[0] - model.embed([LONG])[0]).max() > 0.01


def test_no_parameter_is_initialized_anew(sentences: SentenceTransformer) -> None:
    assert not any("pooler" in name for name, _ in sentences.named_parameters())


def test_a_folder_that_sentence_transformers_saved_can_be_read_back(
    model: TrainedModel, sentences: SentenceTransformer, tmp_path: Path
) -> None:
    sentences.save(str(tmp_path / "saved"))
    restored = read_exported(tmp_path / "saved").parameters
    for name, parameter in model.encoder.state_dict().items():
        if name.startswith("blocks."):
            assert restored[name].equal(parameter), name


def test_the_example_on_the_model_card_runs(run_dir: Path, tmp_path: Path) -> None:
    export_model(mlm_dist.load(run_dir, "cpu"), tmp_path / "tiny", ["sentence_transformers"])
    assert run_last_example(tmp_path / "tiny") == "(2, 16)\n"
