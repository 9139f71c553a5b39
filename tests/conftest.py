"""Shared fixtures: a prepared corpus, a tiny trained run, and functions that run verbs and start processes."""

import importlib
import io
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mlm_dist.config import MaskingConfig
from mlm_dist.data.corpus import Corpus
from mlm_dist.data.preparation import SAMPLE_TEXT, encode_corpus, prepare_corpus
from mlm_dist.data.splitting import hold_out
from mlm_dist.exit_codes import run_verb
from mlm_dist.texts.document_list import find_documents
from mlm_dist.training.stopping import SIGNALS

REPOSITORY = Path(__file__).parent.parent

# A step of this model takes milliseconds, and its rows are short enough for the sample to have many.
TINY = {
    "device": "cpu",
    "precision": "fp32",
    "model.vocab_size": 300,
    "model.block_size": 16,
    "model.embedding_dim": 16,
    "model.heads": 2,
    "model.blocks": 2,
    "train.batch_size": 16,
    "train.max_iters": 30,
    "train.log_interval": 1,
    "train.eval_interval": 10,
    "train.eval_rows": 50,
    "checkpoint.interval": 10,
    "optim.warmup_iters": 5,
}

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # kernels run on the CPU; read when triton is imported
torch.set_num_threads(1)  # as in the processes that the tests start


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--without-processes", action="store_true", help="skip the tests that start a process")


Result = subprocess.CompletedProcess[str]


def flags(**overrides: object) -> list[str]:
    """Command-line flags of a config; `train__max_iters=3` stands for `--train.max_iters 3`."""
    return [f"--{key.replace('__', '.')}={value}" for key, value in overrides.items()]


Rate = float | tuple[float, float] | list[float]


def at_rate(rate: Rate) -> MaskingConfig:
    """The masking at a constant rate, on a schedule `(start, end)`, or at rates sampled from `[low, high]`."""
    match rate:
        case (start, end) if isinstance(rate, tuple):
            return MaskingConfig(mask_prob=start, mask_prob_end=end)
        case list():
            return MaskingConfig(mask_prob_range=rate)
        case _:
            return MaskingConfig(mask_prob=rate)


def tiny_flags(corpus: Path, run_dir: Path, **overrides: object) -> list[str]:
    """Flags of a tiny training run."""
    values = TINY | {"data.path": corpus, "run_dir": run_dir}
    values |= {key.replace("__", "."): value for key, value in overrides.items()}
    return [f"--{key}={value}" for key, value in values.items()]


def start(
    command: list[str], cwd: Path | None = None, timeout: float = 240, stdin: str = "", **environment: str
) -> Result:
    """Run a command in its own process, outside any torchrun."""
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")}
    kept |= {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(
        command,
        capture_output=True,
        input=stdin,
        encoding="utf-8",
        cwd=cwd or REPOSITORY,
        env=kept,
        timeout=timeout,
        check=False,
    )


def verb(name: str, *arguments: object, **options: Any) -> Result:
    """Run a verb with command-line arguments, in this process if possible, because importing torch takes seconds.

    A time limit, or a variable that is read at startup, needs `python -m mlm_dist.<name>` in a new process.
    """
    command = [sys.executable, "-m", f"mlm_dist.{name}", *map(str, arguments)]
    if options.keys() <= {"cwd", "stdin", "XDG_CACHE_HOME"}:
        return run_in_process(command, **options)
    return start(command, **options)


def run_in_process(command: list[str], cwd: Path | None = None, stdin: str = "", **environment: str) -> Result:
    """Run `python -m mlm_dist.<verb>` in this process: with its output and exit code, and without lasting changes."""
    _, _, module, *arguments = command
    streams = [io.TextIOWrapper(io.BytesIO(text), encoding="utf-8") for text in (stdin.encode(), b"", b"")]
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    code = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module, *arguments])
        for name, stream in zip(("stdin", "stdout", "stderr"), streams, strict=True):
            patch.setattr(sys, name, stream)
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT"):
            patch.delenv(name, raising=False)
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.chdir(cwd or REPOSITORY)
        try:
            run_verb(importlib.import_module(module).main, prints_only_a_log=module == "mlm_dist.train")
        except SystemExit as error:
            assert isinstance(error.code, int | None)
            code = error.code or 0
        except Exception:
            traceback.print_exc()
            code = 1
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for stream in streams[1:]:
        stream.flush()
    out, err = (stream.buffer.getvalue().decode() for stream in streams[1:])
    return subprocess.CompletedProcess(command, code, out, err)


def torchrun(processes: int, *arguments: object, verb: str = "train", **options: Any) -> Result:
    """Run `torchrun --standalone --nproc_per_node=<processes> -m mlm_dist.<verb>`."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return start([*launcher, "-m", f"mlm_dist.{verb}", *map(str, arguments)], **options)


@pytest.fixture(scope="session", autouse=True)
def without_processes(request: pytest.FixtureRequest) -> Iterator[None]:
    """With `--without-processes`, skip every test at the point where it starts a process."""
    with pytest.MonkeyPatch.context() as patch:
        if request.config.getoption("--without-processes"):
            patch.setattr(subprocess.Popen, "__init__", lambda *_, **__: pytest.skip("starts a process"))
        yield


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Do not touch the cache of the user who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def without_gpus(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the GPUs from the processes that a test starts, unless it is marked `gpu`.

    This has no effect on this process if CUDA is initialized. Tests name the device in this process.
    """
    if not request.node.get_closest_marker("gpu"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample text, prepared with a BPE of 300 entries trained on it."""
    folder = tmp_path_factory.mktemp("corpus") / "sample"
    prepare_corpus(hold_out(find_documents([SAMPLE_TEXT]), 0.1), folder, "bpe", vocab_size=300)
    return folder


@pytest.fixture(scope="session")
def corpus(corpus_folder: Path) -> Corpus:
    """The corpus in `corpus_folder`, open."""
    return Corpus.open(corpus_folder)


@pytest.fixture(scope="session")
def sharded_folder(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus in `corpus_folder`, in shards that end within rows of 16 tokens, and between them."""
    folder = tmp_path_factory.mktemp("sharded")
    encode_corpus(hold_out(find_documents([SAMPLE_TEXT]), 0.1), folder, corpus.tokenizer, shard_tokens=1000)
    return folder


@pytest.fixture(scope="session")
def paragraphs(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The paragraphs of the sample as documents, with the tokenizer of `corpus`."""
    folder = tmp_path_factory.mktemp("paragraphs")
    (folder / "texts").mkdir()
    for index, text in enumerate(SAMPLE_TEXT.read_text(encoding="utf-8").split("\n\n")):
        (folder / "texts" / f"{index:04}.txt").write_text(f"{text}\n", encoding="utf-8")
    (folder / "corpus").mkdir()
    encode_corpus(hold_out(find_documents([folder / "texts"]), 0.1), folder / "corpus", corpus.tokenizer)
    return folder / "corpus"


def convert_corpus(folder: Path, version: int) -> None:
    """Convert a corpus to format version 1 or 2, with its documents in corpus.json."""
    manifest = folder / "corpus.json"
    content = json.loads(manifest.read_text(encoding="utf-8")) | {"version": version}
    content["documents"] = [
        {
            "name": d.name,
            **{split: [tokens.start, tokens.stop] for split, tokens in (("train", d.train), ("val", d.val))},
        }
        for d in Corpus.open(folder).documents()
    ]
    for name in ("documents.bin", "documents.names"):
        del content["sha256"][name]
        (folder / name).unlink()
    if version == 1:
        del content["tokenizer_sha256"]
    manifest.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture(scope="session")
def run_dir(corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run of 30 steps, trained by one process."""
    folder = tmp_path_factory.mktemp("run") / "tiny"
    result = verb("train", *tiny_flags(corpus_folder, folder))
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture
def kept_handlers() -> Iterator[None]:
    """After the test, restore the handlers of the signals that a `StopRequest` handles."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def gpt2_vocabulary() -> None:
    """Skip the test if tiktoken's GPT-2 vocabulary is not cached and cannot be downloaded."""
    from mlm_dist.data.tokenizer import Tokenizer
    from mlm_dist.errors import UserError

    try:
        Tokenizer.from_tiktoken("gpt2")
    except UserError as error:
        pytest.skip(f"needs GPT-2's vocabulary: {error}")
