"""Reading the results of `probe` and `finetune`, whatever is in the files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlm_dist.errors import UserError
from mlm_dist.inference.probe_report import to_json
from mlm_dist.plots.result_files import read_result
from tests.plots.measured import probe_at, write_task

Change = Callable[[Any], None]

PROBES = [probe_at(10, 0.25, "order"), probe_at(20, 0.75, "order")]
OTHER = "is damaged, or from another version of "


def set_at(*place: str | int, value: Any) -> Change:
    """Set a value inside the content of a file."""

    def change(content: Any) -> None:
        for key in place[:-1]:
            content = content[key]
        content[place[-1]] = value

    return change


def drop(*place: str | int) -> Change:
    """Delete a key inside the content of a file."""

    def change(content: Any) -> None:
        for key in place[:-1]:
            content = content[key]
        del content[place[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("settings", "method"), f"{OTHER}`finetune`: there is no 'method'"),
        (drop("trained_minus", "untrained"), f"{OTHER}`finetune`: there is no 'untrained'"),
        (drop("results", "trained"), f"{OTHER}`finetune`: there is no 'trained'"),
        (drop("results", "trained", "Matthews"), f"{OTHER}`finetune`: there is no 'Matthews'"),
        (drop("trained_minus"), "is not a result of `probe` or `finetune`"),
        (set_at("trained_minus", "untrained", value={}), f"{OTHER}`finetune`: there is no 'accuracy'"),
        (drop("results", "untrained"), f"{OTHER}`finetune`: there is no 'untrained'"),
        (set_at("trained_minus", "x" * 3000, value={}), f"{OTHER}`finetune`: there is no 'xxx"),
        (
            set_at("trained_minus", "untrained", "accuracy", "standard_error", value=-1.0),
            f"{OTHER}`finetune`: gains.untrained.accuracy.standard_error",
        ),
        (set_at("results", value=[1]), f"{OTHER}`finetune`: its values have the wrong types"),
        (set_at("settings", "method", value="<b>"), f"{OTHER}`finetune`: method: Input should be 'frozen' or 'full'"),
        (set_at("examples", "test", value=0), f"{OTHER}`finetune`: examples.test: "),
        (
            set_at("results", "trained", "accuracy", "low", value="1"),
            f"{OTHER}`finetune`: estimates.trained.accuracy.low",
        ),
        (
            set_at("results", "trained", "accuracy", "low", value=float("inf")),
            f"{OTHER}`finetune`: estimates.trained.accuracy.low: Input should be a finite number",
        ),
    ],
)
def test_a_damaged_table_of_a_task_is_one_line(tmp_path: Path, change: Change, message: str) -> None:
    file = write_task(tmp_path) / "finetune.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    assert message in error_of(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop(0, "overall"), "is not a result of `probe` or `finetune`"),
        (set_at(0, "step", value=True), f"{OTHER}`probe`: step: Input should be a valid integer"),
        (set_at(0, "overall", "summed", "value", value=1.5), f"{OTHER}`probe`: overall.summed.value: "),
        (set_at(0, "overall", "summed", "value", value=float("nan")), f"{OTHER}`probe`: overall.summed.value: "),
        (set_at(0, "version", value=2), f"{OTHER}`probe`: version: Extra inputs are not permitted"),
        (set_at(0, "a\nb" * 100, value=2), f"{OTHER}`probe`: a\\nb"),
        (set_at(1, "within_word", value=True), "must be of the same pairs, scored in the same way"),
        (set_at(1, "step", value=10), "must be in ascending order of step"),
        (set_at(0, "step", value=None), "must be in ascending order of step"),
        (set_at(1, "step", value=None), "must be in ascending order of step"),
        (set_at(1, "step", value=10**30), f"{OTHER}`probe`: step"),
        (set_at(1, "phenomena", value={}), "must be of the same pairs, scored in the same way"),
        (set_at(1, "phenomena", "order", "pairs", value=5), "must be of the same pairs, scored in the same way"),
        (set_at(1, value=5), "it contains something other than JSON objects"),
    ],
)
def test_damaged_accuracies_on_minimal_pairs_are_one_line(tmp_path: Path, change: Change, message: str) -> None:
    content = [to_json(probe) for probe in PROBES]
    change(content)
    (tmp_path / "probe.json").write_text(json.dumps(content))
    assert message in error_of(tmp_path / "probe.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged, or not a result of `probe` or `finetune`: it is not JSON at line 1, column 1"),
        (b"[]", "is not a result of `probe` or `finetune`"),
        (b"{}", "is not a result of `probe` or `finetune`"),
        (b"5", "it contains something other than JSON objects"),
        (b'{"overall": 1}\n{"overall": \n', "it is not JSON at line 2"),
        (b'{\n "overall": 1,\n', "it is not JSON at line 3"),
        (b'{"loss": 3.2}', "is not a result of `probe` or `finetune`"),
        (b"\xff\xfe", "it is not UTF-8"),
        (b'[{"trained_minus": 1}, {"trained_minus": 1}]', "it has several results: give one file for each"),
        (b'{"overall": ' + b"9" * 5000 + b"}", "a number in it has too many digits"),
        (b"[" * 100_000, "it is nested too deeply"),
    ],
)
def test_a_file_of_another_kind_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "file").write_bytes(content)
    assert message in error_of(tmp_path / "file")


def error_of(file: Path) -> str:
    """The one line about a file, which it begins with."""
    with pytest.raises(UserError) as raised:
        read_result(file)
    line = str(raised.value)
    assert line.startswith(str(file))
    assert "\n" not in line
    assert len(line) < len(str(file)) + 250
    return line
