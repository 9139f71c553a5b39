"""A run can start from the parameters of another run, and says in one line if it cannot."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mlm_dist.config_reading import read_config
from mlm_dist.data.corpus import Corpus
from mlm_dist.data.preparation import SAMPLE_TEXT, encode_corpus
from mlm_dist.data.splitting import hold_out
from mlm_dist.data.tokenizer import Tokenizer
from mlm_dist.run.checkpoint import list_checkpoints, load_checkpoint, read_record
from mlm_dist.run.metrics import Event, read_events
from mlm_dist.texts.document_list import find_documents
from mlm_dist.training.source_corpora import open_corpus
from tests.conftest import Result, tiny_flags, verb

pytestmark = pytest.mark.slow

UNMOVED: dict[str, Any] = {"optim__lr": 1e-30}  # too small to change a parameter


@pytest.fixture
def source(run_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny run, with checkpoints of steps 10, 20 and 30."""
    return Path(shutil.copytree(run_dir, tmp_path / "source"))


def start_from(source: object, corpus: Path, run: Path, without: tuple[str, ...] = (), **changes: Any) -> Result:
    """Train a run of ten steps that starts from a source."""
    settings = {"train__max_iters": 10, "train__eval_interval": 5, "init_from": source} | changes
    flags = tiny_flags(corpus, run, **settings)
    return verb("train", *(flag for flag in flags if not any(flag.startswith(f"--{key}") for key in without)))


def evaluations(run: Path) -> dict[int, Event]:
    return {event["step"]: event for event in read_events(run / "metrics.jsonl") if "val_loss" in event}


def error_of(result: Result) -> str:
    assert result.returncode == 2, result.stderr
    [line] = result.stderr.splitlines()
    return line


@pytest.mark.parametrize(("name", "step"), [("", 30), ("@10", 10), ("@best", 30), ("/model.pth", 30)])
def test_a_run_starts_with_the_parameters_of_its_source(source, corpus_folder, tmp_path, name, step):
    result = start_from(f"{source}{name}", corpus_folder, tmp_path / "run", seed=5)
    assert result.returncode == 0, result.stderr
    assert f"started from {source}{name}" in result.stdout
    assert evaluations(tmp_path / "run")[0]["val_loss"] == evaluations(source)[step]["val_loss"]
    state = load_checkpoint(list_checkpoints(tmp_path / "run" / "checkpoints")[0])
    assert state["step"] == 10
    assert {int(values["step"]) for values in state["optimizers"][0]["state"].values()} == {10}  # a new optimizer


def test_the_average_of_the_parameters_starts_with_them_too(source, corpus_folder, tmp_path):
    result = start_from(source, corpus_folder, tmp_path / "run", optim__ema=0.9)
    assert result.returncode == 0, result.stderr
    assert evaluations(tmp_path / "run")[0]["val_loss"] == evaluations(source)[30]["val_loss"]


def test_a_milestone_has_parameters_to_start_from_but_no_optimizer_to_branch_from(corpus_folder, tmp_path):
    source = tmp_path / "source"
    flags = tiny_flags(corpus_folder, source, checkpoint__milestones="[10]", checkpoint__keep=1, train__max_iters=25)
    assert verb("train", *flags).returncode == 0
    for step in (10, 20):
        shutil.rmtree(source / "checkpoints" / f"step-000000{step}", ignore_errors=True)
    result = start_from(f"{source}@10", corpus_folder, tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert evaluations(tmp_path / "run")[0]["val_loss"] == evaluations(source)[10]["val_loss"]
    line = error_of(start_from(f"{source}@10", corpus_folder, tmp_path / "branch", branch=True))
    assert "milestones/step-00000010 has only parameters: a branch needs a checkpoint" in line


def test_the_shape_of_the_model_is_taken_from_the_source(source, corpus_folder, tmp_path):
    result = start_from(source, corpus_folder, tmp_path / "run", without=("model.",))
    assert result.returncode == 0, result.stderr
    assert read_config(tmp_path / "run" / "config.yaml").model == read_config(source / "config.yaml").model


def test_text_is_encoded_with_the_tokenizer_of_the_source(source, tmp_path):
    (tmp_path / "text.txt").write_text(SAMPLE_TEXT.read_text(encoding="utf-8")[:30000], encoding="utf-8")
    result = start_from(source, tmp_path / "text.txt", tmp_path / "run", without=("model.",))
    assert result.returncode == 0, result.stderr
    tokenizers = [Tokenizer.load(run / "tokenizer").fingerprint for run in (source, tmp_path / "run")]
    assert tokenizers[0] == tokenizers[1]


def test_a_padded_vocabulary_of_the_source_is_kept(corpus_folder, tmp_path):
    assert verb("train", *tiny_flags(corpus_folder, tmp_path / "padded", model__vocab_size=320)).returncode == 0
    result = start_from(tmp_path / "padded", corpus_folder, tmp_path / "run", without=("model.",))
    assert result.returncode == 0, result.stderr
    assert read_config(tmp_path / "run" / "config.yaml").model.vocab_size == 320


@pytest.mark.parametrize(
    ("key", "value", "theirs"),
    [
        ("heads", 4, 2),
        ("blocks", 3, 2),
        ("tie_embeddings", False, True),
        ("activation", "gelu", "relu"),
        ("positions", "rope", "learned"),
        ("logit_softcap", 30.0, None),
    ],
)
def test_a_contradicting_shape_is_refused(source, corpus_folder, tmp_path, key, value, theirs):
    line = error_of(start_from(source, corpus_folder, tmp_path / "run", **{f"model__{key}": value}))
    assert f"model.{key} is {value}, but {source} has {theirs}: remove the key" in line
    assert not (tmp_path / "run").exists()


def test_a_smaller_vocabulary_is_refused(source, corpus_folder, tmp_path):
    line = error_of(start_from(source, corpus_folder, tmp_path / "run", model__vocab_size=299))
    assert f"model.vocab_size 299 is smaller than the 300 of {source}: remove the key" in line


def test_a_corpus_with_another_tokenizer_is_refused(source, tmp_path):
    tokenizer = Tokenizer.train_bpe(["a text of its own"] * 9, 260)
    (tmp_path / "corpus").mkdir()
    encode_corpus(hold_out(find_documents([SAMPLE_TEXT]), 0.1), tmp_path / "corpus", tokenizer)
    line = error_of(start_from(source, tmp_path / "corpus", tmp_path / "run"))
    assert f"has another tokenizer (bpe) than {source} (bpe): prepare its texts again with --tokenizer {source}" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("block_size", "step"), [(8, 1), (46, 3)])
def test_positions_are_fitted_to_another_block_size(source, corpus_folder, tmp_path, block_size, step):
    result = start_from(source, corpus_folder, tmp_path / "run", model__block_size=block_size, **UNMOVED)
    assert result.returncode == 0, result.stderr
    before, after = (torch.load(run / "model.pth")["position_embedding.weight"] for run in (source, tmp_path / "run"))
    assert len(after) == block_size
    assert torch.allclose(after[::step], before[:block_size], atol=1e-6)  # every third of a block of 3 * 15 + 1
    if step > 1:
        assert torch.allclose(after[1], (2 * before[0] + before[1]) / 3, atol=1e-6)


def test_options_of_the_model_are_taken_from_the_source_and_rotary_positions_need_no_fitting(corpus_folder, tmp_path):
    options = {"model__positions": "rope", "model__activation": "geglu", "model__logit_softcap": 20.0}
    source = tmp_path / "source"
    assert verb("train", *tiny_flags(corpus_folder, source, **options)).returncode == 0
    changes = {"model__block_size": 32, "model__embedding_std": 0.5, **UNMOVED}
    without = ("model.heads", "model.activation", "model.positions")
    result = start_from(source, corpus_folder, tmp_path / "run", without, **changes)
    assert result.returncode == 0, result.stderr
    models = [read_config(run / "config.yaml").model for run in (source, tmp_path / "run")]
    assert models[1] == dataclasses.replace(models[0], block_size=32, embedding_std=0.5)
    before, after = (torch.load(run / "model.pth") for run in (source, tmp_path / "run"))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_source_is_recorded_and_not_needed_again(source, corpus_folder, tmp_path):
    run = tmp_path / "run"
    assert start_from(source, corpus_folder, run, without=("model.",)).returncode == 0
    origin = json.loads((run / "origin.json").read_text(encoding="utf-8"))
    assert (origin["name"], origin["step"]) == (str(source), 30)
    for checkpoint in list_checkpoints(run / "checkpoints"):
        record = read_record(checkpoint)
        assert record
        assert record["fixed"]["init_from.sha256"] == origin["sha256"]
    shutil.rmtree(source)
    result = start_from(source, corpus_folder, run, without=("model.",), train__max_iters=15)
    assert result.returncode == 0, result.stderr
    assert "step 15/15" in result.stdout


def test_the_source_of_a_run_cannot_be_changed(source, corpus_folder, tmp_path):
    assert start_from(source, corpus_folder, tmp_path / "run").returncode == 0
    line = error_of(start_from(f"{source}@10", corpus_folder, tmp_path / "run"))
    assert f"was trained with init_from '{source}', not '{source}@10'" in line


def test_a_source_that_has_changed_since_the_run_began_is_noticed(source, corpus_folder, tmp_path):
    run = tmp_path / "run"
    assert start_from(source, corpus_folder, run).returncode == 0
    shutil.rmtree(run / "checkpoints")  # as if it had been killed before its first checkpoint
    for file in ("model.pth", "DONE"):
        (run / file).unlink()
    shutil.copy(list_checkpoints(source / "checkpoints")[-1] / "state.pt", tmp_path)
    torch.save(load_checkpoint(list_checkpoints(source / "checkpoints")[-1])["model"], source / "model.pth")
    line = error_of(start_from(source, corpus_folder, run))
    assert f"{source} has changed since {run} was started from it: restore it, or give another run_dir" in line


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("@20", "checkpoints/step-00000020/state.pt", "is damaged: state.pt does not match manifest.json"),
        ("", "model.pth", "model.pth cannot be read as model parameters"),
        ("@25", None, "has no checkpoint of step 25; it has those of 10, 20, 30"),
    ],
)
def test_a_source_that_is_damaged_or_lacks_the_step_is_refused(source, corpus_folder, tmp_path, name, file, message):
    if file:
        flip_a_byte(source / file)
    assert message in error_of(start_from(f"{source}{name}", corpus_folder, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_the_loss_on_the_text_of_the_source_is_evaluated_too(source, corpus_folder, paragraphs, tmp_path):
    result = start_from(source, paragraphs, tmp_path / "run")
    assert result.returncode == 0, result.stderr
    found = evaluations(tmp_path / "run")
    assert found[0][f"val_loss/{corpus_folder}"] == evaluations(source)[30]["val_loss"]
    assert all(f"val_loss/{corpus_folder}" in event for event in found.values())
    assert f"({corpus_folder} {found[10][f'val_loss/{corpus_folder}']:.4f})" in result.stdout
    assert not any(key.startswith("val_loss/") for key in evaluations(source)[30])


def test_a_corpus_of_the_source_that_is_trained_on_too_is_evaluated_once(source, corpus_folder, paragraphs, tmp_path):
    replay = [{"path": str(paragraphs), "weight": 3}, {"path": str(corpus_folder), "weight": 1}]
    result = start_from(source, corpus_folder, tmp_path / "run", data__path=json.dumps(replay))
    assert result.returncode == 0, result.stderr
    losses = {key for key in evaluations(tmp_path / "run")[0] if key.startswith("val_loss")}
    assert losses == {"val_loss", f"val_loss/{corpus_folder}", f"val_loss/{paragraphs}"}


def test_a_corpus_of_the_source_that_is_gone_is_a_warning(source, corpus_folder, paragraphs, tmp_path):
    config = source / "config.yaml"
    config.write_text(config.read_text(encoding="utf-8").replace(str(corpus_folder), "/gone"), encoding="utf-8")
    result = start_from(source, paragraphs, tmp_path / "run")
    assert result.returncode == 0
    assert f"the loss on the text of {source} is not evaluated: data.path /gone" in result.stderr


def test_a_corpus_of_the_source_that_goes_later_changes_no_result(source, corpus_folder, paragraphs, tmp_path):
    moved = Path(shutil.copytree(corpus_folder, tmp_path / "moved"))
    config = source / "config.yaml"
    config.write_text(config.read_text(encoding="utf-8").replace(str(corpus_folder), str(moved)), encoding="utf-8")
    for run in ("with", "without"):
        assert start_from(source, paragraphs, tmp_path / run, train__max_iters=11).returncode == 0
    shutil.rmtree(moved)
    result = start_from(source, paragraphs, tmp_path / "without", train__max_iters=20)
    assert result.returncode == 0
    assert "is not evaluated" in result.stderr
    moved.mkdir()
    shutil.copytree(corpus_folder, moved, dirs_exist_ok=True)
    assert start_from(source, paragraphs, tmp_path / "with", train__max_iters=20).returncode == 0
    final = [torch.load(tmp_path / run / "model.pth") for run in ("with", "without")]
    assert all(torch.equal(final[0][name], final[1][name]) for name in final[0])
    assert "val_loss/" not in str(evaluations(tmp_path / "without")[20])


def test_new_tokens_start_as_the_means_of_their_pieces(source, corpus_folder, tmp_path):
    (tmp_path / "text.txt").write_text(SAMPLE_TEXT.read_text(encoding="utf-8")[:30000], encoding="utf-8")
    flags = ("--extend", source, "--add_tokens", 20, "--out", tmp_path / "extended")
    assert verb("prepare", tmp_path / "text.txt", *flags).returncode == 0
    result = start_from(source, tmp_path / "extended", tmp_path / "run", without=("model.",), **UNMOVED)
    assert result.returncode == 0, result.stderr
    before, after = (torch.load(run / "model.pth")["token_embedding.weight"] for run in (source, tmp_path / "run"))
    base, extended = (Tokenizer.load(run / "tokenizer") for run in (source, tmp_path / "run"))
    assert torch.equal(after[:300], before)
    assert len(after) == 320
    for token, pieces in extended.pieces_of_new(base).items():
        assert torch.allclose(after[token], before[pieces].mean(0), atol=1e-6)
    assert f"val_loss/{corpus_folder}" in evaluations(tmp_path / "run")[0]  # its ids have kept their meaning


def test_an_exported_model_trained_on_and_exported_again_keeps_its_bits(source, corpus_folder, tmp_path):
    for run, out in ((source, "first"), (tmp_path / "run", "second")):
        assert verb("export", "--run", run, "--out", tmp_path / out).returncode == 0
        if out == "first":
            result = start_from(tmp_path / out, corpus_folder, tmp_path / "run", without=("model.",), **UNMOVED)
            assert result.returncode == 0, result.stderr
    assert evaluations(tmp_path / "run")[0]["val_loss"] == evaluations(source)[30]["val_loss"]
    first, second = (load_file(tmp_path / out / "model.safetensors") for out in ("first", "second"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    card = (tmp_path / "second" / "README.md").read_text(encoding="utf-8")
    assert "was trained from the parameters of `first` on `sample`" in card


def test_an_exported_model_has_no_optimizer_to_branch_from(source, corpus_folder, tmp_path):
    assert verb("export", "--run", source, "--out", tmp_path / "exported").returncode == 0
    line = error_of(start_from(tmp_path / "exported", corpus_folder, tmp_path / "run", branch=True))
    assert "branch: true needs a checkpoint, with the state of the optimizer" in line


def test_a_corpus_that_is_not_that_of_the_source_anymore_is_not_evaluated(corpus_folder, paragraphs):
    sha256 = Corpus.open(corpus_folder).manifest.sha256["val"]
    assert open_corpus(corpus_folder, sha256, 16, verify=True)[1] == ""
    assert open_corpus(paragraphs, sha256, 16, verify=True) == (None, f"{paragraphs} has changed")
    assert open_corpus(corpus_folder, sha256, 100_000, verify=True) == (None, f"{corpus_folder} has no validation row")
