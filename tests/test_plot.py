"""Plots and reports of runs as a user creates them."""

import json
import shutil
from pathlib import Path

import matplotlib.image
import pytest

from tests.conftest import verb

pytestmark = pytest.mark.slow

PLOTS = ["curves.png", "curves.svg", "attention.png", "attention.svg", "neighbours.png", "neighbours.svg"]
PAGE = "report.html"


@pytest.fixture
def run(run_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny run that a test may write into."""
    return Path(shutil.copytree(run_dir, tmp_path / "tiny"))


def test_a_run_gets_its_plots_and_its_report(run: Path) -> None:
    result = verb("plot", "--run", run, "--attention", "The [MASK] lamp", "--neighbours", "the", "ferryman")
    assert (result.returncode, result.stderr) == (0, "")
    written = [run / "plots" / name for name in [*PLOTS, PAGE]]
    assert result.stdout.splitlines() == [str(path) for path in written]
    assert sorted((run / "plots").iterdir()) == sorted(written)
    for path in written:
        if path.suffix == ".png":
            assert matplotlib.image.imread(path)[..., :3].std() > 0.05
    assert "block 1, head 1" in (run / "plots" / "attention.svg").read_text(encoding="utf-8")
    assert "ferryman" in (run / "plots" / "neighbours.svg").read_text(encoding="utf-8")
    assert "He was a very <mark>MASK</mark> man." in (run / "plots" / PAGE).read_text(encoding="utf-8")


def test_several_runs_are_plotted_in_the_same_axes(run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "other" / "tiny")
    result = verb("plot", "--run", run, "--run", other, "--out", tmp_path / "out")
    assert (result.returncode, result.stderr) == (0, "")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["curves.png", "curves.svg"]
    curves = (tmp_path / "out" / "curves.svg").read_text(encoding="utf-8")
    assert f">{tmp_path.name}/tiny<" in curves
    assert ">other/tiny<" in curves


def test_the_report_shows_the_given_texts(run: Path, tmp_path: Path) -> None:
    result = verb("plot", "--run", run, "--out", tmp_path / "a" / "b", "--fill", "A [MASK]", "<&>[MASK]")
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "a" / "b" / PAGE).read_text(encoding="utf-8")
    assert "A <mark>MASK</mark>" in page
    assert "&lt;&amp;&gt;<mark>MASK</mark>" in page
    assert page.count('class="candidate"') == 10


def test_a_run_without_parameters_has_curves_and_a_report_that_gives_the_reason(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "model.pth").unlink()
    result = verb("plot", "--run", run)
    assert result.returncode == 0, result.stderr
    assert "contains neither model.pth nor a checkpoint yet" in (run / "plots" / PAGE).read_text(encoding="utf-8")
    for flags in (["--attention", "The"], ["--neighbours", "the"], ["--fill", "A [MASK]"]):
        result = verb("plot", "--run", run, *flags)
        assert result.returncode == 2
        assert "contains neither model.pth nor a checkpoint yet" in result.stderr


def test_the_report_shows_the_results_of_probe_and_finetune(run: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text("The lamp went out.\nThe lamp out went.\nNobody saw it.\nNobody it saw.\n")
    (tmp_path / "train.txt").write_text("sea the wave and the sail\nland the farm and the hill\n" * 15)
    probe = ("probe", "--run", run, "--pairs", tmp_path / "pairs.txt", "--good_line", "first", "--device", "cpu")
    printed = verb(*probe, "--within_word", "--json").stdout
    (tmp_path / "within.json").write_text(printed)
    assert verb(*probe, "--step", "all").returncode == 0
    labelled = ("--train", tmp_path / "train.txt", "--out", tmp_path / "sea or land", "--seeds", "1", "--device", "cpu")
    assert verb("finetune", "--run", run, *labelled).returncode == 0
    results = ("--results", tmp_path / "within.json", tmp_path / "sea or land")
    result = verb("plot", "--run", run, *results, "--device", "cpu")
    assert (result.returncode, result.stderr) == (0, "")
    page = (run / "plots" / PAGE).read_text(encoding="utf-8")
    assert page.index("Minimal pairs</h2>") < page.index("Labelled tasks</h2>")
    assert "One token masked at a time" in page
    assert "Each token masked together with the rest of its word" in page
    assert f"<td>{100 * json.loads(printed)['overall']['summed']['value']:.1f}<" in page
    assert page.count('alt="Accuracy on ') == 2  # all pairs and one phenomenon, of the three steps
    table = json.loads((tmp_path / "sea or land" / "finetune.json").read_text())
    assert f"<td>{100 * table['trained_minus']['untrained']['accuracy']['value']:+.1f}<" in page
    assert "<mark>note</mark>" not in page
    earlier = verb("plot", "--run", run, *results, "--device", "cpu", "--step", "10")
    warning = (
        "finetune.json: measured with parameters other than those on this page: of another step, or of another run"
    )
    assert (earlier.returncode, earlier.stderr.count("\n")) == (0, 2)  # and within.json is of the final step
    assert warning in earlier.stderr
    assert "<mark>note</mark> measured with parameters other than those on this page" in (
        run / "plots" / PAGE
    ).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run", "nowhere"], "nowhere is not a run directory: there is no such folder"),
        (["--run", "tests"], "tests is not a run directory: it contains no metrics.jsonl"),
        (["--run", "RUN", "--attention", "a" * 400], "tokens, but the context window is 16: use a shorter text"),
        (["--run", "RUN", "--neighbours", "the", ""], "--neighbours: a word is empty"),
        (["--run", "RUN", "--fill", "no mask"], "the text contains no [MASK]: no mask"),
        (["--run", "RUN", "--out", "setup.cfg"], "setup.cfg cannot be written: File exists"),
        (["--run", "RUN", "OTHER"], "2 runs are given: set --out to a folder for their plot"),
        (["--run", "RUN", "RUN", "--out", "OUT"], "is given twice"),
        (
            ["--run", "RUN", "OTHER", "--out", "OUT", "--attention", ""],
            "--attention works for a single run, but 2 are given",
        ),
        (["--run", "RUN", "OTHER", "--out", "OUT", "--neighbours", "the"], "--neighbours works for a single run"),
        (["--run", "RUN", "OTHER", "--out", "OUT", "--fill", "[MASK]"], "--fill works for a single run"),
        (
            ["--run", "RUN", "OTHER", "--out", "OUT", "--results", "x"],
            "--results works for a single run, but 2 are given",
        ),
        (["--run", "RUN", "--results", "nowhere.json"], "nowhere.json: No such file or directory"),
        (
            ["--run", "RUN", "--results", "tests"],
            "tests/finetune.json: No such file or directory: `finetune` writes it to",
        ),
        (["--run", "RUN", "--results", "setup.cfg"], "setup.cfg is damaged, or not a result of `probe` or `finetune`"),
        (["--runs", "RUN"], "--run"),
        ([], "--run"),
    ],
)
def test_a_user_error_is_reported_in_one_line_and_nothing_is_written(
    run: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    before = sorted(tmp_path.rglob("*"))
    paths = {"RUN": run, "OTHER": tmp_path, "OUT": tmp_path / "out"}
    result = verb("plot", *[paths.get(argument, argument) for argument in arguments])
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_empty_metrics_are_reported(run: Path) -> None:
    (run / "metrics.jsonl").write_text("")
    result = verb("plot", "--run", run)
    assert result.returncode == 2
    assert "metrics.jsonl has no events yet: neither a step nor an evaluation" in result.stderr


def test_help_has_an_example() -> None:
    result = verb("plot", "--help")
    assert result.returncode == 0
    assert "Example: python -m mlm_dist.plot --run runs/novels" in result.stdout
