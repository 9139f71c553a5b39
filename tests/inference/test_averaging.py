"""`average`: the mean of the last checkpoints and milestones is a run directory of its own."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import mlm_dist
from mlm_dist.data.preparation import SAMPLE_TEXT
from mlm_dist.errors import UserError
from mlm_dist.run.checkpoint import fingerprint, load_checkpoint, model_parameters, save_checkpoint
from tests.conftest import verb


@pytest.fixture
def run(run_dir: Path, tmp_path: Path) -> Path:
    """A finished run with checkpoints of steps 10 and 30, and milestones of 20 and 30."""
    copy = Path(shutil.copytree(run_dir, tmp_path / "run"))
    shutil.copytree(copy / "checkpoints/step-00000030", copy / "milestones/step-00000030")
    (copy / "checkpoints/step-00000020").rename(copy / "milestones/step-00000020")
    return copy


def test_the_mean_is_that_of_the_last_steps_in_fp64(run: Path, tmp_path: Path) -> None:
    random = {name: torch.randn_like(value) for name, value in mlm_dist.load(run, "cpu").encoder.state_dict().items()}
    random["output.weight"] = random["token_embedding.weight"]
    save_checkpoint(run / "checkpoints", 40, {"model": random}, keep=9)
    result = verb("average", "--run", run, "--last", 3, "--out", "out", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "out: the mean of the parameters of steps 20, 30, 40\n"
    paths = ["milestones/step-00000020", "checkpoints/step-00000030", "checkpoints/step-00000040"]
    states = [load_checkpoint(run / path)["model"] for path in paths]
    mean = torch.load(tmp_path / "out/model.pth", weights_only=True)
    for name, value in mean.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, (sum(state[name].double() for state in states) / 3).float())
    assert mean["output.weight"].data_ptr() == mean["token_embedding.weight"].data_ptr()  # tied, and stored once
    assert json.loads((tmp_path / "out/averaged.json").read_text()) == {
        "run": str(run),
        "steps": [20, 30, 40],
        "sha256": {f"{path}/state.pt": fingerprint(run / path / "state.pt")["sha256"] for path in paths},
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


def test_the_mean_of_averaged_parameters_is_that_of_their_averages(run: Path, tmp_path: Path) -> None:
    state = load_checkpoint(run / "checkpoints/step-00000010")
    doubled = {name: 2 * value for name, value in state["model"].items()}
    save_checkpoint(run / "checkpoints", 40, state | {"ema": doubled}, keep=9)
    assert mlm_dist.average(run, 1, tmp_path / "out") == [40]
    mean = torch.load(tmp_path / "out/model.pth", weights_only=True)
    assert all(torch.equal(value, doubled[name]) for name, value in mean.items())


def test_every_verb_loads_the_mean_which_claims_no_validation_loss(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    mlm_dist.average(run, 3, out)
    calls: dict[str, list[object]] = {
        "fill": ["The [MASK]."],
        "evaluate": ["--data", SAMPLE_TEXT],
        "export": ["--out", tmp_path / "exported"],
        "plot": [],
    }
    for name, arguments in calls.items():
        result = verb(name, "--run", out, *arguments)
        assert (result.returncode, result.stderr) == (0, ""), name
    card = (tmp_path / "exported/README.md").read_text()
    assert "| parameters | mean of steps 10, 20, 30 of run |" in card
    assert "| validation loss | not measured |" in card
    assert "the mean of steps 10, 20, 30 of run; the metrics are those of that run" in (
        (out / "plots/report.html").read_text()
    )


def test_training_refuses_to_continue_the_mean(run: Path, tmp_path: Path) -> None:
    mlm_dist.average(run, 3, tmp_path / "out")
    result = verb("train", "--config", tmp_path / "out/config.yaml")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert f"run_dir {tmp_path / 'out'} has the final parameters of a run, but no checkpoint to resume from" in line


def damage(run: Path) -> None:
    (run / "checkpoints/step-00000010/state.pt").write_bytes(b"")


def shrink(run: Path) -> None:
    """Replace the parameters of step 10 by some of another shape."""
    state = load_checkpoint(run / "checkpoints/step-00000010")
    save_checkpoint(run / "checkpoints", 10, state | {"model": {"output.weight": torch.zeros(2)}}, keep=9)


def break_the_metrics(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").mkdir()


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (None, "--run run --last 4 --out out", "checkpoints and milestones of 3 steps, not 4: 10, 20, 30"),
        (damage, "--run run --last 3 --out out", "milestones of 2 steps, not 3: 20, 30"),
        (None, "--run run --last 0 --out out", "last is 0: it must be at least 1"),
        (None, "--run run --last x --out out", "--last is x: it must be a whole number"),
        (None, "--run run --last 1 --out run", "run already exists"),
        (None, "--run none --last 1 --out out", "none is not a run directory: there is no such folder"),
        (shrink, "--run run --last 3 --out out", "step-00000010 does not fit the model in run/config.yaml"),
        (break_the_metrics, "--run run --last 1 --out out", "metrics.jsonl: Is a directory"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    change: Callable[[Path], None] | None, arguments: str, message: str, run: Path, tmp_path: Path
) -> None:
    if change:
        change(run)
    result = verb("average", *arguments.split(), cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    *warnings, line = result.stderr.splitlines()
    assert line.startswith("mlm_dist: error: ") and message in line
    assert len(warnings) == (change is damage)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_parameters_of_a_checkpoint_are_the_average_if_it_has_one() -> None:
    model, average = {"weight": 1}, {"weight": 2}
    assert model_parameters({"model": model}) == model
    assert model_parameters({"model": model, "ema": average}) == average


def test_a_run_without_a_checkpoint_has_no_mean(run: Path, tmp_path: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    shutil.rmtree(run / "milestones")
    with pytest.raises(UserError, match="run has no undamaged checkpoint or milestone"):
        mlm_dist.average(run, 1, tmp_path / "out")
