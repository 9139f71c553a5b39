"""The lines that are printed before and after training."""

from collections.abc import Mapping

from mlm_dist.config import Config
from mlm_dist.run.origin import Origin
from mlm_dist.training.milestones import describe_milestones
from mlm_dist.training.schedule import shortened_parts
from mlm_dist.training.trainer import Trainer


def describe(trainer: Trainer) -> str:
    """One line: what is trained, and where."""
    parameters = sum(parameter.numel() for parameter in trainer.state.encoder.parameters())
    precision = str(trainer.dtype).removeprefix("torch.")
    milestones = f", milestones at {describe_milestones(trainer.milestones)}" if trainer.milestones else ""
    return (
        f"training {parameters / 1e6:.1f} M parameters in {precision} on {trainer.processes.world_size} x "
        f"{trainer.device.type}, step {trainer.state.step} to {trainer.config.train.max_iters} "
        f"({len(trainer.sampler)} steps per epoch){milestones}, in {trainer.run_dir.path}"
        f"{describe_origin(trainer.origin)}"
    )


def describe_origin(origin: Origin | None) -> str:
    """What the run started from."""
    if origin is None:
        return ""
    return f", started from {origin.name}{'' if origin.step is None else f' (step {origin.step})'}"


def adjustments(needed: int, config: Config, milestones: Mapping[int, str]) -> list[str]:
    """One line for each config value that does not fit the run or its corpora, with its consequence.

    Args:
        needed: the vocabulary size of the corpora.
        config: the run's config.
        milestones: what the config has for each step that is a milestone.
    """
    lines = shortened_parts(config.train.max_iters, config.optim)
    late = {step: value for step, value in milestones.items() if step > config.train.max_iters}
    if late:
        lines.append(
            f"checkpoint.milestones {describe_milestones(late)}: not saved, since train.max_iters is "
            f"{config.train.max_iters}"
        )
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
    if trainer.stop.reason:
        return (
            f"stopped by {trainer.stop.reason} at step {step} of {trainer.config.train.max_iters}, saved in "
            f"{run_dir.path}; the same command continues from there"
        )
    parameters = f"parameters: {run_dir.model}"
    if trainer.patience.is_out:
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
