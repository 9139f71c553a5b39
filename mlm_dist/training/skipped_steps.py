"""Steps that are skipped because their gradient is not finite."""

import math
from typing import NamedTuple

import torch

from mlm_dist.errors import RunError
from mlm_dist.run.recorder import Recorder
from mlm_dist.training.state import StepResult
from mlm_dist.training.step import Step

SMALLEST_SCALE = 2.0**-10
MAX_UNREAD = 100


class Outcome(NamedTuple):
    """What is kept of a step until it is read: not its batch, since the batches of 100 steps may fill a GPU.

    Attributes:
        scale: (), of fp16 gradients after the step; 1 in other precisions.
    """

    step: int
    loss: torch.Tensor
    grad_norm: torch.Tensor
    scale: torch.Tensor


class SkippedSteps:
    """Counts consecutive skipped steps, and records the ranks and rows whose loss was not finite.

    Args:
        step: takes the steps. All ranks add and count the same ones together, in the count of its state.
        max_skipped: consecutive skipped steps that end the run.

    Attributes:
        reads_late: read the results of several steps at once, so that the host does not wait for each. A skipped step
            changes nothing, so it may be noticed late.
    """

    def __init__(self, step: Step, max_skipped: int) -> None:
        self.state = step.state
        self.processes = step.processes
        self.sampler = step.reader.sampler
        self.max_skipped = max_skipped
        self.reads_late = step.without_host
        self._unread: list[Outcome] = []

    def add(self, result: StepResult, recorder: Recorder, read_now: bool) -> None:
        """Add the result of the step just taken, and read it now or later.

        Raises:
            RunError: on all ranks, after `max_skipped` consecutive skipped steps.
        """
        scale = self.state.scaler.scale(torch.ones_like(result.loss))
        self._unread.append(Outcome(result.step, result.loss, result.grad_norm, scale))
        if read_now or not self.reads_late or len(self._unread) >= MAX_UNREAD:
            self.read(recorder)

    def read(self, recorder: Recorder) -> None:
        """Wait for the added steps, and count and record those that were skipped.

        Raises:
            RunError: on all ranks, after `max_skipped` consecutive skipped steps.
        """
        outcomes, self._unread = self._unread, []
        norms = torch.stack([outcome.grad_norm for outcome in outcomes]).tolist() if outcomes else []
        for outcome, norm in zip(outcomes, norms, strict=True):
            if math.isfinite(norm):
                self.state.skipped_steps = 0
            else:
                self._count_one(outcome, norm, recorder)

    def _count_one(self, outcome: Outcome, grad_norm: float, recorder: Recorder) -> None:
        state = self.state
        own_rows = self.sampler.select(outcome.step - 1).names()
        by_rank = self.processes.all_gather((outcome.loss.item(), own_rows))
        faulty = [rank for rank, (loss, _) in enumerate(by_rank) if not math.isfinite(loss)]
        if not faulty and state.scaler.is_enabled() and outcome.scale.item() > SMALLEST_SCALE:
            return  # an fp16 gradient overflows now and then, and the scaler reduces its scale
        state.skipped_steps += 1
        reason = f"loss {sum(loss for loss, _ in by_rank)}, grad_norm {grad_norm}"
        recorder.log_skipped_step(
            step=outcome.step,
            skipped=reason,
            in_a_row=state.skipped_steps,
            ranks=faulty,
            rows=[row for rank, (_, rows) in enumerate(by_rank) if rank in faulty or not faulty for row in rows],
        )
        if state.skipped_steps >= self.max_skipped:
            raise RunError(
                f"loss or gradient was not finite in {state.skipped_steps} consecutive steps (last: step "
                f"{outcome.step}, {reason}). The checkpoints are from before them; a lower optim.lr or a longer "
                f"optim.warmup_iters may help"
            )
