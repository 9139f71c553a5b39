"""The exponential moving average of the parameters, and that it is the model of the run."""

from pathlib import Path

import pytest
import torch

import mlm_dist
from mlm_dist.config_reading import parse_config
from mlm_dist.data.corpus import Corpus
from mlm_dist.distributed import Processes
from mlm_dist.errors import UserError
from mlm_dist.model.masked_model import MaskedModel
from mlm_dist.run.checkpoint import load_checkpoint
from mlm_dist.run.metrics import read_events
from mlm_dist.run.run_dir import RunDir
from mlm_dist.training.average import ParameterAverage
from mlm_dist.training.stopping import StopRequest
from mlm_dist.training.trainer import Trainer
from tests.conftest import tiny_flags, verb

pytestmark = pytest.mark.usefixtures("kept_handlers")


@pytest.fixture(scope="module")
def averaged_run(corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 20 steps with an average."""
    folder = tmp_path_factory.mktemp("averaged") / "run"
    result = verb("train", *tiny_flags(corpus_folder, folder, train__max_iters=20, optim__ema=0.5))
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture
def trainer(corpus: Corpus, corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """A trainer of a run with an average, before its first step."""
    monkeypatch.delenv("RANK", raising=False)
    config = parse_config(tiny_flags(corpus_folder, tmp_path / "run", optim__ema=0.5), "train")
    return Trainer(config, [corpus], Processes("cpu"), RunDir(Path(config.run_dir)), StopRequest())


def flat(model: MaskedModel) -> torch.Tensor:
    return torch.cat([parameter.detach().double().flatten() for parameter in model.parameters()])


def test_every_step_adds_the_parameters_with_a_smaller_decay_at_the_start(trainer: Trainer) -> None:
    assert trainer.state.average
    expected = flat(trainer.state.encoder)
    for step in range(1, 16):
        trainer.train_step()
        decay = min(0.5, (1 + step) / (10 + step))  # 0.5 from step 8
        expected = decay * expected + (1 - decay) * flat(trainer.state.encoder)
        torch.testing.assert_close(flat(trainer.state.average.model), expected, rtol=0, atol=1e-6)
    assert all(parameter.dtype == torch.float32 for parameter in trainer.state.average.model.parameters())
    assert (expected - flat(trainer.state.encoder)).abs().max() > 1e-4


def test_the_average_of_equal_parameters_is_equal_and_buffers_are_copied() -> None:
    class Model(MaskedModel):
        def __init__(self) -> None:
            super().__init__()
            self.output = torch.nn.Linear(3, 5)
            self.register_buffer("scale", torch.ones(2))

        def encode(
            self, tokens: torch.Tensor, positions: torch.Tensor | None = None, documents: torch.Tensor | None = None
        ) -> torch.Tensor:
            raise NotImplementedError

    model = Model()
    average = ParameterAverage(model, 0.999)
    model.get_buffer("scale").fill_(7.0)
    average.update(1)
    assert torch.equal(flat(average.model), flat(model))
    assert torch.equal(average.model.get_buffer("scale"), torch.full((2,), 7.0))


def test_the_average_is_what_the_run_writes_loads_and_evaluates(averaged_run: Path) -> None:
    final = torch.load(averaged_run / "model.pth", weights_only=True)
    for step in (10, 20):
        state = load_checkpoint(averaged_run / f"checkpoints/step-{step:08d}")
        loaded = mlm_dist.load(averaged_run, "cpu", step=step).encoder.state_dict()
        assert all(torch.equal(loaded[name], state["ema"][name]) for name in loaded)
        assert not torch.equal(loaded["output.weight"], state["model"]["output.weight"])
        assert torch.equal(final["output.weight"], state["ema"]["output.weight"]) == (step == 20)


def test_validation_losses_are_those_of_the_average(trainer: Trainer) -> None:
    assert trainer.state.average
    trainer.config.train.max_iters = 3
    trainer.run_dir.checkpoints.mkdir(parents=True)
    trainer.train()
    evaluated, last = (
        trainer.validator.evaluate(model) for model in (trainer.state.average.model, trainer.state.encoder)
    )
    assert evaluated and last
    *_, recorded = [event["val_loss"] for event in read_events(trainer.run_dir.metrics) if "val_loss" in event]
    assert recorded == evaluated["val_loss"] != last["val_loss"]


def test_a_checkpoint_fits_the_size_that_the_disk_is_checked_for(averaged_run: Path, trainer: Trainer) -> None:
    parameters = sum(parameter.nbytes for parameter in trainer.state.encoder.parameters())
    assert trainer.state.max_bytes == 4 * parameters
    size = (averaged_run / "checkpoints/step-00000020/state.pt").stat().st_size
    assert 4 * parameters < size < 4 * parameters + 60_000  # names and alignment of a hundred small tensors


@pytest.mark.parametrize(("before", "now"), [(None, 0.5), (0.5, None)])
def test_a_run_cannot_be_resumed_with_another_average(
    before: float | None, now: float | None, averaged_run: Path, run_dir: Path, corpus_folder: Path
) -> None:
    run = averaged_run if before else run_dir
    flags = tiny_flags(corpus_folder, run, train__max_iters=40, optim__ema=now or "null")
    result = verb("train", *flags)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert f"was trained with optim.ema {before}, not {now}: use the same values, or another run_dir" in line


def test_a_checkpoint_whose_average_does_not_fit_is_refused(averaged_run: Path, trainer: Trainer) -> None:
    state = load_checkpoint(averaged_run / "checkpoints/step-00000020")
    with pytest.raises(UserError, match="does not fit the model"):
        trainer.state.load_state_dict(state | {"ema": {"output.weight": torch.zeros(2)}})
    del state["ema"]
    with pytest.raises(UserError, match="lacks ema"):
        trainer.state.load_state_dict(state)


def test_without_an_average_a_checkpoint_has_none(run_dir: Path) -> None:
    assert load_checkpoint(run_dir / "checkpoints/step-00000030").keys() == {
        *("version", "step", "seconds", "bad_steps", "model", "optimizers", "scaler")
    }
