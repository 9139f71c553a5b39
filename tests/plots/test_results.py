"""The results of `probe` and `finetune` that the report of a run shows."""

import json
from pathlib import Path

import pytest

from mlm_dist.inference.probe_report import to_json
from mlm_dist.plots.probes import save_probes
from mlm_dist.plots.results import NO_RESULTS, PairResults, Results, describe_results, read_results
from tests.plots.measured import probe_at, write_task

PROBES = [probe_at(10, 0.25, "order", long_sentences=3), probe_at(1200, 0.75, "order", long_sentences=3)]


def results(run: Path, *paths: Path, sha256: str = "digest", step: int | None = None) -> Results:
    return describe_results(read_results(run, paths), lambda: sha256, step)


def curves(run: Path, *paths: Path, step: int | None = None) -> list[PairResults]:
    return [*results(run, *paths, step=step).pairs]


def test_a_list_and_json_lines_are_one_learning_curve(tmp_path: Path) -> None:
    (tmp_path / "lines").write_text("".join(f"{json.dumps(to_json(probe))}\r\n" for probe in PROBES))
    (tmp_path / "list").write_text(json.dumps([to_json(probe) for probe in PROBES], indent=1))
    lines, listed = curves(tmp_path, tmp_path / "lines", tmp_path / "list")
    assert lines._replace(source="") == listed._replace(source="")
    assert [chart.title for chart in lines.charts] == ["all pairs", "order"]
    assert lines.groups == [("all pairs", PROBES[1].overall), ("order", PROBES[1].overall)]
    assert lines.remark.startswith("Step 1,200, one of 2 checkpoints. 3 sentences are longer than the context window;")


@pytest.mark.parametrize(("step", "remark"), [(30, "Step 30."), (None, "Step unknown.")])
def test_a_single_step_has_no_charts(tmp_path: Path, step: int | None, remark: str) -> None:
    (tmp_path / "one.json").write_text(json.dumps(to_json(probe_at(step, 0.5, "order"))))
    (found,) = curves(tmp_path, tmp_path / "one.json")
    assert (found.charts, found.remark) == ([], remark)


def test_the_learning_curves_in_the_run_are_read_unnamed_and_once(tmp_path: Path) -> None:
    assert results(tmp_path) == NO_RESULTS
    for within_word in (False, True):
        save_probes(tmp_path / "plots", [probe_at(10, 0.5, "order", within_word=within_word)])
    plain, within = curves(tmp_path, tmp_path / "plots" / ".." / "plots" / "probe.json")
    assert plain.scoring == "One token masked at a time"
    assert within.scoring == "Each token masked together with the rest of its word"


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
    (task,) = results(tmp_path, folder).tasks
    assert [row.name for row in task.rows] == names
    assert [row.name for row in task.gains] == ["trained − untrained", "trained − TF-IDF", "trained − majority"]
    assert task.metrics == (["Spearman"] if is_score else ["accuracy", "macro-F1", "Matthews"])
    assert task.name == "sea"
    assert task.source.endswith("/sea/finetune.json")


@pytest.mark.parametrize(
    ("sha256", "doubt"),
    [
        ("digest", ""),
        ("other", "measured with parameters other than those on this page"),
        ("", "cannot be checked against this run"),
    ],
)
def test_a_task_that_may_be_of_another_model_is_marked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sha256: str, doubt: str
) -> None:
    (task,) = results(tmp_path, write_task(tmp_path / "sea"), sha256=sha256).tasks
    assert task.doubt.startswith(doubt)
    assert bool(task.doubt) == bool(doubt)
    assert capsys.readouterr().err.count(f"finetune.json: {doubt or 'measured'}") == bool(doubt)


def test_the_results_are_those_of_the_step_of_the_parameters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list").write_text(json.dumps([to_json(probe) for probe in PROBES]))
    (first,) = curves(tmp_path, tmp_path / "list", step=10)
    assert (first.remark[:8], first.groups[0][1], first.doubt) == ("Step 10,", PROBES[0].overall, "")
    assert not capsys.readouterr().err
    (last,) = curves(tmp_path, tmp_path / "list", step=20)
    assert (last.remark[:11], last.doubt) == ("Step 1,200,", "this page shows the parameters of another step")
    assert capsys.readouterr().err.endswith("list: this page shows the parameters of another step\n")


def test_damaged_curves_of_the_run_itself_are_left_out_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "probe.json").write_text("{")
    assert results(tmp_path) == NO_RESULTS
    assert "probe.json is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "verdict"),
    [(0.3, "better by more than"), (-0.3, "WORSE by more than"), (0.1, "within"), (-0.1, "within")],
)
def test_a_gain_is_compared_with_two_standard_errors(tmp_path: Path, value: float, verdict: str) -> None:
    file = write_task(tmp_path / "sea") / "finetune.json"
    content = json.loads(file.read_text())
    content["trained_minus"]["untrained"]["accuracy"] |= {"value": value, "standard_error": 0.1}
    file.write_text(json.dumps(content))
    (task,) = results(tmp_path, file).tasks
    assert task.notes.gain.endswith(f"standard error 10.0: {verdict} two standard errors")


@pytest.mark.parametrize(("seeds", "over"), [(1, "over the 4 test texts"), (2, "over the seeds and the 4 test texts")])
def test_intervals_of_a_single_seed_are_over_the_texts_alone(tmp_path: Path, seeds: int, over: str) -> None:
    file = write_task(tmp_path / "sea") / "finetune.json"
    content = json.loads(file.read_text())
    for found in content["results"].values():
        found["seeds"] = seeds
    file.write_text(json.dumps(content))
    (task,) = results(tmp_path, file).tasks
    assert task.notes.units.endswith(over)


def test_a_file_that_is_named_twice_is_shown_once_and_parameters_are_read_only_for_tasks(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps(to_json(PROBES[0])))
    found = read_results(tmp_path, [tmp_path / "one.json", tmp_path / ".." / tmp_path.name / "one.json"])

    def digest() -> str:
        raise AssertionError("the parameters were read")

    assert len(describe_results(found, digest, None).pairs) == 1
