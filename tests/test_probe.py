"""`python -m mlm_dist.probe`, run from the command line."""

import json
import shutil
from pathlib import Path

import pytest

import mlm_dist
from mlm_dist.texts.minimal_pairs import PairFormat, read_pairs
from tests.conftest import torchrun, verb

PAIRS = [
    ("The lamp went out.", "The lamp out went.", "order"),
    ("Nobody saw it.", "Nobody it saw.", "order"),
    ("He came in.", "He come in, unbelievably, under the harbour wall.", "agreement"),
    ("Aunt Zoë was seen.", "Aunt Zoë was slept.", "passive"),
]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A folder with two files."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    for name, part in (("one.jsonl", PAIRS[:3]), ("two.jsonl", PAIRS[2:])):
        records = [dict(zip(("sentence_good", "sentence_bad", "UID"), pair, strict=True)) for pair in part]
        (folder / name).write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return folder


def test_accuracies_are_printed_by_phenomenon_by_file_and_over_all(run_dir: Path, pairs: Path) -> None:
    arguments = ("--run", run_dir, "--pairs", pairs, "--phenomenon_key", "UID", "--within_word")
    printed = verb("probe", *arguments).stdout
    found = json.loads(verb("probe", *arguments, "--json").stdout)
    read = read_pairs([pairs], PairFormat(phenomenon_key="UID"))
    expected = mlm_dist.load(run_dir, "cpu").probe(read, within_word=True)
    assert (found["step"], found["within_word"], found["long_sentences"]) == (30, True, 2)
    assert found["phenomena"].keys() == {"order", "agreement", "passive"}
    assert found["files"].keys() == {"one", "two"}
    assert found["files"]["two"]["per_token"]["value"] == expected.files["two"].per_token.value
    assert found["overall"]["summed"] == expected.overall.summed._asdict()
    lines = {line[:10].strip(): line[10:].split() for line in printed.splitlines()}
    assert {"phenomenon", "order", "file", "one", "two", "all pairs"} <= lines.keys()
    assert lines["all pairs"][:2] == ["5", f"{100 * expected.overall.summed.value:.1f}"]
    assert "sentences of more than 16 tokens: 2; each of their tokens is predicted from a window of 16" in printed


def test_the_learning_curves_of_all_checkpoints_are_written(run_dir: Path, pairs: Path, tmp_path: Path) -> None:
    result = verb("probe", "--run", run_dir, "--pairs", pairs, "--step", "all", "--out", tmp_path / "out")
    assert (result.returncode, result.stderr) == (0, "")
    *lines, table, png, svg = result.stdout.splitlines()
    assert [line.split()[1] for line in lines] == ["10", "20", "30"]
    assert [table, png, svg] == [str(tmp_path / "out" / f"probe.{kind}") for kind in ("json", "png", "svg")]
    curves = json.loads(Path(table).read_text())
    assert [probe["step"] for probe in curves] == [10, 20, 30]
    alone = json.loads(verb("probe", "--run", run_dir, "--pairs", pairs, "--step", "20", "--json").stdout)
    assert curves[1] == alone


def test_checkpoints_that_cannot_be_loaded_are_left_out_of_the_learning_curves(
    run_dir: Path, pairs: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(run_dir, tmp_path / "run"))
    shutil.rmtree(run / "plots", ignore_errors=True)
    (run / "checkpoints/step-00000020/state.pt").write_bytes(b"damaged")
    result = verb("probe", "--run", run, "--pairs", pairs, "--step", "all", "--json")
    assert result.returncode == 0
    assert [json.loads(line)["step"] for line in result.stdout.splitlines()] == [10, 30]
    assert [probe["step"] for probe in json.loads((run / "plots/probe.json").read_text())] == [10, 30]
    assert "step 20 is left out: " in result.stderr
    for step in (10, 30):
        (run / f"checkpoints/step-{step:08}/state.pt").write_bytes(b"damaged")
    result = verb("probe", "--run", run, "--pairs", pairs, "--step", "all")
    assert result.returncode == 2
    assert "run: none of its checkpoints can be loaded" in result.stderr


@pytest.mark.slow
@pytest.mark.multiprocess
def test_the_results_do_not_depend_on_the_world_size(run_dir: Path, pairs: Path) -> None:
    arguments = ("--run_dir", run_dir, "--pairs", pairs, "--json")
    one_process = verb("probe", *arguments)
    assert one_process.returncode == 0, one_process.stderr
    several_processes = torchrun(2, *arguments, verb="probe")
    assert several_processes.stdout == one_process.stdout, several_processes.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pairs", "nowhere.jsonl"], "nowhere.jsonl: there is no such file or folder"),
        (["--pairs", ""], "argument --pairs: it is empty"),
        ([], "--pairs"),
        (
            ["--pairs", "PAIRS", "--good_key", "good"],
            "one.jsonl line 1: there is no 'good' among its fields sentence_go",
        ),
        (["--pairs", "PAIRS", "--out", "out"], "--out needs --step all"),
        (["--pairs", "PAIRS", "--step", "al"], "it is al: give the step of a checkpoint, best, newest or all"),
        (["--pairs", "PAIRS", "--step", "7"], "has no checkpoint of step 7; it has those of 10, 20, 30"),
        (["--pairs", "PAIRS", "--step", "all", "--out", "setup.cfg"], "setup.cfg cannot be written: File exists"),
        (["--pairs", "PAIRS", "--step", "all", "--run", "tests"], "tests is not a run directory"),
    ],
)
def test_a_user_error_is_one_line(run_dir: Path, pairs: Path, arguments: list[str], message: str) -> None:
    result = verb("probe", "--run", run_dir, *[str(pairs) if a == "PAIRS" else a for a in arguments])
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
