"""Steps that are replayed from a graph are the steps of an eager trainer."""

import itertools
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mlm_dist.config_reading import parse_config
from mlm_dist.data.corpus import Corpus
from mlm_dist.distributed import Processes
from mlm_dist.run.metrics import read_events
from mlm_dist.run.run_dir import RunDir
from mlm_dist.training import inputs, muon
from mlm_dist.training.inputs import StepInputs
from mlm_dist.training.resume import resume
from mlm_dist.training.state import StepResult
from mlm_dist.training.step import WARM_UP_STEPS, GraphStep, Step
from mlm_dist.training.stopping import StopRequest
from mlm_dist.training.trainer import Trainer
from tests.conftest import start, tiny_flags
from tests.training.replay import spoil
from tests.training.tape import Tape

pytestmark = pytest.mark.usefixtures("kept_handlers")

STEPS, STOP, BAD_STEPS = 50, 27, (12, 40)
# The rates change at every step, and an epoch is a few steps long.
CHANGING = {"train__max_iters": STEPS, "masking__mask_prob_end": 0.4, "optim__grad_clip": 0.5, "train__log_interval": 3}
MUON_IN_FP16 = {"optim__name": "muon", "precision": "fp16"}


@pytest.fixture
def make(corpus: Corpus, corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Builds a trainer that updates and skips as on a GPU; with a graph, it replays its steps from it."""
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(muon, "computes_together", lambda matrix: True)

    def make(name: str, graph: Tape | None = None, **overrides: object) -> Trainer:
        flags = tiny_flags(corpus_folder, tmp_path / name, **{"train__batch_size": 192, **CHANGING, **overrides})
        config = parse_config(flags, "train")
        run_dir = RunDir(Path(config.run_dir))
        run_dir.checkpoints.mkdir(parents=True, exist_ok=True)
        trainer = Trainer(config, [corpus], Processes("cpu"), run_dir, StopRequest())
        trainer.eager_step.without_host = trainer.skipped_steps.reads_late = True
        trainer.state.scaler.set_growth_interval(7)
        if graph is not None:
            trainer.step = GraphStep(trainer.eager_step, graph)
        return trainer

    return make


def train(make: Callable[..., Trainer], name: str, graphs: Iterator[Tape | None], **overrides: object) -> Trainer:
    """Train with an evaluation, checkpoints and non-finite steps; stop in between and resume."""
    first = make(name, next(graphs), **overrides)
    spoil(first, BAD_STEPS)
    train_step = first.train_step

    def step() -> StepResult:
        if first.state.step == STOP - 1:
            first.stop.request.signal = "SIGTERM"
        return train_step()

    first.train_step = step  # type: ignore[method-assign]
    first.train()
    assert first.state.step == STOP
    second = make(name, next(graphs), **overrides)
    resume(second)
    assert second.state.step == STOP
    spoil(second, BAD_STEPS)
    second.train()
    return second


def state_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Parameters, their average, and the state of optimizers and scaler, by name."""
    state = dict(trainer.state.encoder.state_dict())
    state |= {f"average {name}": value for name, value in trainer.state.model.state_dict().items()}
    for number, optimizer in enumerate(trainer.state.optimizers):
        for index, values in optimizer.state_dict()["state"].items():
            state |= {f"{number} {index} {name}": value for name, value in values.items()}
    return state | {name: torch.tensor(value) for name, value in trainer.state.scaler.state_dict().items()}


def assert_same(trainer: Trainer, expected: Trainer) -> None:
    """Both have the same state, and the same events but for their times."""
    assert trainer.state.step == expected.state.step
    found, wanted = state_of(trainer), state_of(expected)
    assert found.keys() == wanted.keys()
    assert [name for name, value in wanted.items() if not torch.equal(found[name], value)] == []
    times = {"seconds", "tokens_per_second"}
    events = [
        [{key: value for key, value in event.items() if key not in times} for event in read_events(t.run_dir.metrics)]
        for t in (trainer, expected)
    ]
    assert events[0] == events[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "on_device"),
    [
        ({"masking__unit": "span", "masking__replacement": "80/10/10"}, True),
        ({"masking__mask_prob_end": "null", "masking__mask_prob_range": [0, 1]}, False),
        ({"train__micro_batch_size": 48, "optim__ema": 0.9}, False),
        (MUON_IN_FP16, False),
        ({"optim__name": "normuon", "optim__cautious_weight_decay": True}, True),
    ],
    ids=str,
)
def test_replayed_steps_are_those_of_the_eager_trainer(
    overrides: dict[str, Any], on_device: bool, make: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    eager = train(make, "eager", itertools.repeat(None), **overrides)
    monkeypatch.setattr(inputs, "fits_on", lambda *_: on_device)
    tapes = [Tape(), Tape()]
    replayed = train(make, "graph", iter(tapes), **overrides)
    assert [tape.replays for tape in tapes] == [STOP - WARM_UP_STEPS, STEPS - STOP - WARM_UP_STEPS]
    assert_same(replayed, eager)
    events = read_events(replayed.run_dir.metrics)
    assert [event["step"] for event in events if "skipped" in event] == [step + 1 for step in BAD_STEPS]
    assert max(event["epoch"] for event in events if "epoch" in event) > 3
    assert len({event["lr"] for event in events if "lr" in event}) > 5
    assert (replayed.eager_step.reader.on_device is not None) == on_device


SHORT = {"train__max_iters": 16, "train__eval_interval": 0}  # steps of two epochs
FROZEN: dict[str, Callable[[StepInputs], torch.Tensor]] = {
    "hashes": lambda given: given.mask.hashes,
    "rates": lambda given: given.mask.rates,
    "lr": lambda given: given.lr,
    "tokens": lambda given: given.tokens,
    "starts": lambda given: given.starts,
}


@pytest.mark.parametrize("name", FROZEN)
def test_a_graph_that_keeps_any_input_of_its_capture_takes_other_steps(
    name: str, make: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "fits_on", lambda *_: name == "starts")

    class Frozen(Tape):
        kept: torch.Tensor | None = None

        def replay(self) -> None:
            step = trainer.step
            assert isinstance(step, GraphStep) and step._captured is not None
            given = FROZEN[name](step._captured[0])
            self.kept = given.clone() if self.kept is None else self.kept
            given.copy_(self.kept)
            super().replay()

    trainer, eager = make("graph", Frozen(), **SHORT), make("eager", **SHORT)
    for each in (trainer, eager):
        each.train()
    assert not all(torch.equal(one, other) for one, other in zip(*map(parameters_of, (trainer, eager)), strict=True))


def parameters_of(trainer: Trainer) -> list[torch.Tensor]:
    return list(trainer.state.encoder.state_dict().values())


@pytest.mark.parametrize(
    ("share", "overrides"),
    [*((share, {}) for share in (0.0, 0.3, 0.6, 0.999)), (0.999, MUON_IN_FP16)],
)
def test_after_a_capture_that_fails_the_steps_go_on_eagerly(
    share: float, overrides: dict[str, Any], make: Callable[..., Trainer], capsys: pytest.CaptureFixture[str]
) -> None:
    whole, overrides = Tape(), SHORT | overrides
    first = make("first", whole, **overrides)
    for _ in range(WARM_UP_STEPS + 1):
        first.train_step()
    failing = Tape(fails_at=int(share * len(whole.operations)))
    eager, fallen = make("eager", **overrides), make("graph", failing, **overrides)
    for trainer in (eager, fallen):
        trainer.train()
    assert_same(fallen, eager)
    warnings = [line for line in capsys.readouterr().err.splitlines() if "cannot be captured" in line]
    assert len(warnings) == 1
    assert warnings[0].endswith("one by one: RuntimeError: operation not permitted when stream is capturing")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize(("overrides", "tolerance"), [({}, 1e-3), (MUON_IN_FP16, 1e-2)])
def test_steps_captured_on_a_gpu_are_those_of_the_eager_trainer(
    on_device: bool,
    overrides: dict[str, Any],
    tolerance: float,
    corpus: Corpus,
    corpus_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(inputs, "fits_on", lambda *_: on_device)
    digests, losses = [], []
    for is_captured in (True, False):
        settings = CHANGING | {"device": "cuda", "train__batch_size": 192} | overrides
        flags = tiny_flags(corpus_folder, tmp_path / "run", **settings)
        config = parse_config(flags, "train")
        trainer = Trainer(config, [corpus], Processes("cuda"), RunDir(tmp_path / "run"), StopRequest())
        assert isinstance(trainer.step, GraphStep)
        if not is_captured:
            trainer.step = trainer.eager_step
        results = [trainer.train_step() for _ in range(30)]
        losses.append([result.loss.item() for result in results])
        digests.append([int(trainer.train_step().batch.digest()) for _ in range(20)])
    assert digests[0] == digests[1]
    assert losses[0] == pytest.approx(losses[1], rel=tolerance)
    assert "cannot be captured" not in capsys.readouterr().err


@pytest.mark.multiprocess
@pytest.mark.parametrize(("failing_rank", "overrides"), [(-1, {}), (-1, MUON_IN_FP16), (1, MUON_IN_FP16)])
def test_with_ddp_all_ranks_replay_or_none_of_them(
    failing_rank: int, overrides: dict[str, Any], corpus_folder: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    batches = {"train__batch_size": 192, "train__micro_batch_size": 48}
    flags = tiny_flags(corpus_folder, tmp_path, **CHANGING | batches | SHORT | overrides)
    result = start([*command, "tests/training/replay.py", str(tmp_path), str(failing_rank), *flags])
    found = re.findall("rank [01]: (?:True|False)", result.stdout)  # two lines may be mixed
    assert sorted(found) == ["rank 0: True", "rank 1: True"], result.stderr
    assert result.stderr.count("cannot be captured") == (failing_rank >= 0)


def test_each_phase_is_captured_anew(make: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch) -> None:
    phases = [{"steps": 8, "batch_size": 96, "row_length": 16}, {"steps": 8, "batch_size": 192, "row_length": 4}]
    overrides: dict[str, Any] = {"train__phases": json.dumps(phases), "train__loss_frequency_exponent": 0.5}
    tapes = [Tape()]

    def with_tape(step: Step) -> GraphStep:
        tapes.append(Tape())
        return GraphStep(step, tapes[-1])

    def steps(trainer: Trainer, with_graph: Callable[[Step], Any]) -> list[tuple[float, int]]:
        monkeypatch.setattr("mlm_dist.training.trainer.with_graph", with_graph)
        taken = []
        for _ in range(24):
            trainer.begin_phase()
            result = trainer.train_step()
            taken.append((result.loss.item(), int(result.batch.digest())))
        return taken

    expected = steps(make("eager", **overrides), lambda step: step)
    assert steps(make("replayed", tapes[0], **overrides), with_tape) == expected
    assert [tape.replays for tape in tapes] == 3 * [8 - WARM_UP_STEPS]
