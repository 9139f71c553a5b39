"""`python -m mlm_dist.plan`: its text, and what it refuses."""

from pathlib import Path

import pytest

from mlm_dist.benchmarks.forecast import Forecast
from mlm_dist.config import Config, TrainConfig
from mlm_dist.plan import describe
from tests.conftest import tiny_flags, verb

PLAN = Forecast(
    parameters=16_000_000,
    rows_at_a_time=256,
    peak_memory=9 * 10**9,
    memory=8 * 10**9,
    most_rows=220,
    fitting_micro_batch_size=128,
    checkpoints=5,
    milestones=0,
    disk=10**9,
    tokens=81_920_000,
    rows_per_epoch=100_000,
    epochs=12.8,
    start=4.0,
    step=1.8,
    evaluation=3.1,
    checkpoint=0.1,
    total=9100.0,
)


def test_the_plan_says_what_fits() -> None:
    assert describe(PLAN, Config()).splitlines() == [
        "parameters  16,000,000",
        "peak memory 9.0 GB per process, with 256 rows at a time",
        "            up to 220 rows at a time fit into 8.0 GB: set train.micro_batch_size 128, with which the time is "
        "measured",
        "disk        1.0 GB for 5 checkpoints and the final parameters",
        "tokens      81,920,000 in 5,000 steps of 256 x 64",
        "epochs      12.80 of 100,000 rows",
        "time        2.53 hours: 1.8 seconds per step, 3.1 seconds per evaluation",
    ]
    assert "for 5 checkpoints, 2 milestones and the final" in describe(PLAN._replace(milestones=2), Config())
    assert "set train.micro_batch_size" not in describe(PLAN._replace(fitting_micro_batch_size=None), Config())
    with_phases = Config(train=TrainConfig(phases=[{"steps": 9, "batch_size": 64, "row_length": 64}]))
    assert "in 5,000 steps of 256 x 64, fewer rows at first\n" in describe(PLAN, with_phases)


def test_a_sweep_prints_and_plots_the_losses(corpus_folder: Path, tmp_path: Path) -> None:
    flags = [*tiny_flags(corpus_folder, tmp_path / "run", train__max_iters=8), "--sweep", "optim.lr=1e-4..1e-2"]
    result = verb("plan", *flags, "--out", tmp_path / "rates.svg")
    assert result.returncode == 0, result.stderr
    title, *rows, suggestion = result.stdout.splitlines()
    assert title == "optim.lr    validation loss after 8 steps"
    losses = {rate: float(loss) for rate, loss, *_ in map(str.split, rows)}
    assert list(losses) == ["0.0001", "0.000215", "0.000464", "0.001", "0.00215", "0.00464", "0.01"]
    best = min(losses, key=lambda rate: losses[rate])
    assert [row.endswith("  lowest") for row in rows] == [rate == best for rate in losses]
    assert suggestion == f"--optim.lr {best}"
    assert result.stderr.count("validation loss") == 7
    assert [path.name for path in tmp_path.iterdir()] == ["rates.svg"]
    assert "optim.lr" in (tmp_path / "rates.svg").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--processes", "0"], "--processes is 0: it must be at least 1"),
        (["--processes", "3"], "train.batch_size 16 cannot be split over 3 processes"),
        (["--data.path", "nowhere"], "there is no such corpus or text"),
        (["--optim.lrr", "1"], "did you mean optim.lr?"),
        (["--out", "lr.png"], "--out is the plot of --sweep: give both"),
        (["--sweep", "optim.lr=1e-2"], "'optim.lr=1e-2' is not a range such as optim.lr=1e-4..1e-2"),
        (["--sweep", "optim.lr=small..1e-2"], "is not a range such as"),
        (["--sweep", "seed=1..2"], "is not a range such as"),
        (["--sweep", "optim.lr=1e-2..1e-4"], "the rates must be above 0, the lower one first"),
        (["--sweep", "optim.lr=1e-4..inf"], "the rates must be above 0, the lower one first"),
        (["--sweep", "optim.muon_lr=1e-4..1e-2"], "optim.name is adamw, which has no such rate"),
        (["--sweep", "optim.lr=1e-4..1e-2", "--processes", "2"], "--sweep trains in one process"),
        (["--sweep", "optim.lr=1e-4..1e-2", "--out", "lr.pdf"], "'lr.pdf' must end in .png or .svg"),
        (["--sweep", "optim.lr=1e-4..1e-2", "--out", "nowhere/lr.png"], "there is no folder nowhere"),
    ],
)
def test_a_user_error_is_reported_in_one_line(
    flags: list[str], message: str, corpus_folder: Path, tmp_path: Path
) -> None:
    result = verb("plan", *tiny_flags(corpus_folder, tmp_path / "run"), *flags)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_sweep_does_not_ignore_init_from(run_dir: Path, corpus_folder: Path) -> None:
    flags = "--init_from", run_dir, "--data.path", corpus_folder, "--sweep", "optim.lr=1e-4..1e-2"
    result = verb("plan", *flags)
    assert result.returncode == 2
    assert "--sweep trains from random parameters: leave out init_from" in result.stderr
