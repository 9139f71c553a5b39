"""A model with rotary positions and GELU: transformers' ESM computes the same logits, and it is read back."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, EsmForMaskedLM

from mlm_dist.config import ModelConfig
from mlm_dist.data.corpus import Corpus
from mlm_dist.errors import UserError
from mlm_dist.exported_shape import FIXED_IN_ESM
from mlm_dist.huggingface.esm import rename, restore_name
from mlm_dist.huggingface.export import export_model
from mlm_dist.huggingface.importing import read_exported
from mlm_dist.huggingface.megatron_bert import convert_parameters
from mlm_dist.inference.model import TrainedModel
from mlm_dist.model.registry import state_on_meta
from mlm_dist.model.rotary import BASE
from tests.huggingface.test_importing import check_bits, encoder_of, make_model, save

SHAPE = ModelConfig(
    vocab_size=310, block_size=16, embedding_dim=32, heads=4, blocks=2, activation="gelu", positions="rope"
)


@pytest.fixture(params=[True, False], ids=["tied", "untied"], scope="module")
def model(request: pytest.FixtureRequest, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    """A model whose parameters all differ from their initial values."""
    shape = replace(SHAPE, tie_embeddings=request.param)
    return make_model(shape, corpus, tmp_path_factory.mktemp("model") / "run")


@pytest.fixture
def folder(model: TrainedModel, tmp_path: Path) -> Path:
    """The exported model."""
    export_model(model, tmp_path / "exported")
    return tmp_path / "exported"


def random_rows(model: TrainedModel) -> torch.Tensor:
    rows = torch.randint(0, 310, (8, 16), generator=torch.Generator().manual_seed(0))
    rows[0, :3] = torch.tensor([model.tokenizer.end_id, model.tokenizer.mask_id, model.tokenizer.end_id])
    return rows


@torch.no_grad()
def test_transformers_computes_the_same_logits(model: TrainedModel, folder: Path) -> None:
    converted, report = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    assert isinstance(converted, EsmForMaskedLM)
    rows = random_rows(model)
    expected = model.encoder(rows)
    difference = ((converted(rows).logits - expected).abs().max() / expected.std()).item()
    print(f"\nlargest difference of two logits: {difference:.1e} of their standard deviation")
    assert difference < 1e-4
    tied = converted.lm_head.decoder.weight is converted.get_input_embeddings().weight
    assert tied == model.config.model.tie_embeddings


@torch.no_grad()
def test_an_embedding_is_the_mean_of_the_states_of_auto_model(model: TrainedModel, folder: Path) -> None:
    tokenizer, converted = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    text = "The lamp went out."
    ids = torch.tensor(tokenizer(text)["input_ids"])
    assert ids.tolist() == model.tokenizer.encode(text).tolist()
    states = converted(ids[None, :16]).last_hidden_state[0]
    found = model.encoder.last_hidden_states(ids[None, :16])[0]
    torch.testing.assert_close(states, found, rtol=0, atol=1e-5)


def test_an_export_is_read_back_bit_for_bit(model: TrainedModel, folder: Path, tmp_path: Path) -> None:
    check_bits(read_exported(folder), model)
    saved = save(AutoModelForMaskedLM.from_pretrained(folder), folder, tmp_path / "saved")
    check_bits(read_exported(saved), model)


def test_a_body_that_auto_model_saved_is_read(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model(SHAPE, corpus, tmp_path / "run")
    export_model(model, tmp_path / "exported")
    body = save(AutoModel.from_pretrained(tmp_path / "exported"), tmp_path / "exported", tmp_path / "body")
    found, expected = read_exported(body).parameters, model.encoder.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found if name.startswith(("blocks", "token")))
    assert "there is no output layer for masked tokens" in capsys.readouterr().err


@torch.no_grad()
def test_biases_of_queries_and_keys_that_a_shift_can_give_are_folded_and_others_are_a_warning(
    model: TrainedModel, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned: Any = AutoModelForMaskedLM.from_pretrained(folder)
    attention, shift = tuned.esm.encoder.layer[1].attention.self, torch.randn(32) / 5
    for layer in (attention.query, attention.key, attention.value):
        layer.bias += layer.weight @ shift
    found = read_exported(save(tuned, folder, tmp_path / "shifted"))
    assert "mlm_dist:" not in capsys.readouterr().err
    rows = random_rows(model)
    expected = tuned(rows).logits
    assert (encoder_of(found)(rows) - expected).abs().max() < 1e-4 * expected.std()
    assert (model.encoder(rows) - expected).abs().max() > 1e-2 * expected.std()
    attention.key.bias += 1.0
    read_exported(save(tuned, folder, tmp_path / "biased"))
    assert "cannot be folded into this model: up to" in capsys.readouterr().err


def test_every_name_is_restored() -> None:
    for tied in (True, False):
        shape = replace(SHAPE, tie_embeddings=tied)
        names = convert_parameters(state_on_meta(shape), shape)
        assert len({rename(name) for name in names}) == len(names)
        assert [restore_name(rename(name)) for name in names] == list(names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_theta": 5000.0}, "rope_theta is 5000.0: a model of mlm_dist has 10000.0"),
        ({"token_dropout": True}, "token_dropout is True"),
        ({"emb_layer_norm_before": True}, "emb_layer_norm_before is True"),
        ({"position_embedding_type": "absolute"}, "position_embedding_type is 'absolute'"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps is 1e-05"),
    ],
    ids=str,
)
def test_another_esm_is_refused(change: dict[str, Any], message: str, folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | change), encoding="utf-8")
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        read_exported(folder)


def test_the_angles_are_those_of_the_encoder() -> None:
    assert FIXED_IN_ESM["rope_theta"] == BASE
