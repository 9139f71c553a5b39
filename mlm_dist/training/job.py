"""A training job from start to end: check, open the corpus, resume, train, report."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from mlm_dist.config import Config
from mlm_dist.data.corpus import Corpus, Verify
from mlm_dist.data.mixture import join_corpora
from mlm_dist.data.preparation import find_or_prepare_all
from mlm_dist.distributed import Processes
from mlm_dist.fault_points import reached
from mlm_dist.model.registry import model_class
from mlm_dist.output import print_log, warn
from mlm_dist.run.machine import describe_machine
from mlm_dist.run.run_dir import RunDir
from mlm_dist.run.trackers import check_trackers
from mlm_dist.training.initialization import ReadExported, check_source, initialize
from mlm_dist.training.memory import keep_freed_memory
from mlm_dist.training.resume import resume
from mlm_dist.training.stopping import StopRequest
from mlm_dist.training.summary import adjustments, describe, summarize
from mlm_dist.training.trainer import Trainer


def run_job(config: Config, stop: StopRequest, plot: Callable[[RunDir], None], read_exported: ReadExported) -> str:
    """Train, or resume the run in `config.run_dir`, until the last step or a stop request.

    Args:
        config: the run's config.
        stop: the stop request, which is checked between steps.
        plot: plots the curves of the finished run.
        read_exported: reads an exported model, which the run may start from.

    Returns:
        The reason for an early stop; empty if the run is finished.

    Raises:
        UserError: the config, the corpus or the run directory is wrong, or memory or disk space is too small.
        RunError: the run cannot continue.
    """
    keep_freed_memory()
    processes = Processes(config.device, config.train.hang_timeout, config.run_dir)
    run_dir = RunDir(Path(config.run_dir))
    entries = check(config, run_dir, processes)
    corpora, config = open_corpora(config, run_dir, processes, entries)
    with processes.report_missing_ranks("the same command continues from the last checkpoint"), closing(run_dir):
        trainer = Trainer(config, corpora, processes, run_dir, stop)
        initialize(trainer, read_exported)
        lock(trainer)
        reached("resume begins")
        resume(trainer)
        reached("resumed")
        begin(trainer)
        trainer.train()
        finish(trainer, plot)
    processes.close()
    return trainer.stop.reason


def check(config: Config, run_dir: RunDir, processes: Processes) -> int:
    """Check what can be checked before the corpus is read. Returns the vocabulary size of `init_from`, or 0."""
    with processes.raise_on_all_ranks():
        check_trackers(config.report_to)
        model_class(config.model)
        run_dir.check(config)
        return check_source(config, run_dir)


def open_corpora(config: Config, run_dir: RunDir, processes: Processes, entries: int) -> tuple[list[Corpus], Config]:
    """Open the corpora. Rank 0 prepares one first if its path is text, and one rank of each host verifies them.

    Args:
        config: of the run.
        run_dir: its directory.
        processes: all ranks.
        entries: the smallest vocabulary size of the model.

    Returns:
        The corpora, and the config with the vocabulary size of the run.
    """
    with processes.raise_on_all_ranks():
        config = run_dir.fill_vocab_size(config)
    folders = processes.on_rank_zero(lambda: find_or_prepare_all(config.data, config.model.vocab_size))
    with processes.raise_on_all_ranks():
        verify: Verify = "always" if config.data.verify else "once"
        opened = [Corpus.open(folder, verify if processes.is_local_rank_zero else "never") for folder in folders]
        corpora = join_corpora(opened, config.model.block_size)
    return corpora, config.with_vocab_size(max(entries, corpora[0].tokenizer.vocab_size))


def lock(trainer: Trainer) -> None:
    """Check the disk space and acquire the lock of the run directory (rank 0)."""
    with trainer.processes.raise_on_all_ranks():
        if trainer.processes.is_rank_zero:
            reached_milestones = sum(step <= trainer.config.train.max_iters for step in trainer.milestones)
            milestone_bytes = reached_milestones * trainer.state.parameter_bytes
            trainer.run_dir.check_space(trainer.state.max_bytes, trainer.config, milestone_bytes)
            trainer.run_dir.acquire()


def begin(trainer: Trainer) -> None:
    """Write the files that describe the run and print what is trained (rank 0). All checks are done before."""
    processes, run_dir = trainer.processes, trainer.run_dir
    with processes.raise_on_all_ranks():
        if not processes.is_rank_zero:
            return
        run_dir.begin(trainer.config, trainer.tokenizer, trainer.origin)
        reached("run begun")
        run_dir.record_machine(describe_machine(processes.device, trainer.dtype, processes.world_size))
    print_log(describe(trainer))
    for line in adjustments(trainer.tokenizer.vocab_size, trainer.config, trainer.milestones):
        warn(line)


def finish(trainer: Trainer, plot: Callable[[RunDir], None]) -> None:
    """Plot the curves, mark the run as done, and print a summary (rank 0)."""
    processes, run_dir = trainer.processes, trainer.run_dir
    with processes.raise_on_all_ranks():
        if processes.is_rank_zero and not trainer.stop.reason:
            plot(run_dir)
            with run_dir.run_error_if_unwritable():
                run_dir.mark_done(trainer.final_step)
    if processes.is_rank_zero:
        print_log(summarize(trainer))
