"""`python -m mlm_dist.prepare` as a user runs it."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

import mlm_dist
from mlm_dist.data.corpus import Corpus
from mlm_dist.data.preparation import SAMPLE_TEXT
from tests.conftest import REPOSITORY, Result, start, verb
from tests.texts.mirror import Mirror, file_of

BPE = ("--tokenizer", "bpe", "--vocab_size", 300)

# Runs prepare on at most N cores: each core adds pieces in memory and shortens the run.
ON_CORES = """
import os, runpy, sys
cores = int(sys.argv.pop(1))
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
runpy.run_module("mlm_dist.prepare", run_name="__main__", alter_sys=True)
"""
# The kernel's VmHWM is the peak of this program alone. The ru_maxrss of getrusage includes the process before its exec,
# which is a copy of pytest.
PEAK_MEMORY = """
[peak] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(peak.split()[1])
"""
linux_only = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """texts/{one.txt, more/two.txt}: the two halves of the sample."""
    sample = SAMPLE_TEXT.read_text(encoding="utf-8")
    middle = sample.index("\n", len(sample) // 2)
    for name, text in (("one.txt", sample[:middle]), ("more/two.txt", sample[middle:])):
        path = tmp_path / "texts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    return tmp_path / "texts"


def repeated_sample(path: Path, megabytes: int) -> Path:
    """Write a file of about this many megabytes."""
    sample = SAMPLE_TEXT.read_bytes()
    with path.open("wb") as file:
        for _ in range(megabytes * 1_000_000 // len(sample)):
            file.write(sample)
    return path


def check_user_error(result: Result, *message_parts: str) -> None:
    """Check that a command ended with one line about a user error that contains these words."""
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1 and result.stderr.endswith("\n"), result.stderr
    assert result.stderr.startswith("mlm_dist: error: ")
    for word in message_parts:
        assert word in result.stderr


def test_a_folder_of_texts_becomes_a_corpus(texts: Path, tmp_path: Path) -> None:
    result = verb("prepare", texts, "--out", tmp_path / "out", "--val_fraction", 0.1, *BPE)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("\n") == 2
    assert "2 documents" in result.stdout and "vocabulary 300" in result.stdout
    corpus = Corpus.open(tmp_path / "out")
    assert [d.name for d in corpus.documents()] == ["more/two.txt", "one.txt"]
    assert corpus.tokenizer.decode(np.asarray(corpus.train[corpus.documents()[1].train])).startswith("The Keeper")
    assert 0.09 < len(corpus.val) / (len(corpus.train) + len(corpus.val)) < 0.11
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "texts"]


def test_validation_documents_can_be_named(texts: Path, tmp_path: Path) -> None:
    result = verb("prepare", texts / "one.txt", "--val", texts / "more", "--out", tmp_path / "out", *BPE)
    assert result.returncode == 0, result.stderr
    corpus = Corpus.open(tmp_path / "out")
    assert list(corpus.documents()) == [
        ("one.txt", slice(0, len(corpus.train)), slice(0, 0)),
        ("two.txt", slice(len(corpus.train), len(corpus.train)), slice(0, len(corpus.val))),
    ]


def test_the_val_option_can_be_repeated(texts: Path, tmp_path: Path) -> None:
    (tmp_path / "three.txt").write_text("Three.\n" * 20, encoding="utf-8")
    val = ["--val", texts / "more", "--val", tmp_path / "three.txt"]
    result = verb("prepare", texts / "one.txt", *val, "--out", tmp_path / "out", *BPE)
    assert result.returncode == 0, result.stderr
    documents = Corpus.open(tmp_path / "out").documents()
    assert [d.name for d in documents if d.count("val")] == ["two.txt", "three.txt"]


def test_the_same_texts_give_the_same_corpus_in_every_process(texts: Path, tmp_path: Path) -> None:
    for seed, threads in (("1", "1"), ("2", "4")):
        result = verb("prepare", texts, "--out", tmp_path / seed, *BPE, PYTHONHASHSEED=seed, RAYON_NUM_THREADS=threads)
        assert result.returncode == 0, result.stderr
    for path in (tmp_path / "1").rglob("*"):
        if path.is_file():
            assert (tmp_path / "2" / path.relative_to(tmp_path / "1")).read_bytes() == path.read_bytes()


def test_gpt2_is_the_default_tokenizer(gpt2_vocabulary: None, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"Hello world\r\n<|endoftext|> [MASK]\n")
    result = verb("prepare", tmp_path / "a.txt", "--out", tmp_path / "out", "--val_fraction", 0)
    assert result.returncode == 0, result.stderr
    manifest = json.loads((tmp_path / "out" / "corpus.json").read_text(encoding="utf-8"))
    assert [manifest[key] for key in ("tokenizer", "vocab_size", "mask_id", "end_id")] == ["gpt2", 50258, 50257, 50256]
    tokens = np.fromfile(tmp_path / "out" / "train.bin", dtype="<u2")
    assert tokens[:2].tolist() == [15496, 995]
    assert tokens.tolist().index(50256) == len(tokens) - 1
    assert 50257 not in tokens


def test_a_file_in_another_encoding_is_refused_until_the_encoding_is_given(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("C'était déjà vu. ".encode("latin-1") * 20)
    check_user_error(
        verb("prepare", tmp_path / "a.txt", "--out", tmp_path / "out", *BPE),
        f"{tmp_path / 'a.txt'}: not utf-8 at byte 2 ",
        "--encoding",
    )
    assert not (tmp_path / "out").exists()
    result = verb("prepare", tmp_path / "a.txt", "--out", tmp_path / "out", "--encoding", "latin-1", *BPE)
    assert result.returncode == 0, result.stderr
    corpus = Corpus.open(tmp_path / "out")
    assert corpus.tokenizer.decode(np.asarray(corpus.train)).startswith("C'était déjà vu. ")


@pytest.mark.parametrize(
    ("arguments", "message_parts"),
    [
        (["missing.txt", "--out", "out", *BPE], ["missing.txt", "no such file or folder"]),
        (["good.txt", "--val", "missing.txt", "--out", "out", *BPE], ["missing.txt", "no such file or folder"]),
        (["empty.txt", "--out", "out", *BPE], ["empty.txt", "empty"]),
        (["bare", "--out", "out", *BPE], ["bare", "*.txt"]),
        (["good.txt", "--out", "out", "--encoding", "utf-88", *BPE], ["'utf-88'"]),
        (["good.txt", "--out", "out", "--encoding", "rot13", *BPE], ["'rot13'"]),
        (["bad.txt", "--out", "out", *BPE], ["bad.txt", "at byte 5 "]),
        (["good.txt", "bad.txt", "--out", "out", *BPE], ["bad.txt", "at byte 5 "]),
        (["good.txt", "--out", "out", "--encoding", "utf-16", *BPE], ["good.txt", "not utf-16"]),
        (["good.txt", "--out", "out", "--tokenizer", "gpt5"], ["'gpt5'", "gpt2", "bpe"]),
        (["good.txt", "--out", "out", "--vocab_size", "300"], ["--vocab_size", "bpe"]),
        (["good.txt", "--out", "out", "--tokenizer", "bpe"], ["--vocab_size"]),
        (["good.txt", "--out", "out", "--tokenizer", "bpe", "--vocab_size", "257"], ["257", "258"]),
        (
            ["good.txt", "--out", "out", "--tokenizer", "bpe", "--vocab_size", "many"],
            ["--vocab_size is many: it must be a whole number"],
        ),
        (["good.txt", "--out", "out", "--extend", "bare"], ["--extend RUN and --add_tokens N need each other"]),
        (["good.txt", "--out", "out", "--add_tokens", "5"], ["--extend RUN and --add_tokens N need each other"]),
        (["good.txt", "--out", "out", "--extend", "bare", "--add_tokens", "5"], ["bare", "not the folder of a corpus"]),
        (["good.txt", "--out", "out", "--extend", "gone", "--add_tokens", "5"], ["gone", "not the folder of a corpus"]),
        (
            ["good.txt", "--out", "out", "--extend", "bare", "--add_tokens", "some"],
            ["--add_tokens is some: it must be a whole number"],
        ),
        (["good.txt", "--out", "out", "--extend", "bare", "--add_tokens", "5", *BPE], ["--extend cannot be combined"]),
        (
            ["good.txt", "--out", "out", "--extend", "bare", "--add_tokens", "5", "--tokenizer", "gpt2"],
            ["--extend cannot be combined"],
        ),
        (["good.txt", "--out", "taken", *BPE], ["taken", "already exists"]),
        (["good.txt", "--out", "good.txt/out", *BPE], ["good.txt/out", "cannot be written"]),
        (["good.txt", "--out", "x" * 300, *BPE], ["xxx", "File name too long"]),
        (["x" * 300, "--out", "out", *BPE], ["xxx"]),
        (["good.txt", "--out", "out", "--val_fraction", "1.5", *BPE], ["val_fraction is 1.5"]),
        (["good.txt", "--out", "out", "--val_fraction", "-0.1", *BPE], ["val_fraction is -0.1"]),
        (["good.txt", "--out", "out", "--shard_tokens", "0", *BPE], ["shard_tokens is 0: it must be at least 1"]),
        (["good.txt", "--val", "good.txt", "--out", "out", *BPE], ["no training text"]),
        (["good.txt", *BPE], ["--out"]),
        (["--out", "out", *BPE], ["PATH", "--gutenberg"]),
        (["--gutenberg", "--out", "out", *BPE], ["--gutenberg"]),
        (["--gutenberg", "0", "--out", "out", *BPE], ["--gutenberg", "'0'"]),
        (["--gutenberg", "-5", "--out", "out", *BPE], ["--gutenberg", "'-5'"]),
        (["--gutenberg", "11", "1.5", "--out", "out", *BPE], ["--gutenberg", "'1.5'"]),
        (["--gutenberg", "11", "good.txt", "--out", "out", *BPE], ["--gutenberg", "'good.txt'"]),
        (["--gutenberg", "11", "--encoding", "latin-1", "--out", "out", *BPE], ["--encoding latin-1", "--gutenberg"]),
        (["--gutenberg", "11", "--val", "bare", "--out", "out", *BPE], ["bare", "*.txt"]),
        (["good.txt", "--out", "out", "--colour", "red", *BPE], ["--colour"]),
    ],
    ids=lambda value: " ".join(map(str, value)).removesuffix(" --tokenizer bpe --vocab_size 300")[:40],
)
def test_a_user_error_is_one_line_and_leaves_no_files(
    tmp_path: Path, arguments: list[object], message_parts: list[str]
) -> None:
    (tmp_path / "good.txt").write_bytes(b"one two three " * 50)
    (tmp_path / "bad.txt").write_bytes(b"caf\xc3\xa9\xe9 and more")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "bare").mkdir()
    (tmp_path / "taken").mkdir()
    before = sorted(tmp_path.rglob("*"))
    check_user_error(verb("prepare", *arguments, cwd=tmp_path), *message_parts)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "one"}\n{"text": "two"\n', "a.jsonl line 2: it is not JSON at column 15"),
        ("a.jsonl", b'{"body": "one"}\n', "there is no 'text' among its fields body: name the one with the text"),
        ("a.csv", b'text,id\n"one,1\n', "a.csv line 2: not a row of a table"),
        ("a.txt.gz", b"\x1f\x8b\x08\x00", "a.txt.gz: the file is damaged or cut off"),
        ("a.parquet", b"PAR1 and then nothing", "a.parquet: not Parquet, or damaged"),
        ("a.jsonl", b'{"text": ""}\n', "there is no text in"),
    ],
)
def test_broken_records_and_files_are_one_line_and_leave_no_files(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    check_user_error(verb("prepare", tmp_path / name, "--out", tmp_path / "out", *BPE), message)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_standard_input_and_flags_about_records(tmp_path: Path) -> None:
    lines = [json.dumps({"body": f"{number} words to read, and some more\n" * 20}) for number in range(30)]
    flags = ("--text_key", "body", "--skip_broken", "--val_fraction", 0, *BPE)
    result = verb("prepare", "-", "--out", tmp_path / "out", *flags, stdin="\n".join([*lines, "broken", ""]))
    assert result.returncode == 0, result.stderr
    assert result.stderr == "mlm_dist: skipped 1 broken record in standard input line 31: it is not JSON at column 1\n"
    assert "30 documents" in result.stdout
    assert "repeated lines: 95.0%" in result.stdout
    empty = verb("prepare", "-", "--out", tmp_path / "empty", *BPE)
    check_user_error(empty, "standard input: the file is empty")


def test_a_full_disk_is_one_line_and_leaves_no_files(texts: Path, tmp_path: Path) -> None:
    limited = 'ulimit -f 20; exec "$@"'  # blocks of 512 or 1024 bytes: more than the tokenizer, less than train.bin
    command = [sys.executable, "-m", "mlm_dist.prepare", texts, "--out", tmp_path / "out", *BPE]
    result = start(["sh", "-c", limited, "sh", *map(str, command)])
    check_user_error(result, "out: cannot be written: File too large")
    assert [path.name for path in tmp_path.iterdir()] == ["texts"]


def test_without_a_network_the_message_says_how_to_get_a_tiktoken_vocabulary(texts: Path, tmp_path: Path) -> None:
    offline = {"TIKTOKEN_CACHE_DIR": str(tmp_path / "empty")}
    offline |= dict.fromkeys(("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"), "http://127.0.0.1:9")
    offline |= {"NO_PROXY": "", "no_proxy": ""}
    result = verb("prepare", texts, "--out", tmp_path / "out", "--tokenizer", "gpt2", timeout=60, **offline)
    check_user_error(result, "'gpt2' could not be downloaded", "TIKTOKEN_CACHE_DIR", "bpe")
    assert not (tmp_path / "out").exists()
    assert verb("prepare", texts, "--out", tmp_path / "out", *BPE, **offline).returncode == 0


def test_a_prepared_gpt2_corpus_needs_no_network(gpt2_vocabulary: None, texts: Path, tmp_path: Path) -> None:
    assert verb("prepare", texts, "--out", tmp_path / "out", "--tokenizer", "gpt2").returncode == 0
    read = "import sys, pathlib; from mlm_dist.data.corpus import Corpus; c = Corpus.open(pathlib.Path(sys.argv[1]));"
    read += "print(c.tokenizer.decode(c.train[:6]), c.tokenizer.encode('Hello world').tolist())"
    cache, proxy = str(tmp_path / "empty"), "http://127.0.0.1:9"
    result = start([sys.executable, "-c", read, str(tmp_path / "out")], TIKTOKEN_CACHE_DIR=cache, HTTPS_PROXY=proxy)
    assert result.stderr == ""
    assert "[15496, 995]" in result.stdout


def peak_memory(path: Path, out: Path, *tokenizer: object) -> float:
    """Peak memory of preparing a file, in megabytes."""
    command = [sys.executable, "-c", ON_CORES + PEAK_MEMORY, 2, path, "--out", out, *tokenizer]
    result = start(list(map(str, command)))
    assert result.returncode == 0, result.stderr
    return int(result.stdout.split()[-1]) * 1024 / 1e6


def repeated_line(path: Path, megabytes: int) -> Path:
    """Write a file of about this many megabytes without a newline."""
    line = SAMPLE_TEXT.read_bytes().replace(b"\n", b" ")
    with path.open("wb") as file:
        for _ in range(megabytes * 1_000_000 // len(line)):
            file.write(line)
    return path


def repeated_records(path: Path, megabytes: int) -> Path:
    """Write a compressed file of about this many megabytes of JSON Lines, 1 kB each."""
    sample = SAMPLE_TEXT.read_text(encoding="utf-8")
    records = [json.dumps({"text": sample[start : start + 950]}) for start in range(0, len(sample), 950)]
    path = path.with_suffix(".jsonl.gz")
    with gzip.open(path, "wt", encoding="utf-8", compresslevel=1) as file:
        for _ in range(megabytes * 1_000_000 // len(sample)):
            file.write("\n".join(records) + "\n")
    return path


FILLS_PIPELINE = 6  # megabytes: more than all pieces in flight


def check_memory(
    tmp_path: Path, megabytes: int, growth: float, *tokenizer: object, write: Callable[[Path, int], Path]
) -> None:
    """Check that a large file takes no more memory than a small one, except for the pieces in flight."""
    sizes = FILLS_PIPELINE, FILLS_PIPELINE + megabytes
    small, large = (peak_memory(write(tmp_path / f"{n}.txt", n), tmp_path / str(n), *tokenizer) for n in sizes)
    print(f"\npeak memory: {small:.0f} MB for {sizes[0]} MB of text, {large:.0f} MB for {sizes[1]} MB")
    assert large - small < growth


@linux_only
@pytest.mark.parametrize("write", [repeated_sample, repeated_line, repeated_records])
def test_memory_does_not_grow_with_the_text(
    write: Callable[[Path, int], Path], gpt2_vocabulary: None, tmp_path: Path
) -> None:
    check_memory(tmp_path, 40, 40, "--tokenizer", "gpt2", write=write)


@linux_only
def test_memory_does_not_grow_with_the_training_text_of_a_bpe(tmp_path: Path) -> None:
    check_memory(tmp_path, 12, 20, *BPE, write=repeated_sample)


def start_preparing(
    *arguments: object, cores: int = 1, tokenizer: Sequence[object] = BPE, **environment: str
) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", ON_CORES, cores, *arguments, *tokenizer]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment
    return subprocess.Popen(
        list(map(str, command)),
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # A process that a shell starts in the background ignores Ctrl-C, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )


def wait_for(process: subprocess.Popen[str], folder: Path, file: str) -> None:
    """Wait until a file below `folder` that matches the pattern `file` is not empty."""
    while not any(path.stat().st_size for path in folder.glob(file)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def test_an_interrupt_leaves_no_files(tmp_path: Path) -> None:
    text = repeated_sample(tmp_path / "text.txt", 4)
    process = start_preparing(text, "--out", tmp_path / "out")
    wait_for(process, tmp_path, ".out*/train.bin")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "mlm_dist: interrupted\n")
    assert list(tmp_path.iterdir()) == [text]


@pytest.mark.parametrize("is_extension", [False, True])
def test_an_interrupt_during_bpe_training_leaves_no_files(
    is_extension: bool, corpus_folder: Path, tmp_path: Path
) -> None:
    text = repeated_sample(tmp_path / "text.txt", 40)
    tokenizer = ("--extend", corpus_folder, "--add_tokens", 500) if is_extension else BPE
    process = start_preparing(text, "--out", tmp_path / "out", cores=2, tokenizer=tokenizer)
    try:
        wait_for(process, tmp_path, ".out*")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, errors) == (130, "mlm_dist: interrupted\n")
    assert list(tmp_path.iterdir()) == [text]


def test_a_killed_process_leaves_no_corpus_and_does_not_block_the_next(tmp_path: Path) -> None:
    text = repeated_sample(tmp_path / "text.txt", 4)
    process = start_preparing(text, "--out", tmp_path / "out")
    wait_for(process, tmp_path, ".out*/train.bin")
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.rglob("corpus.json"))
    result = verb("prepare", SAMPLE_TEXT, "--out", tmp_path / "out", *BPE)
    assert result.returncode == 0, result.stderr
    assert Corpus.open(tmp_path / "out").manifest.vocab_size == 300


def gutenberg(*arguments: object, cache: Path) -> Result:
    """Prepare books of Project Gutenberg with a separate cache."""
    return verb("prepare", "--gutenberg", *arguments, *BPE, XDG_CACHE_HOME=str(cache), NO_PROXY="127.0.0.1")


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    """A mirror of Project Gutenberg with two books, 11 and 12."""
    with Mirror() as running:
        running.add(11, file_of("Eleven came down to the sea.\n" * 1500, "Book Eleven"))
        running.add(12, file_of("Twelve went up to the hills.\n" * 1500, "Book Twelve"))
        yield running


def test_books_of_project_gutenberg_become_a_corpus(mirror: Mirror, tmp_path: Path) -> None:
    numbers = [11, 12, "--mirror", mirror.url, "--gutenberg", 11]
    result = gutenberg(*numbers, "--out", tmp_path / "one", cache=tmp_path / "cache")
    assert (result.returncode, result.stderr) == (
        0,
        "mlm_dist: downloaded 11: Book Eleven\nmlm_dist: downloaded 12: Book Twelve\n",
    )
    assert result.stdout.count("\n") == 2 and "2 documents" in result.stdout
    corpus = Corpus.open(tmp_path / "one")
    assert [d.name for d in corpus.documents()] == ["Book Eleven", "Book Twelve"]
    assert corpus.tokenizer.decode(np.asarray(corpus.train)).startswith("Eleven came")
    assert 0.03 < len(corpus.val) / (len(corpus.train) + len(corpus.val)) < 0.07
    first, second = mirror.requests
    assert first.user_agent == second.user_agent == f"mlm_dist/{mlm_dist.__version__}"
    assert second.start - first.end > 1.9

    again = gutenberg(*numbers, "--out", tmp_path / "two", cache=tmp_path / "cache")
    assert (again.returncode, again.stderr) == (0, "")
    assert len(mirror.requests) == 2
    for file in ("corpus.json", "train.bin", "val.bin"):
        assert (tmp_path / "two" / file).read_bytes() == (tmp_path / "one" / file).read_bytes()


def test_files_and_books_become_one_corpus(mirror: Mirror, texts: Path, tmp_path: Path) -> None:
    options = ["--mirror", mirror.url, "--out", tmp_path / "out", "--val", texts / "more"]
    result = verb(
        "prepare", texts / "one.txt", *options, "--gutenberg", 11, *BPE, XDG_CACHE_HOME=str(tmp_path / "cache")
    )
    assert result.returncode == 0, result.stderr
    documents = Corpus.open(tmp_path / "out").documents()
    assert [d.name for d in documents if d.count("val")] == ["two.txt"]
    assert [d.name for d in documents] == ["one.txt", "two.txt", "Book Eleven"]


def test_a_missing_book_leaves_no_corpus_but_the_other_books_stay_cached(mirror: Mirror, tmp_path: Path) -> None:
    options = ["--mirror", mirror.url, "--out", tmp_path / "out"]
    result = gutenberg(11, 99, 12, *options, cache=tmp_path / "cache")
    assert (result.returncode, result.stdout) == (2, "")
    downloaded, error = result.stderr.splitlines()
    assert downloaded == "mlm_dist: downloaded 11: Book Eleven"
    assert error.startswith(f"mlm_dist: error: Project Gutenberg book 99: {mirror.url}/cache/epub/99/pg99.txt ")
    assert "check the number" in error
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    result = gutenberg(11, *options, cache=tmp_path / "cache")
    assert (result.returncode, result.stderr) == (0, "")
    assert len(mirror.requests) == 2


def test_nothing_is_downloaded_if_the_corpus_already_exists(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    result = gutenberg(11, "--mirror", mirror.url, "--out", tmp_path / "out", cache=tmp_path / "cache")
    check_user_error(result, "out already exists")
    assert mirror.requests == []


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_an_interrupted_download_leaves_no_files(
    mirror: Mirror, tmp_path: Path, signum: signal.Signals, code: int
) -> None:
    mirror.add(11, mirror.stalled_page(file_of("Eleven came down to the sea.\n" * 50_000)))
    process = start_preparing(
        "--gutenberg",
        11,
        "--mirror",
        mirror.url,
        "--out",
        tmp_path / "out",
        XDG_CACHE_HOME=str(tmp_path / "cache"),
        NO_PROXY="127.0.0.1",
    )
    while not mirror.requests:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    time.sleep(0.2)  # let half of the book arrive; the test does not depend on it
    process.send_signal(signum)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert errors == ("mlm_dist: interrupted\n" if signum == signal.SIGINT else "")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_no_part_of_a_book(mirror: Mirror, tmp_path: Path) -> None:
    mirror.add(11, file_of("Eleven came down to the sea.\n" * 5000))
    command = [
        sys.executable,
        "-m",
        "mlm_dist.prepare",
        "--gutenberg",
        11,
        "--mirror",
        mirror.url,
        "--out",
        "out",
        *BPE,
    ]
    limited = ["sh", "-c", 'ulimit -f 20; exec "$@"', "sh", *map(str, command)]
    result = start(limited, cwd=tmp_path, XDG_CACHE_HOME=str(tmp_path / "cache"), NO_PROXY="127.0.0.1")
    check_user_error(result, "pg11.txt: cannot be written: File too large")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_bpe_vocabulary_smaller_than_requested_is_explained(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the same few words and no more. " * 20)
    trained = ("prepare", tmp_path / "text.txt", "--tokenizer", "bpe")
    result = verb(*trained, "--vocab_size", 1000, "--out", tmp_path / "fewer")
    assert result.returncode == 0, result.stderr
    size = Corpus.open(tmp_path / "fewer").manifest.vocab_size
    assert size < 300
    assert f"vocabulary {size} instead of 1000, because every word of the texts is already a token" in result.stdout
    assert "instead of" not in verb(*trained, "--vocab_size", size, "--out", tmp_path / "as_many").stdout


def test_the_tokenizer_of_a_folder_can_be_used_again(run_dir: Path, corpus_folder: Path, tmp_path: Path) -> None:
    assert verb("export", "--run", run_dir, "--out", tmp_path / "exported").returncode == 0
    (tmp_path / "other.txt").write_text("Quite another text, in which a bpe would find other words.\n" * 50)
    expected = Corpus.open(corpus_folder).tokenizer.fingerprint
    for source in (corpus_folder, run_dir, tmp_path / "exported"):
        out = tmp_path / f"from {source.name}"
        result = verb("prepare", tmp_path / "other.txt", "--out", out, "--tokenizer", source)
        assert result.returncode == 0, result.stderr
        assert Corpus.open(out).tokenizer.fingerprint == expected
    result = verb("prepare", tmp_path / "other.txt", "--out", tmp_path / "no", "--tokenizer", tmp_path)
    assert result.returncode == 2
    assert result.stderr.endswith("bpe, or the folder of a corpus, run or exported model\n")


def test_the_tokenizer_of_a_corpus_or_run_can_be_extended(run_dir: Path, corpus_folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "other.txt"
    text.write_text("Quite another text, in which a bpe would find other words.\n" * 50)
    base = Corpus.open(corpus_folder).tokenizer
    for source in (corpus_folder, run_dir):
        out = tmp_path / source.name
        flags = ("--out", out, "--val_fraction", 0, "--extend", source, "--add_tokens", 20)
        result = verb("prepare", text, *flags)
        assert result.returncode == 0, result.stderr
        assert "vocabulary 320 (bpe+20, with [MASK])" in result.stdout
        corpus = Corpus.open(out)
        assert (
            corpus.tokenizer.extends(base) and corpus.tokenizer.decode(np.array(corpus.train[:-1])) == text.read_text()
        )
        size, before = text.stat().st_size, len(base.encode(text.read_text()))
        per_token = f"{size / (len(corpus.train) - 1):.2f} bytes per token, {size / before:.2f} before"
        assert result.stderr == f"mlm_dist: learned 20 tokens: {per_token} (in 3.0 kB of the training text)\n"


def test_fewer_learned_tokens_than_requested_are_explained(corpus_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the same few words and no more. " * 20)
    flags = ("--extend", corpus_folder, "--add_tokens", 1000, "--out", tmp_path / "out")
    result = verb("prepare", tmp_path / "text.txt", *flags)
    assert result.returncode == 0, result.stderr
    learned = Corpus.open(tmp_path / "out").manifest.vocab_size - 300
    assert f"learned {learned} tokens instead of 1,000, because every word of the texts is already" in result.stderr
    validation = verb("prepare", tmp_path / "text.txt", "--val", tmp_path / "text.txt", *flags[:-1], tmp_path / "no")
    check_user_error(validation, "no training text")
