"""The verbs as Python functions: prepare, train, load, average."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mlm_dist.config import Config, DataConfig
from mlm_dist.errors import UserError, refuse_single
from mlm_dist.fault_points import reached
from mlm_dist.output import warn
from mlm_dist.training.stopping import StopRequest
from mlm_dist.version import __version__

if TYPE_CHECKING:
    from os import PathLike

    from mlm_dist.data.corpus import Manifest
    from mlm_dist.inference.model import TrainedModel
    from mlm_dist.run.metrics import Event
    from mlm_dist.run.run_dir import RunDir
    from mlm_dist.source import Step
    from mlm_dist.training.initialization import Weights

DEFAULT_TOKENIZER = DataConfig.tokenizer


@dataclass(frozen=True)
class PreparedCorpus:
    """A corpus on disk. Its `path` is a value for `data.path`.

    Attributes:
        path: the corpus folder.
        manifest: the content of its `corpus.json`: tokens per split, tokenizer, digests.
        documents: number of documents.
        bytes: size of the documents.
    """

    path: Path
    manifest: "Manifest"
    documents: int
    bytes: int


def prepare(
    paths: "Sequence[str | PathLike[str]]",
    out: "str | PathLike[str]",
    *,
    val: "Sequence[str | PathLike[str]]" = (),
    val_fraction: float = 0.05,
    tokenizer: str | None = None,
    vocab_size: int | None = None,
    extend: "str | PathLike[str] | None" = None,
    add_tokens: int | None = None,
    shard_tokens: int | None = None,
    encoding: str = "utf-8",
    text_key: str = "text",
    split: Literal["document", "line"] = "document",
    skip_broken: bool = False,
    drop_duplicates: bool = False,
    near_duplicates: bool = False,
    gutenberg: Sequence[int] = (),
    mirror: str = "https://www.gutenberg.org",
) -> PreparedCorpus:
    """Encode texts into a corpus to train on.

    Args:
        paths: files (plain text, JSON Lines, CSV, TSV, Parquet or Arrow, each also as .gz or .zst), folders with such
            files, patterns such as `data/*.jsonl`, and `-` for standard input.
        out: the folder to write, which must not exist.
        val: documents of the validation split.
        val_fraction: the fraction of the text in the validation split, unless `val` is given.
        tokenizer: a tiktoken encoding, the folder of a corpus, run or exported model whose tokenizer is used, or `bpe`
            to train a byte-level BPE on the texts. None: gpt2, unless `extend` is given.
        vocab_size: vocabulary size of this BPE, including special tokens.
        extend: the folder of a corpus or run whose tokenizer is extended by tokens learned on the texts. All its ids
            stay.
        add_tokens: the number of these tokens.
        shard_tokens: the largest number of tokens in a file. A split is then several files, which are read as one.
        encoding: character encoding of the files.
        text_key: the field of a record that is its text.
        split: whether a plain text is one `document`, or each `line` of it that is not blank.
        skip_broken: whether broken records are left out, and counted in a warning.
        drop_duplicates: whether documents with the text of an earlier one are left out.
        near_duplicates: whether documents that are nearly the same count as duplicates too. This needs `rensa`.
        gutenberg: numbers of books of Project Gutenberg, which are downloaded once.
        mirror: URL to download them from.

    Raises:
        UserError: a value is out of bounds or cannot be combined with another, `paths` or `val` is not a list, a text
            cannot be read or downloaded, or `out` exists or cannot be written.
    """
    from mlm_dist.data.preparation import prepare_corpus  # noqa: PLC0415
    from mlm_dist.data.splitting import hold_out  # noqa: PLC0415
    from mlm_dist.files import refuse_existing  # noqa: PLC0415
    from mlm_dist.texts.document_list import list_documents  # noqa: PLC0415
    from mlm_dist.texts.finding import find_files  # noqa: PLC0415
    from mlm_dist.texts.near_duplicates import NearDuplicates  # noqa: PLC0415
    from mlm_dist.texts.reading import Reading  # noqa: PLC0415

    refuse_single("paths", paths, "path")
    refuse_single("val", val, "path")
    if not 0 <= val_fraction < 1:
        raise UserError(f"val_fraction is {val_fraction}: it must be at least 0 and below 1")
    if (extend is None) != (add_tokens is None):
        raise UserError("--extend RUN and --add_tokens N need each other: give both or neither")
    if extend is not None and (tokenizer, vocab_size) != (None, None):
        raise UserError("--extend cannot be combined with --tokenizer or --vocab_size: remove them, or --extend")
    if vocab_size is not None and tokenizer != "bpe":
        name = tokenizer or DEFAULT_TOKENIZER
        raise UserError(f"--vocab_size requires --tokenizer bpe: the vocabulary size of '{name}' is fixed")
    if shard_tokens is not None and shard_tokens < 1:
        raise UserError(f"shard_tokens is {shard_tokens}: it must be at least 1")
    if not paths and not gutenberg:
        raise UserError("nothing to prepare: give the PATH of texts, book numbers after --gutenberg, or both")
    refuse_existing(Path(out))
    files = find_files([*map(Path, paths)], [*map(Path, val)]) if paths or val else []
    if gutenberg:
        from mlm_dist.texts.gutenberg import fetch_books  # noqa: PLC0415 (`requests` is slow to import)

        files += fetch_books(list(gutenberg), mirror, f"mlm_dist/{__version__}")
    near = NearDuplicates() if near_duplicates else None
    documents = list_documents(files, Reading(encoding, text_key, split, skip_broken), near)
    if drop_duplicates:
        documents = documents.without_duplicates()
    documents = hold_out(documents, val_fraction)
    name = tokenizer or str(extend or DEFAULT_TOKENIZER)
    manifest = prepare_corpus(documents, Path(out), name, vocab_size, add_tokens, shard_tokens)
    return PreparedCorpus(Path(out), manifest, len(documents), documents.size)


def load(
    run_dir: "str | PathLike[str]",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    step: "Step | None" = None,
) -> "TrainedModel":
    """Load the model of a run.

    Args:
        run_dir: a run directory. If the run is finished, its final parameters are loaded, otherwise its newest
            undamaged checkpoint. If there is only one of the two, that one is loaded.
        device: the device to compute on; `auto` is a GPU if there is one, otherwise the CPU.
        step: load the checkpoint or milestone of this step instead; `best` is the one with the lowest validation loss,
            `newest` the newest undamaged checkpoint.

    Raises:
        UserError: `run_dir` is not a run directory, it has no trained parameters yet or none of this step, its files
            are damaged or were changed after the training, a parameter is not finite, or `device` is `cuda` and there
            is no GPU.
    """
    # Imported here, so that --help and user errors do not wait for torch.
    from mlm_dist.distributed import choose_device  # noqa: PLC0415
    from mlm_dist.inference.model import TrainedModel  # noqa: PLC0415

    return TrainedModel(Path(run_dir), choose_device(device), step)


def average(run_dir: "str | PathLike[str]", last: int, out: "str | PathLike[str]") -> list[int]:
    """Average the parameters of the last checkpoints and milestones of a run, in fp64, into a new run directory.

    Args:
        run_dir: a run directory.
        last: how many steps to average.
        out: the folder to write, which must not exist. It can be loaded, but not trained further.

    Returns:
        The steps that were averaged.

    Raises:
        UserError: `last` is below 1, the run has fewer undamaged checkpoints and milestones, they do not fit its
            config, or `out` exists or cannot be written.
    """
    from mlm_dist.inference.averaging import average_parameters  # noqa: PLC0415

    return average_parameters(Path(run_dir), last, Path(out))


@dataclass(frozen=True)
class Run:
    """A run that has been trained, or has stopped on request.

    Attributes:
        path: the run directory.
        stop_reason: what stopped it before its last step, such as `train.time_limit`; empty if it is finished.
    """

    path: Path
    stop_reason: str

    @property
    def metrics(self) -> "list[Event]":
        """The events of metrics.jsonl: one dict for each logged step, skipped step and evaluation.

        Raises:
            OSError: the file cannot be read.
        """
        from mlm_dist.run.metrics import read_events  # noqa: PLC0415

        return read_events(self.path / "metrics.jsonl")

    def load(self, step: "Step | None" = None) -> "TrainedModel":
        """Load the trained model, as `mlm_dist.load` does."""
        return load(self.path, step=step)


def train(config: Config) -> Run:
    """Train, or resume the run in `config.run_dir`. Also available as `mlm_dist.train`.

    Returns at the end of the run, or after a stop request: then the run directory has a file STOPPED.

    Raises:
        UserError: the config, the corpus or the run directory is wrong, or memory or disk space is too small.
        RunError: the run cannot continue.
    """
    if not isinstance(config, Config):
        raise UserError("train needs a Config: mlm_dist.read_config makes one of a file, or of the name of a config")
    config.check_world_size(int(os.environ.get("WORLD_SIZE", "1")))
    with StopRequest(config.train.time_limit) as stop, deterministic() if config.debug else nullcontext():
        # Imported here, so that a signal during the import of torch is a stop request too.
        from mlm_dist.training.job import run_job  # noqa: PLC0415

        return Run(Path(config.run_dir), run_job(config, stop, plot_curves, read_exported))


def read_exported(folder: Path) -> "Weights":
    """Read a folder that `export` wrote, for `init_from`. Raises `UserError`."""
    from mlm_dist.huggingface.importing import read_exported  # noqa: PLC0415
    from mlm_dist.training.initialization import Weights  # noqa: PLC0415

    return Weights(*read_exported(folder))


def plot_curves(run_dir: "RunDir") -> None:
    """Plot the curves of a run. Failure is only a warning: the run is finished."""
    from mlm_dist.plots.curves import save_curves  # noqa: PLC0415

    try:
        reached("plot begins")
        save_curves(run_dir.metrics, run_dir.curves)
        reached("plotted")
    except OSError as error:
        warn(f"{run_dir.curves} cannot be written ({error.strerror}); `python -m mlm_dist.plot` plots it again")
    except UserError as error:
        warn(f"{run_dir.curves} is not plotted: {error}")


@contextmanager
def deterministic() -> Iterator[None]:
    """Use deterministic algorithms, and make autograd name the operation that returned NaN."""
    import torch  # noqa: PLC0415

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts; torch asks for it
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms(True) would import the compiler: seconds
    try:
        with torch.autograd.set_detect_anomaly(True):
            yield
    finally:
        torch.set_deterministic_debug_mode(before)
