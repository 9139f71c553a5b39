"""Which parameters of a run are loaded: the final ones, or those of a checkpoint."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import mlm_dist
from mlm_dist.errors import UserError
from mlm_dist.run.checkpoint import load_checkpoint
from mlm_dist.run.metrics import read_events
from mlm_dist.run.parameters import find_checkpoint, steps_at_hand, undamaged_steps
from mlm_dist.run.run_dir import RunDir
from tests.conftest import verb


@pytest.fixture
def copy(run_dir: Path, tmp_path: Path) -> Path:
    """A finished run with checkpoints of steps 10, 20 and 30, of which the last is the best."""
    return Path(shutil.copytree(run_dir, tmp_path / "run"))


def set_val_loss(run: Path, losses: dict[int, float | None]) -> None:
    """Replace the validation losses of a run."""
    events = [event for event in read_events(run / "metrics.jsonl") if "val_loss" not in event]
    events += [{"step": step, "val_loss": loss} for step, loss in losses.items()]
    (run / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def assert_parameters_of(step: int, run: Path, chosen: int | str) -> None:
    model = mlm_dist.load(run, "cpu", step=chosen)  # type: ignore[arg-type]
    assert model.step == step
    expected = load_checkpoint(run / f"checkpoints/step-{step:08d}")["model"]
    for name, parameter in model.encoder.state_dict().items():
        assert torch.equal(parameter, expected[name])


def test_a_step_is_that_of_its_checkpoint(copy: Path) -> None:
    for step in (10, 20, 30):
        assert_parameters_of(step, copy, step)


def test_the_best_checkpoint_has_the_lowest_validation_loss(copy: Path) -> None:
    assert_parameters_of(30, copy, "best")
    set_val_loss(copy, {5: 1.0, 10: 3.0, 20: 2.5, 30: None})  # no checkpoint of step 5, and step 30 was not finite
    assert_parameters_of(20, copy, "best")


def test_instead_of_a_damaged_best_checkpoint_the_next_best_is_loaded(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_val_loss(copy, {10: 3.0, 20: 3.0, 30: 2.0})
    (copy / "checkpoints/step-00000030/state.pt").write_bytes(b"")
    assert_parameters_of(10, copy, "best")
    (line,) = capsys.readouterr().err.splitlines()
    assert "checkpoints/step-00000030 is skipped: state.pt does not match manifest.json" in line


def test_the_newest_checkpoint_is_the_newest_undamaged_one(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_parameters_of(30, copy, "newest")
    (copy / "checkpoints/step-00000030/state.pt").write_bytes(b"")
    assert_parameters_of(20, copy, "newest")
    assert "step-00000030 is skipped" in capsys.readouterr().err


def test_a_step_without_a_checkpoint_is_refused_with_those_that_have_one(copy: Path) -> None:
    with pytest.raises(UserError, match=r"checkpoints has no checkpoint of step 15; it has those of 10, 20, 30$"):
        mlm_dist.load(copy, "cpu", step=15)
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(UserError, match=r"has no checkpoint of step 15; it has those of no step$"):
        mlm_dist.load(copy, "cpu", step=15)


@pytest.fixture
def with_milestones(copy: Path) -> Path:
    """The run, with milestones of steps 10 and 15; the latter is the checkpoint of step 20 under another name."""
    shutil.copytree(copy / "checkpoints/step-00000010", copy / "milestones/step-00000010")
    milestone = Path(shutil.copytree(copy / "checkpoints/step-00000020", copy / "milestones/step-00000015"))
    manifest = json.loads((milestone / "manifest.json").read_text())
    (milestone / "manifest.json").write_text(json.dumps(manifest | {"step": 15}))
    return copy


def test_a_step_may_be_that_of_a_milestone(with_milestones: Path) -> None:
    model, expected = (mlm_dist.load(with_milestones, "cpu", step=step) for step in (15, 20))
    assert model.step == 15
    assert torch.equal(model.encoder.output.weight, expected.encoder.output.weight)
    (with_milestones / "checkpoints/step-00000010/state.pt").write_bytes(b"")  # its milestone has the same parameters
    assert mlm_dist.load(with_milestones, "cpu", step=10).step == 10
    set_val_loss(with_milestones, {10: 3.0, 15: 1.0, 20: 2.0})
    assert mlm_dist.load(with_milestones, "cpu", step="best").step == 15


def test_of_a_step_with_both_the_checkpoint_is_chosen(
    with_milestones: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = [with_milestones / folder / "step-00000010" for folder in ("checkpoints", "milestones")]
    set_val_loss(with_milestones, {10: 1.0})
    run_dir, steps = RunDir(with_milestones), (10, "best")
    assert [find_checkpoint(run_dir, step) for step in steps] == [both[0], both[0]]  # type: ignore[arg-type]
    assert undamaged_steps(run_dir)[10] == both[0]
    (both[0] / "state.pt").write_bytes(b"")
    assert [find_checkpoint(run_dir, step) for step in steps] == [both[1], both[1]]  # type: ignore[arg-type]
    assert undamaged_steps(run_dir)[10] == both[1]
    assert capsys.readouterr().err.count(f"{both[0]} is skipped") == 2


def test_an_unknown_step_is_refused_with_checkpoints_and_milestones(with_milestones: Path) -> None:
    with pytest.raises(UserError, match=r"of step 7; it has those of 10, 20, 30, and milestones of 10, 15$"):
        mlm_dist.load(with_milestones, "cpu", step=7)


def test_a_damaged_milestone_is_named(with_milestones: Path) -> None:
    (with_milestones / "milestones/step-00000015/state.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"milestones/step-00000015 is damaged: state\.pt does not match"):
        mlm_dist.load(with_milestones, "cpu", step=15)


def test_a_damaged_checkpoint_is_not_replaced_by_another(copy: Path) -> None:
    (copy / "checkpoints/step-00000020/state.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"step-00000020 is damaged: state\.pt does not match manifest\.json$"):
        mlm_dist.load(copy, "cpu", step=20)


def test_without_evaluations_there_is_no_best_checkpoint(copy: Path) -> None:
    set_val_loss(copy, {5: 1.0})
    for _ in range(2):
        with pytest.raises(UserError, match=r"metrics\.jsonl has no validation loss of a step with a checkpoint$"):
            mlm_dist.load(copy, "cpu", step="best")
        (copy / "metrics.jsonl").unlink(missing_ok=True)


def test_every_verb_that_takes_a_run_takes_a_step(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("A lamp.\n")
    common = ["--run", copy, "--step"]
    calls: dict[str, list[object]] = {
        "fill": ["The [MASK]."],
        "generate": ["--length", 3],
        "evaluate": ["--lines", tmp_path / "lines.txt"],
        "embed": [tmp_path / "lines.txt", "--out", tmp_path / "vectors.npy"],
        "export": ["--out", tmp_path / "exported"],
        "plot": ["--out", tmp_path / "plots"],
    }
    for name, arguments in calls.items():
        result = verb(name, *common, 15, *arguments)
        assert result.returncode == 2, (name, result.stdout)
        assert "no checkpoint of step 15; it has those of 10, 20, 30" in result.stderr
        result = verb(name, *common, "last", *arguments)
        assert result.returncode == 2, name
        assert result.stderr == (
            "mlm_dist: error: argument --step: it is last: give the step of a checkpoint, best or newest\n"
        )
    lines = ["--lines", tmp_path / "lines.txt"]
    assert verb("evaluate", *common, 10, *lines).stdout != verb("evaluate", "--run", copy, *lines).stdout


def test_the_record_of_a_milestone_protects_the_parameters_of_a_run_without_checkpoints(with_milestones: Path) -> None:
    shutil.rmtree(with_milestones / "checkpoints")
    assert mlm_dist.load(with_milestones, "cpu", step=15).step == 15
    config = with_milestones / "config.yaml"
    config.write_text(config.read_text().replace("heads: 2", "heads: 4"))
    with pytest.raises(UserError, match=r"was changed after the training, which used model\.heads 2, not 4"):
        mlm_dist.load(with_milestones, "cpu", step=15)


def test_the_steps_at_hand_are_those_of_the_checkpoints(copy: Path) -> None:
    assert steps_at_hand(RunDir(copy)) == [10, 20, 30]
    shutil.rmtree(copy / "checkpoints/step-00000020")
    assert steps_at_hand(RunDir(copy)) == [10, 30]
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(UserError, match=r"has no checkpoint and no milestone$"):
        steps_at_hand(RunDir(copy))
