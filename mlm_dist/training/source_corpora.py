"""The corpora of the run that another run started from, on which it is evaluated too: to see what it forgets."""

from pathlib import Path

from mlm_dist.data.corpus import Corpus
from mlm_dist.data.preparation import find_or_prepare_all
from mlm_dist.errors import UserError
from mlm_dist.output import warn
from mlm_dist.run.origin import Origin
from mlm_dist.run.run_dir import RunDir
from mlm_dist.run.trained import read_run_config
from mlm_dist.source import Source
from mlm_dist.training.trainer import Trainer


def find_corpora(source: Source) -> dict[str, list[str]]:
    """The corpora of the source, as `Origin.corpora`; empty if they are not there anymore."""
    config = read_run_config(RunDir(source.folder))
    try:
        corpora = [Corpus.open(folder, "never") for folder in find_or_prepare_all(config.data, config.model.vocab_size)]
    except UserError as error:
        warn(f"the loss on the text of {source.name} is not evaluated: {error}")
        return {}
    return {
        part["path"]: [str(corpus.folder.absolute()), corpus.manifest.sha256["val"]]
        for part, corpus in zip(config.data.parts, corpora, strict=True)
    }


def watch_source_corpora(trainer: Trainer, origin: Origin) -> None:
    """Evaluate on the corpora of the source too, those that are still there. All ranks call this."""
    processes, config = trainer.processes, trainer.config
    own = {corpus.folder.absolute() for corpus in trainer.corpora}
    for path, (folder, sha256) in origin.corpora.items():
        if Path(folder) in own or not config.train.eval_interval:
            continue
        corpus, reason = open_corpus(Path(folder), sha256, config.model.block_size, processes.is_local_rank_zero)
        if reasons := [*filter(None, processes.all_gather(reason))]:
            warn(f"the loss on the text of {config.init_from} is not evaluated: {reasons[0]}")
        elif corpus:
            trainer.validator.watch(folder if path in config.data.paths.split(", ") else path, corpus)


def open_corpus(folder: Path, sha256: str, block_size: int, verify: bool) -> tuple[Corpus | None, str]:
    """Open a corpus of the source.

    Returns:
        The corpus, or None and why it cannot be used.
    """
    try:
        corpus = Corpus.open(folder, "once" if verify else "never")
    except UserError as error:
        return None, str(error)
    if corpus.manifest.sha256["val"] != sha256:
        return None, f"{folder} has changed"
    if len(corpus.val) < block_size:
        return None, f"{folder} has no validation row"
    return corpus, ""
