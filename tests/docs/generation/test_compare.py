import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import compare
import verbs
from mlm_dist.data.corpus import Corpus
from tests.conftest import start


@pytest.fixture
def calls(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The calls of a fake `run_command`, which generates training text and evaluates to a bound of 3.21."""
    calls = []

    def run_command(name: str, *arguments: str) -> list[dict[str, Any]]:
        calls.append((name, *arguments))
        if name == "evaluate":
            return [{"loss": 3.21}]
        values = dict(itertools.pairwise(arguments))
        tokens = np.asarray(corpus.train[: int(values["--length"])]).tolist()
        return [{"text": corpus.tokenizer.decode(tokens), "tokens": tokens}] * int(values["--samples"])

    monkeypatch.setattr(verbs, "run_command", run_command)
    return calls


@pytest.fixture
def options(judge_folder: Path, corpus_folder: Path) -> list[str]:
    return ["--judge", str(judge_folder), "--corpus", str(corpus_folder), "--samples=3", "--length=20"]


def test_all_texts_are_saved_and_compared(options: list[str], calls: list[tuple[str, ...]], tmp_path: Path) -> None:
    compare.main([*options, "--runs", "runs/plain", "runs/diffusion", "--out", str(tmp_path / "out")])
    rows = [line.split(" | ") for line in (tmp_path / "out" / "table.md").read_text(encoding="utf-8").splitlines()[2:]]
    methods = ["random order", "random order, top-p 0.9", "by confidence"]
    names = [
        "validation text",
        "unigram",
        "5-gram",
        *[f"{run}, {method}" for run in ("plain", "diffusion") for method in methods],
    ]
    assert [row[0].removeprefix("| ") for row in rows] == names
    assert [row[1] == "3.210" for row in rows] == [name.endswith("random order") for name in names]
    assert rows[0][1] == ""
    assert float(rows[2][1]) < float(rows[1][1])
    assert [row[-1] == "100.0% |" for row in rows] == [False] * 3 + [True] * 6
    lines = (tmp_path / "out" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    samples = [json.loads(line) for line in lines]
    assert [(sample["of"], sample["sample"]) for sample in samples] == [(name, i) for name in names for i in range(3)]
    assert {len(sample["tokens"]) for sample in samples} == {20}


def test_each_run_generates_texts_with_several_sampling_methods(
    options: list[str], calls: list[tuple[str, ...]], tmp_path: Path
) -> None:
    compare.main([*options, "--seed=7", "--runs", "runs/plain", "--out", str(tmp_path / "out")])
    sizes = ("generate", "--run", "runs/plain", "--samples", "3", "--length", "20", "--seed", "7")
    *generated, evaluated = calls
    assert generated == [
        (*sizes, "--order", "random", "--json"),
        (*sizes, "--order", "random", "--top_p", "0.9", "--json"),
        (*sizes, "--order", "confidence", "--json"),
    ]
    data = ("--data", options[3], "--mask_prob_range", "0", "1", "--json")
    assert evaluated == ("evaluate", "--run", "runs/plain", *data)


def test_the_seed_determines_the_texts(options: list[str], tmp_path: Path) -> None:
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        compare.main([*options, f"--seed={seed}", "--out", str(tmp_path / out)])
    a, b, c = ((tmp_path / out / "samples.jsonl").read_text(encoding="utf-8").splitlines() for out in "abc")
    assert a == b
    assert not set(a) & set(c)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--samples=0"], "--samples is 0: it must be at least 1"),
        (["--length=7"], "--length is 7: it must be at least 8"),
        (["--runs", "a/novels", "b/novels"], "--runs: two folders have the same name"),
        (["--judge=nowhere"], "nowhere contains no complete judge: train one with docs/generation/train_judge.py"),
        (["--samples=100000"], "passages of 20 tokens, but --samples is 100000: lower it"),
    ],
)
def test_a_user_error_is_one_line(options: list[str], wrong: list[str], message: str, tmp_path: Path) -> None:
    command = [sys.executable, "docs/generation/compare.py", *options, "--out", str(tmp_path / "out"), *wrong]
    result = start(command)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert not (tmp_path / "out").exists()
