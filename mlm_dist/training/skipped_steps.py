"""Steps that are skipped because their gradient is not finite."""

import math

from mlm_dist.config import TrainConfig
from mlm_dist.data.sampler import GlobalBatchSampler
from mlm_dist.distributed import Processes
from mlm_dist.errors import RunError
from mlm_dist.run.recorder import Recorder
from mlm_dist.training.state import StepResult, TrainState

SMALLEST_SCALE = 2.0**-10


def count_skipped_steps(
    state: TrainState,
    result: StepResult,
    processes: Processes,
    sampler: GlobalBatchSampler,
    recorder: Recorder,
    config: TrainConfig,
) -> None:
    """Count consecutive skipped steps, and record the ranks and rows whose loss was not finite.

    Args:
        state: the state of the run, whose count is updated.
        result: the result of the step just taken.
        processes: all ranks, which call this together.
        sampler: selects the rows of the step.
        recorder: records the skipped step.
        config: has `max_bad_steps`.

    Raises:
        RunError: on all ranks, after `max_bad_steps` consecutive skipped steps.
    """
    if math.isfinite(result.grad_norm):
        state.skipped_steps = 0
        return
    own_rows: list[int] = sampler.select(state.step - 1).rows.tolist()
    by_rank = processes.all_gather((result.loss.item(), own_rows))
    faulty = [rank for rank, (loss, _) in enumerate(by_rank) if not math.isfinite(loss)]
    if not faulty and state.scaler.is_enabled() and state.scaler.get_scale() > SMALLEST_SCALE:
        return  # an fp16 gradient overflows now and then, and the scaler reduces its scale
    state.skipped_steps += 1
    reason = f"loss {sum(loss for loss, _ in by_rank)}, grad_norm {result.grad_norm}"
    recorder.log_skipped_step(
        step=state.step,
        skipped=reason,
        in_a_row=state.skipped_steps,
        ranks=faulty,
        rows=[row for rank, (_, rows) in enumerate(by_rank) if rank in faulty or not faulty for row in rows],
    )
    if state.skipped_steps >= config.max_bad_steps:
        raise RunError(
            f"loss or gradient was not finite in {state.skipped_steps} consecutive steps (last: step {state.step}, "
            f"{reason}). The checkpoints are from before them; a lower optim.lr or a longer optim.warmup_iters may help"
        )
