"""The results of `probe` and `finetune` that the report of a run shows."""

import json
from pathlib import Path

import pytest

from mlm_dist.inference.probe_report import to_json
from mlm_dist.plots.probes import save_probes
from mlm_dist.plots.results import NO_RESULTS, Curve, read_results
from tests.plots.measured import probe_at, write_task

PROBES = [probe_at(10, 0.25, "order", long_sentences=3), probe_at(1200, 0.75, "order", long_sentences=3)]


def curves(run: Path, *paths: Path) -> list[Curve]:
    return [*read_results(run, paths, "").curves]


def test_a_list_and_json_lines_are_one_learning_curve(tmp_path: Path) -> None:
    (tmp_path / "lines").write_text("".join(f"{json.dumps(to_json(probe))}\r\n" for probe in PROBES))
    (tmp_path / "list").write_text(json.dumps([to_json(probe) for probe in PROBES], indent=1))
    lines, listed = curves(tmp_path, tmp_path / "lines", tmp_path / "list")
    assert lines._replace(source="") == listed._replace(source="")
    assert [chart.title for chart in lines.charts] == ["all pairs", "order"]
    assert lines.groups == [("all pairs", PROBES[1].overall), ("order", PROBES[1].overall)]
    assert lines.remark.startswith(
        "Step 1,200, the last of 2. Sentences of more tokens than the model reads at once: 3;"
    )


@pytest.mark.parametrize(("step", "remark"), [(30, "Step 30."), (None, "Step unknown.")])
def test_a_single_step_has_no_charts(tmp_path: Path, step: int | None, remark: str) -> None:
    (tmp_path / "one.json").write_text(json.dumps(to_json(probe_at(step, 0.5, "order"))))
    (found,) = curves(tmp_path, tmp_path / "one.json")
    assert (found.charts, found.remark) == ([], remark)


def test_the_learning_curves_in_the_run_are_read_unnamed_and_once(tmp_path: Path) -> None:
    assert read_results(tmp_path, [], "") == NO_RESULTS._replace(curves=[], tasks=[])
    for within_word in (False, True):
        save_probes(tmp_path / "plots", [probe_at(10, 0.5, "order", within_word=within_word)])
    plain, within = curves(tmp_path, tmp_path / "plots" / ".." / "plots" / "probe.json")
    assert plain.scoring == "Each token is masked alone"
    assert within.scoring == "With each token, the tokens that follow in the same word are masked too"


@pytest.mark.parametrize(
    ("is_score", "names"),
    [
        (
            False,
            ["trained encoder", "untrained encoder", "TF-IDF + logistic regression", "majority (most frequent class)"],
        ),
        (True, ["trained encoder", "untrained encoder", "TF-IDF + ridge regression", "majority (mean score)"]),
    ],
)
def test_the_rows_of_a_task_are_named_by_what_learned(tmp_path: Path, is_score: bool, names: list[str]) -> None:
    folder = write_task(tmp_path / "sea", "majority", "TF-IDF", is_score=is_score)
    (task,) = read_results(tmp_path, [folder], "digest").tasks
    assert [row.name for row in task.rows] == names
    assert [row.name for row in task.gains] == ["trained − untrained", "trained − TF-IDF", "trained − majority"]
    assert task.metrics == (["Spearman"] if is_score else ["accuracy", "macro-F1", "Matthews"])
    assert task.name == "sea"


@pytest.mark.parametrize(
    ("sha256", "doubt"),
    [
        ("digest", ""),
        ("other", "measured with other parameters than this page shows"),
        ("", "measured with parameters that cannot be compared"),
    ],
)
def test_a_task_that_may_be_of_another_model_is_marked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sha256: str, doubt: str
) -> None:
    (task,) = read_results(tmp_path, [write_task(tmp_path / "sea")], sha256).tasks
    assert task.doubt.startswith(doubt)
    assert bool(task.doubt) == bool(doubt)
    assert capsys.readouterr().err.count("finetune.json: measured with") == bool(doubt)
