"""`python -m mlm_dist.finetune`, run from the command line."""

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mlm_dist
from mlm_dist.finetuning.linear import predict
from tests.conftest import torchrun, verb

WORDS = {"sea": ["ship", "wave", "sail", "tide"], "land": ["farm", "road", "hill", "barn"]}
FULL = ("--method", "full", "--seeds", "2", "--epochs", "2", "--batch_size", "8", "--lr", "0.003", "--device", "cpu")
FROZEN = ("--seeds", "2", "--device", "cpu")


def examples(count: int, seed: int) -> list[dict[str, Any]]:
    """Texts about the sea or the land, each with a second text about the same and a score."""
    rng = random.Random(seed)
    records = []
    for _ in range(count):
        label = rng.choice([*WORDS])
        text, other = (" ".join(rng.choices(WORDS[label], k=rng.randint(5, 14))) for _ in range(2))
        records.append({"text": text, "other": other, "label": label, "score": text.count(" ") + rng.random()})
    return records


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.jsonl, dev.jsonl and test.jsonl."""
    folder = tmp_path_factory.mktemp("labelled")
    for seed, (name, count) in enumerate({"train": 60, "dev": 20, "test": 30}.items()):
        lines = [json.dumps(record) for record in examples(count, seed)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def given(run_dir: Path, files: Path, out: Path, *others: str) -> list[str]:
    """The arguments with all three files."""
    parts = [argument for name in ("train", "dev", "test") for argument in (f"--{name}", str(files / f"{name}.jsonl"))]
    return ["--run_dir", str(run_dir), *parts, "--out", str(out), *others]


def outcome(out: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "outcomes" / f"{name}.json").read_text())
    return content


def test_the_table_compares_the_trained_encoder_with_three_baselines(
    run_dir: Path, files: Path, tmp_path: Path
) -> None:
    result = verb("finetune", *given(run_dir, files, tmp_path / "out", *FROZEN))
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["seeds", "accuracy", "macro-F1", "Matthews"]
    rows = {line[:20].strip(): line[20:] for line in lines[1:8]}
    assert {"majority", "TF-IDF", "untrained", "trained"} < rows.keys()
    assert rows["TF-IDF"].split()[:2] == ["1", "100.0"]  # words of their own give the classes away
    assert rows["untrained"].split()[0] == "2"
    truth = [record["label"] for record in map(json.loads, (files / "test.jsonl").read_text().splitlines())]
    content = json.loads((tmp_path / "out" / "finetune.json").read_text())
    predicted = outcome(tmp_path / "out", "trained-0")["test"]
    right = np.mean([content["classes"][index] == label for index, label in zip(predicted, truth, strict=True)])
    assert content["results"]["trained"]["accuracy"]["value"] == pytest.approx(right)
    assert content["results"]["majority"]["accuracy"]["value"] < 0.8
    assert "two standard errors" in lines[-2]


@pytest.mark.parametrize("pair", [[], ["--pair_key", "other"]], ids=["one text", "two texts"])
def test_the_saved_head_of_a_frozen_layer_gives_the_same_predictions(
    run_dir: Path, files: Path, tmp_path: Path, pair: list[str]
) -> None:
    arguments = given(run_dir, files, tmp_path / "out", *FROZEN, "--layer", "1", *pair)
    assert verb("finetune", *arguments).returncode == 0
    head = json.loads((tmp_path / "out" / "model" / "head.json").read_text())
    records = [*map(json.loads, (files / "test.jsonl").read_text().splitlines())]
    model = mlm_dist.load(run_dir, "cpu")
    first, second = (model.embed([r[key] for r in records], layer=head["layer"]) for key in ("text", "other"))
    features = np.concatenate([first, second, abs(first - second), first * second], 1) if pair else first
    found = predict(np.array(head["weight"]), np.array(head["bias"]), features, len(head["classes"]))
    assert (head["layer"], head["classes"]) == (1, ["land", "sea"])
    assert found.tolist() == outcome(tmp_path / "out", "trained-0")["test"]


@pytest.mark.parametrize(
    "task", [[], ["--pair_key", "other"], ["--score", "--label_key", "score"]], ids=["classes", "pairs", "scores"]
)
def test_transformers_loads_the_fine_tuned_model_with_the_same_predictions(
    run_dir: Path, files: Path, tmp_path: Path, task: list[str]
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    result = verb("finetune", *given(run_dir, files, tmp_path / "out", *FULL, *task))
    assert result.returncode == 0, result.stderr
    content = json.loads((tmp_path / "out" / "finetune.json").read_text())
    folder = tmp_path / "out" / "model"
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    records = [*map(json.loads, (files / "test.jsonl").read_text().splitlines())]
    texts = [[record["text"] for record in records], *([[r["other"] for r in records]] if "--pair_key" in task else [])]
    with torch.no_grad():
        logits = model(**tokenizer(*texts, truncation=True, padding=True, return_tensors="pt")).logits
    expected = outcome(tmp_path / "out", f"trained-{content['model_seed']}")["test"]
    if "--score" in task:
        assert logits[:, 0].tolist() == pytest.approx(expected, abs=1e-5)
        assert content["results"]["trained"].keys() >= {"Spearman"}
    else:
        assert [model.config.id2label[index] for index in logits.argmax(1).tolist()] == [
            content["classes"][index] for index in expected
        ]
        assert model.config.id2label == {0: "land", 1: "sea"}


def test_a_repeated_command_continues_with_what_is_missing(run_dir: Path, files: Path, tmp_path: Path) -> None:
    arguments = given(run_dir, files, tmp_path / "out", *FULL)
    first = verb("finetune", *arguments)
    table = (tmp_path / "out" / "finetune.json").read_bytes()
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "outcomes").iterdir()}
    (tmp_path / "out" / "finetune.json").unlink()
    removed = tmp_path / "out" / "outcomes" / "trained-1.json"
    removed.unlink()
    second = verb("finetune", *arguments)
    assert (second.returncode, second.stdout) == (0, first.stdout), second.stderr
    assert (tmp_path / "out" / "finetune.json").read_bytes() == table
    assert [file for file, before in kept.items() if file.stat().st_mtime_ns != before] == [removed]
    fewer = verb("finetune", *arguments, "--seeds", "1")
    assert fewer.returncode == 2
    assert "has results of 2 seeds: raise --seeds, or give another --out" in fewer.stderr


def test_results_of_other_settings_are_refused(run_dir: Path, files: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert verb("finetune", *given(run_dir, files, out, *FROZEN)).returncode == 0
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    for others, message in (
        (["--layer", "1"], "has results of layer 2, not 1: use the same values, or another --out"),
        (["--step", "10"], "has results of the parameters (SHA-256) '"),
        (["--method", "full"], "has results of method 'frozen', not 'full'"),
    ):
        result = verb("finetune", *given(run_dir, files, out, *FROZEN, *others))
        assert (result.returncode, result.stderr.count("\n")) == (2, 1)
        assert message in result.stderr
    result = verb("finetune", *given(run_dir, files, files))
    assert "already exists, and is not of finetune: choose another --out" in result.stderr
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before


def test_without_dev_and_test_files_parts_are_held_out(run_dir: Path, files: Path, tmp_path: Path) -> None:
    train = tmp_path / "train.txt"
    records = map(json.loads, (files / "train.jsonl").read_text().splitlines())
    train.write_text("".join(f"{record['label']} {record['text']}\n" for record in records))
    arguments = ("--run", run_dir, "--train", train, "--out", tmp_path / "out", *FROZEN, "--json")
    content = json.loads(verb("finetune", *arguments).stdout)
    assert content["examples"] == {"train": 48, "dev": None, "test": 12}
    assert content["results"]["TF-IDF"]["seeds"] == 2


@pytest.mark.parametrize("kind", ["class", "score"])
def test_a_seed_that_leaves_one_class_or_score_to_learn_from_is_refused_first(
    run_dir: Path, files: Path, tmp_path: Path, kind: str
) -> None:
    train = tmp_path / "train.txt"
    others = ["--score"] if kind == "score" else []
    labels = ["2" if index == 3 else "1" for index in range(20)]
    train.write_text("".join(f"{label} text {index}\n" for index, label in enumerate(labels)))
    arguments = ["--run", str(run_dir), "--train", str(train), "--out", str(tmp_path / "out"), "--seeds", "40"]
    (tmp_path / "test.txt").write_text("1 text\n2 text\n")
    result = verb("finetune", *arguments, "--test", tmp_path / "test.txt", *others)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert f"one {kind} only: give more texts, or --dev" in result.stderr
    assert not (tmp_path / "out").exists()


def test_test_texts_that_are_dev_texts_are_counted(run_dir: Path, files: Path, tmp_path: Path) -> None:
    dev, out = files / "dev.jsonl", tmp_path / "out"
    result = verb("finetune", *given(run_dir, files, out, *FROZEN, "--test", str(dev)))
    assert "20 of 20 test texts are also training or dev texts: the metrics are inflated" in result.stderr


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_processes_fine_tune_as_one(run_dir: Path, files: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    for processes in (1, 2):
        out = tmp_path / str(processes)
        result = torchrun(processes, *given(run_dir, files, out, *FULL, "--seeds", "1"), verb="finetune")
        assert result.returncode == 0, result.stderr
    one, two = (load_file(tmp_path / str(processes) / "model" / "model.safetensors") for processes in (1, 2))
    assert one.keys() == two.keys()
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-4
    assert outcome(tmp_path / "1", "trained-0") == outcome(tmp_path / "2", "trained-0")


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.multiprocess
def test_linear_probes_under_torchrun_are_refused(run_dir: Path, files: Path, tmp_path: Path) -> None:
    refused = torchrun(2, *given(run_dir, files, tmp_path / "out"), verb="finetune")
    assert "--method frozen needs one process" in refused.stderr
    assert not (tmp_path / "out").exists()


def test_without_scikit_learn_a_line_says_how_to_install_it(
    run_dir: Path, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)  # as if it were not installed
    result = verb("finetune", *given(run_dir, files, tmp_path / "out"))
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "finetune needs scikit-learn: run `pip install 'mlm_dist[finetune]'`" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train", "nowhere.csv"], "nowhere.csv: No such file or directory"),
        (["--label_key", "class"], "line 1: there is no 'class' among its fields text, other, label, score"),
        (["--score"], "line 1: the score land is not a number"),
        (["--test", "UNKNOWN"], "unknown.txt line 1: the label air is not in the training file, which has land, sea"),
        (["--train", "ONE"], "one.txt: all its texts have the label sea: there is nothing to learn"),
        (["--train", "EMPTY"], "empty.csv line 3: its text: it is empty"),
        (["--layer", "3"], "--layer is 3: it must be from 0, the embeddings, to 2"),
        (["--layer", "1", "--method", "full"], "--layer needs --method frozen"),
        (["--seeds", "0"], "--seeds is 0: it must be at least 1"),
        (["--method", "full", "--lr", "nan"], "--lr is nan: it must be above 0 and at most 1"),
        (["--method", "full", "--lr", "1e38"], "--lr is 1e+38: it must be above 0 and at most 1"),
        (["--label_key", "text"], "train.jsonl has 60 different labels: are they scores (--score)?"),
        (["--score", "--label_key", "score", "--test", "EQUAL"], "equal.jsonl: the test set has one score only"),
        (["--score", "--label_key", "score", "--dev", "EQUAL"], "equal.jsonl: the dev set has one score only"),
        (["--lr", "nan"], "--lr needs --method full"),
        (["--run_dir", "tests"], "tests is not a run directory"),
        (["--encoding", "utf-9"], "'utf-9' is not a text encoding: give one such as"),
    ],
)
def test_a_user_error_is_one_line_and_nothing_is_written(
    run_dir: Path, files: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "unknown.txt").write_text("air a cloud\n")
    (tmp_path / "one.txt").write_text("sea a wave\n" * 20)
    (tmp_path / "empty.csv").write_text('text,label\na wave,sea\n" ",land\n')
    (tmp_path / "equal.jsonl").write_text('{"text": "a wave", "score": 2}\n' * 5)
    paths = {"UNKNOWN": "unknown.txt", "ONE": "one.txt", "EMPTY": "empty.csv", "EQUAL": "equal.jsonl"}
    changed = [str(tmp_path / paths[argument]) if argument in paths else argument for argument in arguments]
    result = verb("finetune", *given(run_dir, files, tmp_path / "out", *changed))
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
    assert message in result.stderr
    assert not (tmp_path / "out").exists()
