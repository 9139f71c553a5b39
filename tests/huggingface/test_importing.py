"""An exported folder is read back: bit for bit as exported, and with the same hidden states after fine-tuning."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

import mlm_dist
from mlm_dist.config import ModelConfig
from mlm_dist.data.corpus import Corpus
from mlm_dist.data.preparation import SAMPLE_TEXT
from mlm_dist.errors import UserError
from mlm_dist.huggingface import importing
from mlm_dist.huggingface.export import export_model
from mlm_dist.huggingface.importing import Exported, read_exported, read_tensors, sample_states
from mlm_dist.inference.model import TrainedModel
from mlm_dist.model.encoder import Encoder
from tests.data.test_tokenizer_json import change_json
from tests.huggingface.conftest import make_run

SHAPE = ModelConfig(vocab_size=310, block_size=16, embedding_dim=32, heads=4, blocks=2)
SAMPLE = SAMPLE_TEXT.read_text(encoding="utf-8")
STEPS = 30


def make_model(shape: ModelConfig, corpus: Corpus, folder: Path) -> TrainedModel:
    """A model whose parameters all differ from their initial values."""
    torch.manual_seed(0)
    encoder = Encoder(shape)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.2)
    return make_run(folder, shape, corpus.tokenizer, encoder)


@pytest.fixture(scope="module")
def model(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    return make_model(SHAPE, corpus, tmp_path_factory.mktemp("model") / "run")


@pytest.fixture(scope="module")
def untied(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    return make_model(
        replace(SHAPE, tie_embeddings=False, dropout=0.25), corpus, tmp_path_factory.mktemp("untied") / "run"
    )


@pytest.fixture
def folder(model: TrainedModel, tmp_path: Path) -> Path:
    """The exported model."""
    export_model(model, tmp_path / "exported")
    return tmp_path / "exported"


def check_bits(found: Exported, model: TrainedModel) -> None:
    expected = model.encoder.state_dict()
    assert found.parameters.keys() == expected.keys()
    for name, parameter in expected.items():
        assert torch.equal(found.parameters[name].view(torch.int32), parameter.view(torch.int32)), name
    assert found.model == model.config.model
    assert found.tokenizer.fingerprint == model.tokenizer.fingerprint
    assert found.tokenizer.name == model.tokenizer.name


def encoder_of(found: Exported) -> Encoder:
    encoder = Encoder(found.model).eval()
    encoder.load_state_dict(found.parameters)
    return encoder


def rows_of(model: TrainedModel) -> torch.Tensor:
    """The sample text in rows, the last one short."""
    return torch.from_numpy(model.tokenizer.encode(SAMPLE).astype("int64"))[:16000].view(-1, 16)


def mask(rows: torch.Tensor, model: TrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows with some tokens masked, and which ones."""
    masked = torch.rand(rows.shape, generator=torch.Generator().manual_seed(1)) < 0.15
    return rows.masked_fill(masked, model.tokenizer.mask_id), masked


def masked_loss(model: Any, rows: torch.Tensor, trained: TrainedModel) -> torch.Tensor:
    inputs, masked = mask(rows, trained)
    out = model(inputs)
    return F.cross_entropy(getattr(out, "logits", out)[masked], rows[masked])


def fine_tune(model: Any, loss: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(STEPS):
        loss(rows[64 * step % 900 :][:64]).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def save(model: Any, exported: Path, folder: Path) -> Path:
    """Save a model and its tokenizer as users of transformers do."""
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(exported).save_pretrained(folder)
    return folder


@torch.no_grad()
def check_states(found: Exported, fine_tuned: Any, rows: torch.Tensor) -> None:
    """Check that the last hidden states differ by less than 1e-4."""
    norm = fine_tuned.bert.encoder.ln
    states = encoder_of(found).last_hidden_states(rows) * norm.weight + norm.bias
    difference = (states - fine_tuned.bert(rows).last_hidden_state).abs().max().item()
    print(f"\nlargest difference of two states: {difference:.1e}")
    assert difference < 1e-4


@pytest.fixture(scope="module")
def gelu(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    return make_model(replace(SHAPE, activation="gelu"), corpus, tmp_path_factory.mktemp("gelu") / "run")


@pytest.mark.parametrize("name", ["model", "untied", "gelu"])
def test_an_export_is_read_back_bit_for_bit(
    name: str, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    model = request.getfixturevalue(name)
    export_model(model, tmp_path / "exported")
    check_bits(read_exported(tmp_path / "exported"), model)
    saved = AutoModelForMaskedLM.from_pretrained(tmp_path / "exported")
    check_bits(read_exported(save(saved, tmp_path / "exported", tmp_path / "saved")), model)
    assert "mlm_dist:" not in capsys.readouterr().err


def test_a_trained_run_is_read_back_bit_for_bit(run_dir: Path, exported: Path) -> None:
    check_bits(read_exported(exported), mlm_dist.load(run_dir, "cpu"))


def test_reading_draws_no_random_numbers(folder: Path, tmp_path: Path) -> None:
    changed = AutoModelForMaskedLM.from_pretrained(folder)
    torch.nn.init.normal_(changed.cls.predictions.transform.dense.bias, mean=8.0)
    save(changed, folder, tmp_path / "saved")
    before = torch.get_rng_state()
    read_exported(tmp_path / "saved")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model", "untied", "gelu"])
def test_a_fine_tuned_model_has_the_same_states_and_nearly_the_same_loss(
    name: str, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    model = request.getfixturevalue(name)
    rows = rows_of(model)
    export_model(model, tmp_path / "exported")
    tuned = AutoModelForMaskedLM.from_pretrained(tmp_path / "exported")
    with torch.no_grad():
        before = masked_loss(model.encoder, rows, model).item()
    fine_tune(tuned, lambda part: masked_loss(tuned, part, model), rows)
    found = read_exported(save(tuned, tmp_path / "exported", tmp_path / "tuned"))
    check_states(found, tuned, mask(rows, model)[0])
    with torch.no_grad():
        expected, loss = (masked_loss(m, rows, model).item() for m in (tuned, encoder_of(found)))
    assert expected < before - 0.1
    assert loss < expected + 0.05 * (before - expected)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mlm_dist:")]
    assert "fine-tuning has changed the layer before the output layer" in line
    print(f"\nloss {before:.4f}, fine-tuned {expected:.4f}, read {loss:.4f}; {line}")


@pytest.mark.slow
def test_the_body_of_a_classifier_is_read(
    model: TrainedModel, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(model)
    torch.manual_seed(0)
    tuned = AutoModelForSequenceClassification.from_pretrained(folder)
    fine_tune(tuned, lambda part: tuned(part, labels=part[:, 3] % 2).loss, rows)
    capsys.readouterr()
    found = read_exported(save(tuned, folder, tmp_path / "tuned"))
    check_states(found, tuned, rows)
    norm = tuned.bert.encoder.ln
    assert torch.equal(found.parameters["final_norm.weight"], norm.weight)
    assert torch.equal(found.parameters["final_norm.bias"], norm.bias)
    assert not found.parameters["output.bias"].any()
    assert torch.equal(found.parameters["output.weight"], tuned.bert.embeddings.word_embeddings.weight)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mlm_dist:")]
    assert "there is no output layer for masked tokens: its LayerNorm and its bias are new" in line


def test_a_body_that_auto_model_saved_is_read(folder: Path, tmp_path: Path) -> None:
    tuned = AutoModel.from_pretrained(folder)
    save(tuned, folder, tmp_path / "body")
    assert not any(name.startswith("bert.") for name in load_file(tmp_path / "body/model.safetensors"))
    assert read_exported(tmp_path / "body").parameters.keys() == read_exported(folder).parameters.keys()


def test_a_model_in_half_precision_is_read(model: TrainedModel, folder: Path, tmp_path: Path) -> None:
    save(AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.bfloat16), folder, tmp_path / "half")
    found = read_exported(tmp_path / "half").parameters
    for name, parameter in model.encoder.state_dict().items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], parameter.bfloat16().float())


@pytest.mark.parametrize("name", ["cls.predictions.bias", "cls.predictions.decoder.bias"])
def test_one_of_the_two_names_of_the_output_bias_is_enough(name: str, untied: TrainedModel, tmp_path: Path) -> None:
    export_model(untied, tmp_path / "exported")
    change_tensors(tmp_path / "exported", lambda tensors: tensors.pop(name))
    check_bits(read_exported(tmp_path / "exported"), untied)


def test_the_sampled_states_are_those_of_masks(model: TrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = {
        name: torch.zeros_like(value) if name.startswith("blocks.") and "norm" not in name else value
        for name, value in model.encoder.state_dict().items()
    }  # whose states depend on their own token and position only
    states = sample_states(parameters, SHAPE, model.tokenizer)
    assert states.shape == (8192 // 16 * 3, 32)  # the positions 0, 7 and 14 of each row
    assert torch.equal(states, states[:3].repeat(8192 // 16, 1))
    monkeypatch.setattr(importing, "SAMPLE_TOKENS", 10)  # fewer than a row
    torch.testing.assert_close(sample_states(parameters, SHAPE, model.tokenizer), states[:2])


def test_added_tokens_enlarge_the_model(folder: Path, tmp_path: Path) -> None:
    tokenizer, enlarged = AutoTokenizer.from_pretrained(folder), AutoModelForMaskedLM.from_pretrained(folder)
    tokenizer.add_special_tokens({"cls_token": "[CLS]"})
    enlarged.resize_token_embeddings(320)
    enlarged.save_pretrained(tmp_path / "larger")
    tokenizer.save_pretrained(tmp_path / "larger")
    found = read_exported(tmp_path / "larger")
    assert found.model.vocab_size == 320
    assert found.tokenizer.special_tokens["[CLS]"] == found.tokenizer.vocab_size - 1 == 300


def test_a_singular_query_matrix_loses_a_part_of_its_bias(
    model: TrainedModel, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = AutoModelForMaskedLM.from_pretrained(folder)
    query = changed.bert.encoder.layer[1].attention.self.query
    with torch.no_grad():
        query.weight[3] = query.weight[2]  # no shift can move one without the other
        query.bias[3] = 0.5
    found = read_exported(save(changed, folder, tmp_path / "singular"))
    assert all(parameter.isfinite().all() for parameter in found.parameters.values())
    assert found.parameters["blocks.1.attention_norm.bias"].abs().max() < 100
    assert "up to 70.71% of them is lost" in capsys.readouterr().err  # the half of its square


def refuse(folder: Path, message: str) -> None:
    with pytest.raises(UserError) as raised:
        read_exported(folder)
    (line,) = str(raised.value).splitlines()
    assert message in line
    assert line.startswith(str(folder))


def test_a_classifier_whose_embeddings_are_not_tied_is_refused(untied: TrainedModel, tmp_path: Path) -> None:
    export_model(untied, tmp_path / "exported")
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "exported")
    save(classifier, tmp_path / "exported", tmp_path / "classifier")
    refuse(tmp_path / "classifier", "it has no output layer for masked tokens, and its embeddings are not tied")


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


NORM = "bert.encoder.layer.1.ln.weight"
DENSE = "cls.predictions.transform.dense.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(NORM), f"{NORM} is missing"),
        (lambda t: t.pop(DENSE), f"{DENSE} is missing"),
        (lambda t: t.update({NORM: torch.ones(33)}), f"{NORM} has the shape [33], not [32] as in config.json"),
        (lambda t: t.update({NORM: torch.ones(1, 32)}), f"{NORM} has the shape [1, 32], not [32]"),
        (lambda t: t.update({NORM: torch.ones(32, dtype=torch.int8)}), f"{NORM} is of type torch.int8: save the model"),
        (lambda t: t[NORM].fill_(torch.nan), f"{NORM} contains NaN or infinity"),
        (lambda t: t["cls.predictions.bias"][7:8].fill_(torch.inf), "cls.predictions.bias contains NaN or infinity"),
        (lambda t: t.update({"bert.encoder.layer.0.lora_A": torch.ones(2)}), "layer.0.lora_A is not a parameter of"),
        (lambda t: t.clear(), "it has 0 parameters, fewer than the shape in config.json needs"),
    ],
)
def test_wrong_parameters_are_refused(
    change: Callable[[dict[str, torch.Tensor]], object], message: str, folder: Path
) -> None:
    change_tensors(folder, change)
    refuse(folder, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 3}, "bert.encoder.layer.2.attention.ln.weight is missing"),
        ({"num_hidden_layers": 1}, "bert.encoder.layer.1.attention.ln.bias is not a parameter"),
        ({"num_hidden_layers": 10**9}, "parameters, fewer than the shape in config.json needs"),
        ({"vocab_size": 311}, "has the shape [310, 32], not [311, 32] as in config.json"),
        ({"vocab_size": 10**18}, "no model can have the shape in config.json"),
        ({"vocab_size": 299}, "the tokenizer has 300 ids, the model 299: enlarge the model in transformers"),
        ({"max_position_embeddings": 17}, "has the shape [16, 32], not [17, 32] as in config.json"),
        ({"tie_word_embeddings": False}, "cls.predictions.decoder.weight is missing"),
        ({"model_type": "bert"}, "model_type is 'bert', which has post-LayerNorm"),
    ],
)
def test_a_config_json_that_does_not_fit_is_refused(changes: dict[str, Any], message: str, folder: Path) -> None:
    change_json(folder / "config.json", lambda content: content.update(changes))
    refuse(folder, message)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
def test_a_missing_file_is_refused(name: str, folder: Path) -> None:
    (folder / name).unlink()
    refuse(folder, name)


def test_parameters_in_another_format_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder / "model.safetensors", folder / "pytorch_model.bin")
    refuse(folder, "there is only pytorch_model.bin: load the model in transformers and save it with safetensors")
    (folder / "model.safetensors.index.json").write_text("{}")
    refuse(folder, "the parameters are in several files: save them with a larger max_shard_size")


@pytest.mark.parametrize("share", [0, 0.001, 0.1, 0.5, 0.999])
def test_a_truncated_file_is_refused(share: float, folder: Path) -> None:
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    refuse(folder, "it is damaged")


@pytest.mark.slow
def test_a_damaged_header_is_a_value_error(folder: Path) -> None:
    """Bytes of the header are changed. Some changes, such as those of a name, leave a valid file."""
    file = folder / "model.safetensors"
    content = file.read_bytes()
    positions = range(0, 8 + int.from_bytes(content[:8], "little"), 17)
    refused = 0
    for position in positions:
        changed = bytes([content[position] ^ (1 << position % 8)])
        file.write_bytes(content[:position] + changed + content[position + 1 :])
        try:
            read_tensors(folder, SHAPE)
        except ValueError:
            refused += 1
    assert refused > len(positions) / 3
