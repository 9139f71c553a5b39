"""The steps of a trainer in this process."""

import math
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mlm_dist.config_reading import parse_config
from mlm_dist.data.corpus import Corpus
from mlm_dist.data.masking import MaskedBatch
from mlm_dist.distributed import Processes
from mlm_dist.errors import RunError, UserError
from mlm_dist.model.masked_model import MaskedModel
from mlm_dist.run.checkpoint import list_checkpoints, step_of
from mlm_dist.run.metrics import read_events
from mlm_dist.run.run_dir import RunDir
from mlm_dist.training import muon
from mlm_dist.training.resume import resume
from mlm_dist.training.schedule import learning_rate
from mlm_dist.training.skipped_steps import SMALLEST_SCALE
from mlm_dist.training.state import StepResult
from mlm_dist.training.stopping import StopRequest
from mlm_dist.training.summary import summarize
from mlm_dist.training.trainer import Trainer
from tests.conftest import tiny_flags

Make = Callable[..., Trainer]


pytestmark = pytest.mark.usefixtures("kept_handlers")


@pytest.fixture
def make(corpus: Corpus, corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Builds a trainer of a tiny run in `tmp_path`, with overrides of its config."""
    monkeypatch.delenv("RANK", raising=False)

    def make(**overrides: object) -> Trainer:
        config = parse_config(tiny_flags(corpus_folder, tmp_path / "run", **overrides), "train")
        run_dir = RunDir(Path(config.run_dir))
        run_dir.checkpoints.mkdir(parents=True, exist_ok=True)
        return Trainer(config, [corpus], Processes("cpu"), run_dir, StopRequest())

    return make


def parameters_of(trainer: Trainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.state.encoder.parameters()])


def step_with(trainer: Trainer, lr: float) -> StepResult:
    """Take a step with this learning rate instead of that of the schedule."""
    with mock.patch("mlm_dist.training.step.learning_rate", return_value=lr):
        return trainer.train_step()


def set_scale(trainer: Trainer, scale: float) -> None:
    trainer.state.scaler.load_state_dict(trainer.state.scaler.state_dict() | {"scale": scale})


def evaluated_steps(trainer: Trainer) -> list[int]:
    return [event["step"] for event in read_events(trainer.run_dir.metrics) if "val_loss" in event]


def test_a_step_starts_with_a_gradient_of_zero(make: Make) -> None:
    trainer = make()
    batch = trainer.eager_step.next_batch()

    def norm() -> float:
        trainer.eager_step.forward_backward(batch)
        return trainer.eager_step.update(lr=0.0).item()

    first, second = norm(), norm()
    assert second == pytest.approx(first, rel=1e-5)


def test_tokens_are_weighted_in_training_and_not_in_evaluations(make: Make) -> None:
    weighted, plain = make(train__loss_frequency_exponent=0.5), make()
    first, second = (trainer.eager_step.next_batch() for trainer in (weighted, plain))
    used = second.loss_weights > 0
    assert torch.equal(first.targets, second.targets)
    assert first.loss_weights[used].std() > 0.1
    assert (second.loss_weights[used] == 1).all()
    assert weighted.validator.evaluate(weighted.state.model) == plain.validator.evaluate(plain.state.model)
    # The loss is the mean by these weights.
    losses = {}
    for trainer, batch in ((weighted, first), (plain, second)):
        logits = trainer.state.encoder.output(trainer.state.encoder.encode(batch.inputs, batch.positions))
        each = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
        expected = (each * batch.loss_weights.flatten()).sum() / batch.loss_weights.sum()
        losses[trainer] = trainer.eager_step.forward_backward(batch).item()
        assert losses[trainer] == pytest.approx(expected.item(), rel=1e-5)
    assert losses[weighted] != pytest.approx(losses[plain], rel=1e-4)


@pytest.mark.parametrize("rate", [0.0, 1e-4, 1e-2])
def test_the_first_step_changes_parameters_by_the_learning_rate(rate: float, make: Make) -> None:
    trainer = make(optim__weight_decay=0)
    before = parameters_of(trainer)
    result = step_with(trainer, rate)
    # Adam's first step changes each element by the learning rate, unless its gradient is small compared to epsilon.
    assert (parameters_of(trainer) - before).abs().max().item() == pytest.approx(rate, rel=0.01)
    assert result.lr == rate


def test_every_step_has_the_learning_rate_of_the_schedule(make: Make) -> None:
    trainer = make(train__max_iters=12)
    trainer.train()
    logged = [event["lr"] for event in read_events(trainer.run_dir.metrics) if "lr" in event]
    assert logged == [learning_rate(step, 12, trainer.config.optim) for step in range(12)]


@pytest.mark.parametrize(("clip", "clipped"), [(0.01, True), (0, False), (1e6, False)])
def test_gradients_with_a_larger_norm_are_scaled_down_to_grad_clip(clip: float, clipped: bool, make: Make) -> None:
    trainer = make(optim__grad_clip=clip)
    applied: list[float] = []

    def record(*_: object) -> None:
        gradients = [p.grad for p in trainer.state.encoder.parameters() if p.grad is not None]
        applied.append(torch.cat([gradient.flatten() for gradient in gradients]).norm().item())

    trainer.state.optimizers[0].register_step_pre_hook(record)
    norm = step_with(trainer, 0.0).grad_norm.item()
    assert norm > 0.01
    assert applied == pytest.approx([clip if clipped else norm], rel=1e-3)


def test_fp16_reports_the_norm_of_the_unscaled_gradient(make: Make) -> None:
    norms = []
    for precision in ("fp32", "fp16"):
        trainer = make(precision=precision)
        norms.append(step_with(trainer, 0.0).grad_norm.item())
    assert norms[1] == pytest.approx(norms[0], rel=0.02)


def test_after_an_overflow_fp16_skips_the_step_and_halves_the_scale(make: Make) -> None:
    trainer = make(precision="fp16")
    set_scale(trainer, 2.0**120)
    before = parameters_of(trainer)
    assert not math.isfinite(step_with(trainer, 1e-3).grad_norm.item())
    assert trainer.state.scaler.get_scale() == 2.0**119
    assert torch.equal(parameters_of(trainer), before)


def test_dropout_is_a_function_of_step_and_rank(make: Make) -> None:
    def random_number(step: int, rank: int = 0) -> float:
        trainer = make(model__dropout=0.1)
        trainer.state.step, trainer.processes.rank = step, rank
        trainer.train_step()
        return torch.rand(()).item()

    assert random_number(3) == random_number(3)
    assert len({random_number(3), random_number(4), random_number(3, rank=1), random_number(4, rank=1)}) == 4


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_has_the_saved_state(optimizer: str, make: Make) -> None:
    before = make(precision="fp16", train__max_iters=3, optim__name=optimizer)
    set_scale(before, 1024.0)
    before.state.seconds = 100.0
    before.train()
    after = make(precision="fp16", train__max_iters=3, optim__name=optimizer)
    resume(after)
    assert after.state.step == 3
    assert torch.equal(parameters_of(after), parameters_of(before))
    assert after.state.scaler.state_dict() == before.state.scaler.state_dict()
    assert after.state.scaler.get_scale() == 1024.0
    assert 100.0 < after.state.seconds <= before.state.seconds
    for resumed, expected in zip(after.state.optimizers, before.state.optimizers, strict=True):
        moments = resumed.state_dict()["state"]
        assert moments.keys() == expected.state_dict()["state"].keys()
        for key, state in expected.state_dict()["state"].items():
            assert all(torch.equal(moments[key][name], value) for name, value in state.items())


def test_a_tensor_as_optimizer_state_is_refused_without_a_warning(make: Make, recwarn: pytest.WarningsRecorder) -> None:
    state = make().state
    recwarn.clear()
    with pytest.raises(UserError, match="does not fit the model and the optimizer"):
        state.load_state_dict(state.state_dict() | {"optimizers": [torch.tensor([])]})
    assert not [str(warning.message) for warning in recwarn]


def test_a_missing_key_or_an_unknown_version_of_a_checkpoint_is_named(make: Make) -> None:
    state = make().state
    content = state.state_dict()
    del content["scaler"]
    with pytest.raises(UserError, match="lacks scaler"):
        state.load_state_dict(content)
    with pytest.raises(UserError, match=r"format version 99, but this program reads 1 to 2"):
        state.load_state_dict(content | {"version": 99})


def test_a_resumed_run_uses_the_weight_decay_of_the_new_config(make: Make) -> None:
    make(train__max_iters=2, optim__weight_decay=0.01).train()
    trainer = make(train__max_iters=4, optim__weight_decay=0.5)
    resume(trainer)
    assert [group["weight_decay"] for group in trainer.state.optimizers[0].param_groups] == [0.5, 0.0]


def test_a_run_is_evaluated_at_its_start_at_every_interval_and_at_its_end(make: Make) -> None:
    trainer = make(train__max_iters=7, train__eval_interval=3)
    trainer.train()
    assert evaluated_steps(trainer) == [0, 3, 6, 7]


def test_a_resumed_run_does_not_repeat_an_evaluation(make: Make) -> None:
    make(train__max_iters=6, train__eval_interval=3).train()
    trainer = make(train__max_iters=8, train__eval_interval=3)
    resume(trainer)
    trainer.train()
    assert evaluated_steps(trainer) == [0, 3, 6, 8]


def test_an_eval_interval_of_0_disables_evaluation(make: Make) -> None:
    trainer = make(train__max_iters=3, train__eval_interval=0)
    trainer.train()
    assert evaluated_steps(trainer) == []
    assert "no evaluation" in summarize(trainer)


def test_steps_with_a_checkpoint_or_an_evaluation_are_always_logged(make: Make) -> None:
    trainer = make(train__max_iters=9, train__eval_interval=4, checkpoint__interval=3, train__log_interval=100)
    trainer.train()
    logged = [event["step"] for event in read_events(trainer.run_dir.metrics) if "loss" in event]
    assert logged == [3, 4, 6, 8, 9]


@pytest.mark.slow
def test_training_time_does_not_include_evaluations(make: Make) -> None:
    trainer = make(train__max_iters=2, train__eval_interval=1)
    evaluate, evaluations = trainer.validator.evaluate, 0

    def slow(encoder: MaskedModel, stop: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
        nonlocal evaluations
        evaluations += 1
        signal.sigtimedwait([], 1.0)  # waits for a second
        return evaluate(encoder, stop)

    trainer.validator.evaluate = slow  # type: ignore[method-assign]
    start = time.perf_counter()
    trainer.loop()
    assert evaluations == 3
    assert 0 < trainer.state.seconds < time.perf_counter() - start - 3.0


def test_the_newest_checkpoints_and_the_best_are_kept(make: Make) -> None:
    worsening = {"optim__lr": 10.0, "optim__schedule": "constant", "optim__warmup_iters": 0}
    trainer = make(train__max_iters=5, train__eval_interval=1, checkpoint__interval=1, checkpoint__keep=2, **worsening)
    trainer.train()
    losses = {e["step"]: e["val_loss"] for e in read_events(trainer.run_dir.metrics) if "val_loss" in e and e["step"]}
    best = min(losses, key=lambda step: losses[step])
    assert best < 4
    assert [step_of(path) for path in list_checkpoints(trainer.run_dir.checkpoints)] == [5, 4, best]


def test_a_run_whose_last_checkpoint_cannot_be_written_is_not_done(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make(train__max_iters=3)
    shutil.rmtree(trainer.run_dir.checkpoints)
    with pytest.raises(RunError, match="has no checkpoint of step 3"):
        trainer.train()
    assert "a checkpoint could not be written" in capsys.readouterr().err


def test_a_stop_file_created_after_the_last_step_is_removed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make(train__max_iters=3, train__eval_interval=0)
    save = trainer.save

    def request_stop_and_save() -> None:
        trainer.run_dir.stop.touch()
        save()

    monkeypatch.setattr(trainer, "save", request_stop_and_save)
    trainer.train()
    assert not trainer.stop.reason
    assert trainer.run_dir.model.exists()
    assert not trainer.run_dir.stop.exists()


# The host does not wait for a step


HOST_WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "item", "index.Tensor", "unique")


class NoWaiting(TorchDispatchMode):
    """Fails on an operation for which the host would wait for a GPU, and counts the others."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.operations += 1
        name = str(func)
        waits = any(f"aten.{operation}" in name for operation in HOST_WAITS)
        assert not waits or (
            name == "aten.index.Tensor"
            and not any(index is not None and index.dtype == torch.bool for index in args[1])
        ), name
        return func(*args, **(kwargs or {}))


@pytest.fixture
def make_late(make: Make, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Trainers that update and skip steps as on a GPU."""
    monkeypatch.setattr(muon, "computes_together", lambda matrix: True)

    def late(**changes: object) -> Trainer:
        trainer = make(**changes)
        trainer.eager_step.without_host = trainer.skipped_steps.reads_late = True
        return trainer

    return late


def assert_no_waiting(trainer: Trainer) -> None:
    trainer.train_step()  # the optimizer creates its state
    with NoWaiting() as first:
        trainer.train_step()
    with NoWaiting() as second:
        trainer.train_step()
    assert first.operations == second.operations


@pytest.mark.parametrize("unit", ["token", "word", "span"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"masking__replacement": "80/10/10", "optim__ema": 0.9}, {"masking__mask_prob_range": [0, 1]}],
)
@pytest.mark.parametrize("micro_batch_size", [16, 4])
def test_the_host_never_waits_for_a_step(
    changes: dict[str, Any], unit: str, micro_batch_size: int, make_late: Make
) -> None:
    assert_no_waiting(make_late(masking__unit=unit, train__micro_batch_size=micro_batch_size, **changes))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("cautious", [False, True])
@pytest.mark.parametrize("name", ["adamw", "muon", "normuon"])
def test_the_host_never_waits_for_an_update(name: str, cautious: bool, precision: str, make_late: Make) -> None:
    changes = {"optim__name": name, "optim__cautious_weight_decay": cautious, "precision": precision}
    assert_no_waiting(make_late(**changes))


def test_the_dispatch_mode_finds_a_step_that_waits(make: Make) -> None:
    trainer = make()
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoWaiting():
        trainer.train_step()


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-7), ("fp16", 1e-5)])
@pytest.mark.parametrize("clip", [0.0, 0.05, 1.0, 1e6])
def test_the_update_without_the_host_is_the_same_update(
    clip: float, precision: str, tolerance: float, make: Make, make_late: Make
) -> None:
    trainers = [build(optim__grad_clip=clip, precision=precision) for build in (make, make_late)]
    for trainer in trainers:
        for _ in range(5):
            trainer.train_step()
    torch.testing.assert_close(parameters_of(trainers[0]), parameters_of(trainers[1]), rtol=0, atol=tolerance)


def test_a_step_that_the_device_skips_changes_nothing_and_is_counted_later(make_late: Make) -> None:
    trainer = make_late(train__log_interval=4, train__eval_interval=0, train__max_iters=8)
    forward_backward, changed = trainer.eager_step.forward_backward, []

    def faulty(batch: MaskedBatch) -> torch.Tensor:
        loss = forward_backward(batch)
        if trainer.state.step in (2, 3):
            for parameter in trainer.state.encoder.parameters():
                assert parameter.grad is not None
                parameter.grad.mul_(float("nan"))
        return loss

    train_step = trainer.train_step

    def watched() -> StepResult:
        before = parameters_of(trainer).clone()
        result = train_step()
        changed.append(not torch.equal(parameters_of(trainer), before))
        return result

    trainer.eager_step.forward_backward = faulty  # type: ignore[method-assign]
    trainer.train_step = watched  # type: ignore[method-assign]
    trainer.train()
    assert changed == [True, True, False, False, True, True, True, True]
    events = read_events(trainer.run_dir.metrics)
    assert [event["step"] for event in events if "skipped" in event] == [3, 4]
    steps = {state["step"].item() for state in trainer.state.optimizers[0].state.values()}
    assert steps == {6.0}


@pytest.mark.parametrize("reads_late", [False, True])
def test_an_overflow_of_fp16_counts_by_the_scale_after_its_step(reads_late: bool, make: Make, make_late: Make) -> None:
    build = make_late if reads_late else make
    trainer = build(precision="fp16", train__max_iters=5, train__log_interval=5, train__eval_interval=0)
    set_scale(trainer, 4 * SMALLEST_SCALE)
    forward_backward = trainer.eager_step.forward_backward

    def overflowing(batch: MaskedBatch) -> torch.Tensor:
        loss = forward_backward(batch)
        for parameter in trainer.state.encoder.parameters():
            assert parameter.grad is not None
            parameter.grad.fill_(math.inf)
        return loss

    trainer.eager_step.forward_backward = overflowing  # type: ignore[method-assign]
    trainer.train()
    events = read_events(trainer.run_dir.metrics)
    assert [event["step"] for event in events if "skipped" in event] == [2, 3, 4, 5]
    assert trainer.state.scaler.get_scale() == SMALLEST_SCALE / 8


def test_too_many_skipped_steps_end_the_run_when_they_are_read_late(
    make_late: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_late(train__log_interval=7, train__eval_interval=0, train__max_bad_steps=3, train__max_iters=20)
    monkeypatch.setattr("mlm_dist.training.step.learning_rate", lambda *_: float("inf"))
    with pytest.raises(RunError, match="not finite in 3 consecutive steps"):
        trainer.train()
    assert list_checkpoints(trainer.run_dir.checkpoints) == []
