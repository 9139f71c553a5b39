"""Resuming a run from its newest checkpoint: parameters, optimizers and step.

A new run starts from initial parameters, which `Trainer.__init__` in trainer.py builds.
"""

from pathlib import Path

from mlm_dist.errors import UserError
from mlm_dist.output import warn
from mlm_dist.run.checkpoint import find_newest, load_checkpoint, read_record
from mlm_dist.run.record import ORIGIN_SHA256, differences
from mlm_dist.run.run_dir import check_same_run
from mlm_dist.training.trainer import Trainer


def resume(trainer: Trainer) -> None:
    """Load the newest undamaged checkpoint of a run into its trainer, if there is one. All ranks call this.

    Raises:
        UserError: all checkpoints are damaged, or the newest undamaged one belongs to a different run or is beyond
            `max_iters`.
    """
    path = trainer.processes.on_rank_zero(lambda: find_newest(trainer.run_dir.checkpoints))
    if not path:
        return
    with trainer.processes.raise_on_all_ranks():
        record = read_record(path)
        if record:
            check_same_run(record["fixed"], trainer.record["fixed"], path)
            if ORIGIN_SHA256 in record["fixed"]:  # origin.json, which also has it, may be lost
                trainer.record["fixed"][ORIGIN_SHA256] = record["fixed"][ORIGIN_SHA256]
        load(trainer, path, check_corpus=not record)
    if record and (changes := differences(trainer.record["adjustable"], record["adjustable"])):
        warn(f"{path}: the run continues with {changes}")


def load(trainer: Trainer, path: Path, check_corpus: bool) -> None:
    """Load a checkpoint.

    Args:
        trainer: receives the state.
        path: the checkpoint path.
        check_corpus: compare the training tokens, since the checkpoint has no record, as in an earlier version.

    Raises:
        UserError: it cannot be read, does not fit the run, or is beyond `max_iters`.
    """
    content = load_checkpoint(path, mapped=trainer.device.type == "cuda")
    corpus, max_iters = trainer.corpora[0], trainer.config.train.max_iters
    if check_corpus and content.get("corpus") != corpus.manifest.sha256["train"]:
        raise UserError(f"{path} was trained on a different corpus from {corpus.folder}: give another run_dir")
    if type(content.get("step")) is int and content["step"] > max_iters:
        advice = f"raise it to at least {content['step']}, or use another run_dir"
        raise UserError(f"{path} is beyond train.max_iters {max_iters}: {advice}")
    try:
        trainer.state.load_state_dict(content)
    except UserError as error:
        raise UserError(f"{path} {error}") from error
    trainer.saved_step = trainer.state.step
