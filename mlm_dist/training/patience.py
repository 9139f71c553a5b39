"""Early stopping: how long the validation loss has not improved."""

from collections.abc import Mapping

from mlm_dist.config import Config
from mlm_dist.distributed import Processes


class Patience:
    """Ends a run after `train.patience` evaluations without an improvement.

    The evaluation before the first step counts only if the run started from trained parameters.

    Attributes:
        is_out: whether the run ends at the step that was checked last.
    """

    def __init__(self, config: Config, processes: Processes) -> None:
        self.settings = config.train
        self.first_step = 1 if config.init_from is None else 0
        self.processes = processes
        self.is_out = False

    def check(self, step: int, val_losses: Mapping[int, float]) -> None:
        """Find out whether the run ends at a step. A collective, because after a resume only rank 0 knows all losses.

        Args:
            step: steps taken so far.
            val_losses: the finite validation losses of the run, by step; on rank 0, all of them.
        """
        if self.settings.patience and step < self.settings.max_iters:
            count = evaluations_without_improvement(self._counted(val_losses), self.settings.min_delta)
            self.is_out = self.processes.any(self.processes.is_rank_zero and count >= self.settings.patience)

    def is_best(self, step: int, val_losses: Mapping[int, float]) -> bool:
        """Whether an early end would need the parameters of a step: no others had such a low validation loss."""
        return bool(self.settings.patience) and is_lowest(step, self._counted(val_losses))

    def _counted(self, val_losses: Mapping[int, float]) -> dict[int, float]:
        return {step: loss for step, loss in val_losses.items() if step >= self.first_step}


def evaluations_without_improvement(val_losses: Mapping[int, float], min_delta: float) -> int:
    """Number of evaluations since the last improvement.

    The first evaluation is an improvement, and so is each loss that is lower than at the last improvement, by at least
    `min_delta`.

    Args:
        val_losses: finite validation losses by step.
        min_delta: in nats.
    """
    losses = [loss for _, loss in sorted(val_losses.items())]
    best, count = (losses[0] if losses else 0.0), 0
    for loss in losses[1:]:
        improves = loss < best and best - loss >= min_delta
        best, count = (loss, 0) if improves else (best, count + 1)
    return count


def is_lowest(step: int, val_losses: Mapping[int, float]) -> bool:
    """Whether a step has a validation loss that is below those of all others."""
    others = [loss for other, loss in val_losses.items() if other != step]
    return step in val_losses and all(val_losses[step] < loss for loss in others)
