"""A learning-rate range: short runs at several rates.

The runs have the model of the config. A narrower one would be faster, but its best rate may be another one
(docs/performance.md).
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mlm_dist.config import Config
from mlm_dist.data.corpus import Corpus
from mlm_dist.distributed import Processes
from mlm_dist.errors import UserError
from mlm_dist.run.run_dir import RunDir
from mlm_dist.training.memory import keep_freed_memory, user_error_if_out_of_memory
from mlm_dist.training.stopping import StopRequest
from mlm_dist.training.trainer import Trainer

STEPS = 300
WARM_UP = 20  # steps
RATES_PER_DECADE = 3


class Trial(NamedTuple):
    """A short run: its learning rate, and its validation loss in nats, which may be infinite or NaN."""

    rate: float
    val_loss: float

    def __str__(self) -> str:
        return f"{self.rate:.3g}: validation loss {self.val_loss:.4f}"


def spaced_rates(low: float, high: float) -> list[float]:
    """Rates from `low` to `high`, at least three, evenly spaced on a logarithmic axis."""
    count = max(3, 1 + round(RATES_PER_DECADE * math.log10(high / low)))
    return [low * (high / low) ** (i / (count - 1)) for i in range(count)]


def short_config(config: Config) -> Config:
    """The config of a short run, with the whole schedule, without earlier phases, and an evaluation at its end."""
    steps = min(STEPS, config.train.max_iters)
    warmup = min(WARM_UP, config.optim.warmup_iters)
    return dataclasses.replace(
        config,
        optim=dataclasses.replace(config.optim, warmup_iters=warmup),
        train=dataclasses.replace(config.train, max_iters=steps, phases=[], eval_interval=steps, patience=None),
    )


def train_at_rates(
    config: Config, corpora: Sequence[Corpus], key: str, rates: Sequence[float], log: Callable[[Trial], None]
) -> list[Trial]:
    """Train a short run at each rate, in this process. Nothing is written.

    Args:
        config: of the short runs.
        corpora: of the config.
        key: `optim.lr` or `optim.muon_lr`.
        rates: to try.
        log: called after each run.

    Raises:
        UserError: the config does not fit the corpora or the machine.
    """
    keep_freed_memory()
    processes, trials = Processes(config.device), []
    for rate in rates:
        changed: dict[str, Any] = {key.removeprefix("optim."): rate}
        trial_config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, **changed))
        with user_error_if_out_of_memory():
            trials.append(Trial(rate, final_loss(trial_config, corpora, processes)))
        log(trials[-1])
    return trials


def final_loss(config: Config, corpora: Sequence[Corpus], processes: Processes) -> float:
    """The validation loss at the end of a run."""
    with StopRequest() as stop:  # outside the block, Ctrl-C ends the sweep at once
        trainer = Trainer(config, corpora, processes, RunDir(Path(config.run_dir)), stop)
    for _ in range(config.train.max_iters):
        trainer.train_step()
    evaluation = trainer.validator.evaluate(trainer.state.model)
    assert evaluation is not None  # nothing stops it
    return evaluation["val_loss"]


def best_of(trials: Sequence[Trial]) -> Trial:
    """The trial with the lowest validation loss.

    Raises:
        UserError: no loss is finite.
    """
    finite = [trial for trial in trials if math.isfinite(trial.val_loss)]
    if not finite:
        raise UserError("no rate of the sweep has a finite validation loss: lower the range")
    return min(finite, key=lambda trial: trial.val_loss)
