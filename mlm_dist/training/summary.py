"""The lines that are printed before and after training."""

from mlm_dist.config import Config
from mlm_dist.training.schedule import shortened_phases
from mlm_dist.training.trainer import Trainer


def describe(trainer: Trainer) -> str:
    """One line: what is trained, and where."""
    parameters = sum(parameter.numel() for parameter in trainer.state.encoder.parameters())
    precision = str(trainer.dtype).removeprefix("torch.")
    return (
        f"training {parameters / 1e6:.1f} M parameters in {precision} on {trainer.processes.world_size} x "
        f"{trainer.device.type}, step {trainer.state.step} to {trainer.config.train.max_iters} "
        f"({len(trainer.sampler)} steps per epoch), in {trainer.run_dir.path}"
    )


def adjustments(needed: int, config: Config) -> list[str]:
    """One line for each config value that does not fit the run or its corpora, with its consequence.

    Args:
        needed: the vocabulary size of the corpora.
        config: the run's config.
    """
    lines = shortened_phases(config.train.max_iters, config.optim)
    size = config.model.entries
    if size > needed:
        unused = "1 entry is" if size - needed == 1 else f"{size - needed} entries are"
        lines.append(
            f"model.vocab_size {size} is larger than the vocabulary of {config.data.paths} ({needed}): {unused} never "
            f"used"
        )
    return lines


def summarize(trainer: Trainer) -> str:
    """The result of the run, or where it stopped."""
    step, run_dir = trainer.state.step, trainer.run_dir
    if trainer.stop_reason:
        return (
            f"stopped by {trainer.stop_reason} at step {step} of {trainer.config.train.max_iters}, saved in "
            f"{run_dir.path}; the same command continues from there"
        )
    parameters = f"parameters: {run_dir.model}"
    if trainer.is_out_of_patience:
        patience, best = trainer.config.train.patience, trainer.final_step
        return (
            f"done: the validation loss no longer improves (train.patience {patience}), so the run ends at "
            f"step {step} of {trainer.config.train.max_iters}; a larger train.patience continues it\n"
            f"{parameters}, of step {best} with validation loss {trainer.recorder.val_losses[best]:.3f}\n"
            f"loss curves: {run_dir.curves}"
        )
    losses = list(trainer.recorder.val_losses.values())
    validation = f"validation loss {losses[0]:.3f} -> {losses[-1]:.3f}" if losses else "no evaluation"
    return (
        f"done: {step} steps in {trainer.state.seconds:.0f} s of training, {validation}\n"
        f"{parameters}\nloss curves: {run_dir.curves}"
    )
