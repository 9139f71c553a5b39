"""Pictures and pages of runs as a person makes them."""

import shutil
from pathlib import Path

import matplotlib.image
import pytest

from tests.conftest import verb

PICTURES = ["curves.png", "curves.svg", "attention.png", "attention.svg", "neighbours.png", "neighbours.svg"]
PAGE = "report.html"


@pytest.fixture
def run(run_dir: Path, tmp_path: Path) -> Path:
    """The tiny run, to be written into."""
    return Path(shutil.copytree(run_dir, tmp_path / "tiny"))


def test_a_run_gets_its_pictures_and_its_page(run: Path) -> None:
    result = verb("plot", "--run", run, "--attention", "The [MASK] lamp", "--neighbours", "the", "ferryman")
    assert (result.returncode, result.stderr) == (0, "")
    written = [run / "plots" / name for name in [*PICTURES, PAGE]]
    assert result.stdout.splitlines() == [str(path) for path in written]
    assert sorted((run / "plots").iterdir()) == sorted(written)
    for path in written:
        if path.suffix == ".png":
            assert matplotlib.image.imread(path)[..., :3].std() > 0.05
    assert "block 1, head 1" in (run / "plots" / "attention.svg").read_text(encoding="utf-8")
    assert "ferryman" in (run / "plots" / "neighbours.svg").read_text(encoding="utf-8")
    assert "He was a very <mark>MASK</mark> man." in (run / "plots" / PAGE).read_text(encoding="utf-8")


def test_several_runs_are_laid_over_each_other(run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "other" / "tiny")
    result = verb("plot", "--run", run, "--run", other, "--out", tmp_path / "out")
    assert (result.returncode, result.stderr) == (0, "")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["curves.png", "curves.svg"]
    curves = (tmp_path / "out" / "curves.svg").read_text(encoding="utf-8")
    assert f">{tmp_path.name}/tiny<" in curves
    assert ">other/tiny<" in curves


def test_the_page_has_the_sentences_that_were_given(run: Path, tmp_path: Path) -> None:
    result = verb("plot", "--run", run, "--out", tmp_path / "a" / "b", "--fill", "A [MASK]", "<&>[MASK]")
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "a" / "b" / PAGE).read_text(encoding="utf-8")
    assert "A <mark>MASK</mark>" in page
    assert "&lt;&amp;&gt;<mark>MASK</mark>" in page
    assert page.count('class="candidate"') == 10


def test_a_run_without_weights_yet_has_curves_and_a_page_that_says_so(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "model.pth").unlink()
    result = verb("plot", "--run", run)
    assert result.returncode == 0, result.stderr
    assert "holds neither model.pth nor a checkpoint yet" in (run / "plots" / PAGE).read_text(encoding="utf-8")
    for question in (["--attention", "The"], ["--neighbours", "the"], ["--fill", "A [MASK]"]):
        result = verb("plot", "--run", run, *question)
        assert result.returncode == 2
        assert "holds neither model.pth nor a checkpoint yet" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--run", "nowhere"], "nowhere is no run directory: metrics.jsonl: No such file or directory"),
        (["--run", "tests"], "tests is no run directory: metrics.jsonl: No such file or directory"),
        (["--run", "RUN", "--attention", "a" * 400], "tokens and the model sees 16 at once: give less text"),
        (["--run", "RUN", "--neighbours", "the", ""], "--neighbours: a word is empty"),
        (["--run", "RUN", "--fill", "no mask"], "there is no [MASK] in the text: no mask"),
        (["--run", "RUN", "--out", "setup.cfg"], "setup.cfg cannot be written: File exists"),
        (["--run", "RUN", "OTHER"], "2 runs are given: say with --out where to put their picture"),
        (["--run", "RUN", "RUN", "--out", "OUT"], "is given twice"),
        (["--run", "RUN", "OTHER", "--out", "OUT", "--attention", ""], "--attention is for one run, and 2 are given"),
        (["--run", "RUN", "OTHER", "--out", "OUT", "--neighbours", "the"], "--neighbours is for one run"),
        (["--run", "RUN", "OTHER", "--out", "OUT", "--fill", "[MASK]"], "--fill is for one run"),
        (["--runs", "RUN"], "--run"),
        ([], "--run"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(
    run: Path, tmp_path: Path, arguments: list[str], complaint: str
) -> None:
    before = sorted(tmp_path.rglob("*"))
    places = {"RUN": run, "OTHER": tmp_path, "OUT": tmp_path / "out"}
    result = verb("plot", *[places.get(argument, argument) for argument in arguments])
    assert result.returncode == 2
    assert complaint in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_metrics_without_a_line_are_said(run: Path) -> None:
    (run / "metrics.jsonl").write_text("")
    result = verb("plot", "--run", run)
    assert result.returncode == 2
    assert "metrics.jsonl holds nothing yet: neither a step nor an evaluation" in result.stderr


def test_help_has_an_example() -> None:
    result = verb("plot", "--help")
    assert result.returncode == 0
    assert "Example: python -m mlm_dist.plot --run runs/novels" in result.stdout
