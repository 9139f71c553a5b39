"""Early stopping: how long the validation loss has not improved."""

from collections.abc import Mapping

from mlm_dist.config import TrainConfig
from mlm_dist.distributed import Processes


class Patience:
    """Ends a run after `train.patience` evaluations without an improvement.

    Attributes:
        is_out: whether the run ends at the step that was checked last.
    """

    def __init__(self, settings: TrainConfig, processes: Processes) -> None:
        self.settings = settings
        self.processes = processes
        self.is_out = False

    def check(self, step: int, val_losses: Mapping[int, float]) -> None:
        """Find out whether the run ends at a step. A collective, because after a resume only rank 0 knows all losses.

        Args:
            step: steps taken so far.
            val_losses: the finite validation losses of the run, by step; on rank 0, all of them.
        """
        if self.settings.patience and step < self.settings.max_iters:
            count = evaluations_without_improvement(val_losses, self.settings.min_delta)
            self.is_out = self.processes.any(self.processes.is_rank_zero and count >= self.settings.patience)

    def is_best(self, step: int, val_losses: Mapping[int, float]) -> bool:
        """Whether an early end would need the parameters of a step: no others had such a low validation loss."""
        return bool(self.settings.patience) and is_lowest(step, val_losses)


def evaluations_without_improvement(val_losses: Mapping[int, float], min_delta: float) -> int:
    """Number of evaluations since the last improvement.

    The first evaluation after a step is an improvement, and so is each loss that is lower than at the last improvement,
    by at least `min_delta`. The evaluation before the first step does not count.

    Args:
        val_losses: the finite validation losses of a run, by step.
        min_delta: in nats.
    """
    losses = [loss for step, loss in sorted(val_losses.items()) if step]
    best, count = (losses[0] if losses else 0.0), 0
    for loss in losses[1:]:
        improves = loss < best and best - loss >= min_delta
        best, count = (loss, 0) if improves else (best, count + 1)
    return count


def is_lowest(step: int, val_losses: Mapping[int, float]) -> bool:
    """Whether a step after step 0 has a validation loss that is below those of all others."""
    others = [loss for other, loss in val_losses.items() if other not in (0, step)]  # step 0 does not count
    return step > 0 and step in val_losses and all(val_losses[step] < loss for loss in others)
