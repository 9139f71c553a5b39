"""transformers computes the same logits with the exported parameters, and none are missing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, MegatronBertForMaskedLM

import mlm_dist
from mlm_dist.config import ModelConfig
from mlm_dist.data.corpus import Corpus
from mlm_dist.data.preparation import SAMPLE_TEXT
from mlm_dist.huggingface.export import export_model
from mlm_dist.huggingface.megatron_bert import identity_offset
from mlm_dist.inference.embedding import states_after
from mlm_dist.inference.model import TrainedModel
from mlm_dist.model.encoder import Block, Encoder
from tests.conftest import tiny_flags, verb
from tests.huggingface.conftest import make_run, random_encoder

SMALL = ModelConfig(vocab_size=300, block_size=16, embedding_dim=16, heads=2, blocks=2)


def load(folder: Path) -> MegatronBertForMaskedLM:
    """Load an exported folder with transformers. No parameter is missing or unexpected."""
    converted, report = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    assert isinstance(converted, MegatronBertForMaskedLM)
    assert not converted.training
    return converted


@torch.no_grad()
def check_logits(model: TrainedModel, converted: MegatronBertForMaskedLM) -> None:
    """Check that the logits differ by less than 1e-4 of their standard deviation."""
    shape = model.config.model
    assert shape.vocab_size is not None
    tokens = torch.randint(0, shape.vocab_size, (8, shape.block_size), generator=torch.Generator().manual_seed(0))
    tokens[0, :2] = torch.tensor([model.tokenizer.end_id, model.tokenizer.mask_id])
    expected, logits = model.encoder(tokens), converted(tokens).logits
    difference = ((logits - expected).abs().max() / expected.std()).item()
    print(f"\nlargest difference of two logits: {difference:.1e} of their standard deviation")
    assert difference < 1e-4


def check_tying(converted: MegatronBertForMaskedLM, tied: bool) -> None:
    assert converted.config.tie_word_embeddings == tied
    decoder = converted.get_output_embeddings()
    assert (decoder.weight is converted.get_input_embeddings().weight) == tied
    assert torch.equal(decoder.bias, converted.cls.predictions.bias)


def test_an_exported_model_has_the_same_logits(run_dir: Path, exported: Path) -> None:
    converted = load(exported)
    check_logits(mlm_dist.load(run_dir, "cpu"), converted)
    check_tying(converted, tied=True)


def test_an_exported_model_with_untied_embeddings_has_the_same_logits(corpus_folder: Path, tmp_path: Path) -> None:
    result = verb("train", *tiny_flags(corpus_folder, tmp_path / "run", model__tie_embeddings=False))
    assert result.returncode == 0, result.stderr
    model = mlm_dist.load(tmp_path / "run", "cpu")
    export_model(model, tmp_path / "out")
    converted = load(tmp_path / "out")
    check_logits(model, converted)
    check_tying(converted, tied=False)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "shape",
    [
        ModelConfig(vocab_size=50258),  # as in configs/novels.yaml with GPT-2's tokenizer
        replace(SMALL, vocab_size=310),  # larger than the tokenizer's
        replace(SMALL, dropout=0.5),
        replace(SMALL, heads=16),
        replace(SMALL, activation="gelu"),
        replace(SMALL, embedding_dim=50, blocks=1),
    ],
    ids=["novels", "large vocabulary", "dropout", "many heads", "gelu", "odd width"],
)
def test_a_freshly_initialized_model_has_the_same_logits(
    shape: ModelConfig, tied: bool, corpus: Corpus, tmp_path: Path
) -> None:
    model = make_run(tmp_path / "run", replace(shape, tie_embeddings=tied), corpus.tokenizer)
    export_model(model, tmp_path / "out")
    converted = load(tmp_path / "out")
    check_logits(model, converted)
    check_tying(converted, tied)


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": False}, {"activation": "gelu"}], ids=str)
def test_every_parameter_gets_the_right_name(changes: dict[str, Any], corpus: Corpus, tmp_path: Path) -> None:
    """Initial biases are all 0 and initial norms all 1, so a mix-up would go unnoticed. Here, all values differ."""
    encoder = random_encoder(replace(SMALL, **changes))
    model = make_run(tmp_path / "run", encoder.config, corpus.tokenizer, encoder)
    export_model(model, tmp_path / "out")
    check_logits(model, load(tmp_path / "out"))


def test_an_embedding_is_the_mean_of_the_states_of_auto_model(corpus: Corpus, tmp_path: Path) -> None:
    encoder = random_encoder(SMALL)
    model = make_run(tmp_path / "run", encoder.config, corpus.tokenizer, encoder)
    export_model(model, tmp_path / "out")
    tokenizer, converted = AutoTokenizer.from_pretrained(tmp_path / "out"), AutoModel.from_pretrained(tmp_path / "out")
    texts = ["The lamp went out.", "x", "Nobody saw it come in under the harbour wall."]
    texts.append(SAMPLE_TEXT.read_text(encoding="utf-8")[:300])
    for text, vector in zip(texts, model.embed(texts), strict=True):
        ids = torch.tensor(tokenizer(text)["input_ids"])
        with torch.no_grad():
            states = torch.cat([converted(block[None]).last_hidden_state[0] for block in ids.split(16)])
        difference = (torch.from_numpy(vector) - states.mean(0)).abs().max().item()
        print(f"\nlargest difference of two entries: {difference:.1e}")
        assert difference < 1e-5


@torch.no_grad()
def test_the_states_of_each_layer_are_the_hidden_states_of_auto_model(corpus: Corpus, tmp_path: Path) -> None:
    encoder = random_encoder(replace(SMALL, blocks=3))
    export_model(make_run(tmp_path / "run", encoder.config, corpus.tokenizer, encoder), tmp_path / "out")
    tokens = torch.randint(300, (4, 16), generator=torch.Generator().manual_seed(0))
    converted = AutoModel.from_pretrained(tmp_path / "out")
    expected = converted(tokens, output_hidden_states=True).hidden_states
    assert len(expected) == 4
    for layer, states in enumerate(expected):
        torch.testing.assert_close(states_after(encoder, tokens, layer), states, rtol=1e-4, atol=1e-4)
    assert not any(block._forward_pre_hooks for block in encoder.blocks)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_the_most_extreme_entry_passes_the_activation(activation: Any, corpus: Corpus, tmp_path: Path) -> None:
    encoder = Encoder(replace(SMALL, activation=activation))
    with torch.no_grad():
        for block in encoder.blocks:
            assert isinstance(block, Block)
            block.attention.projection.weight.zero_()
            block.feed_forward.contract.weight.zero_()
        encoder.token_embedding.weight.zero_()[:16] = -1000 * torch.eye(16)
        encoder.position_embedding.weight.zero_()
        smallest = encoder.encode(torch.tensor([[3]])).min().item()
    assert smallest == pytest.approx(-(15**0.5))
    model = make_run(tmp_path / "run", encoder.config, corpus.tokenizer, encoder)
    export_model(model, tmp_path / "out")
    tokens = torch.arange(16)[None]
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path / "out")(tokens).logits, encoder(tokens), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("width", [1, 2, 5, 16, 17, 64, 256, 768, 4096])
def test_the_offset_is_the_smallest_sufficient_integer(width: int) -> None:
    largest = F.layer_norm(1e6 * torch.eye(width, dtype=torch.float64)[0], [width]).abs().max().item()
    shape = ModelConfig(embedding_dim=width, heads=1)
    assert largest < identity_offset(shape) <= largest + 1 + 1e-9
    assert identity_offset(replace(shape, activation="gelu")) == identity_offset(shape) + 6


def test_gelu_is_the_identity_from_6_on() -> None:
    numbers = torch.linspace(6, 80, 100_000)
    assert torch.equal(F.gelu(numbers), numbers)
    assert not torch.equal(F.gelu(numbers - 1), numbers - 1)


def test_parameters_that_the_encoder_lacks_are_zeros(exported: Path) -> None:
    bert: Any = load(exported).bert
    layer = bert.encoder.layer[1].attention.self
    for part in (layer.query, layer.key, layer.value):
        assert not part.bias.any()
    assert not bert.embeddings.token_type_embeddings.weight.any()


def test_dropout_is_exported(corpus: Corpus, tmp_path: Path) -> None:
    export_model(make_run(tmp_path / "run", replace(SMALL, dropout=0.25), corpus.tokenizer), tmp_path / "out")
    dropped = [module.p for module in load(tmp_path / "out").modules() if isinstance(module, torch.nn.Dropout)]
    assert dropped == [0.25] * (1 + 3 * 2)
