"""User errors in real processes: exit code 2, one line on stderr that names the mistake, and no files."""

import hashlib
import json
import os
import pty
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from mlm_dist import load
from mlm_dist.config_reading import parse_config, read_config
from mlm_dist.data.preparation import SAMPLE_TEXT
from mlm_dist.data.tokenizer import Tokenizer
from mlm_dist.errors import UserError
from mlm_dist.output import print_error, print_log, print_result
from mlm_dist.run.checkpoint import fingerprint, step_of
from mlm_dist.run.record import fixed_values
from mlm_dist.run.run_dir import check_same_run
from tests.conftest import REPOSITORY, Result, start, tiny_flags, torchrun, verb

PREFIX = "mlm_dist: error: "


def assert_refused(result: Result, *words: object) -> None:
    """Assert exit code 2 and one line on stderr that contains all the words."""
    assert result.returncode == 2, result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stderr.startswith(PREFIX)
    for word in words:
        assert str(word) in result.stderr


def contents(folder: Path) -> dict[str, str]:
    """A digest of every file below a folder, except the lock, which names the last process that tried to take it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


Train = Callable[..., Result]


@pytest.fixture
def new_run(tmp_path: Path) -> Path:
    """The run directory of a new run."""
    return tmp_path / "run"


@pytest.fixture
def train(corpus_folder: Path, new_run: Path, tmp_path: Path) -> Train:
    """Trains a tiny run in `new_run`, with overrides of its flags. Text is prepared below `tmp_path`."""

    def run(*arguments: object, environment: dict[str, str] | None = None, **overrides: object) -> Result:
        settings = {"XDG_CACHE_HOME": str(tmp_path / "cache")} | (environment or {})
        return verb("train", *tiny_flags(corpus_folder, new_run, **overrides), *arguments, **settings)

    return run


@pytest.fixture
def corpus_copy(corpus_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(corpus_folder, tmp_path / "corpus")


@pytest.fixture
def begun_run(run_dir: Path, new_run: Path) -> Path:
    """A copy of the run of 30 steps, which `train` resumes."""
    return shutil.copytree(run_dir, new_run)


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def replace_tokens(corpus: Path, split: str) -> None:
    """Replace the tokens of a split by as many other tokens, with their digest in corpus.json."""
    tokens = corpus / f"{split}.bin"
    tokens.write_bytes(bytes(len(tokens.read_bytes())))
    digests = json.loads((corpus / "corpus.json").read_text())["sha256"]
    edit_corpus(corpus, sha256=digests | {split: hashlib.sha256(tokens.read_bytes()).hexdigest()})


def edit_corpus(corpus: Path, **changes: object) -> None:
    """Change values of corpus.json."""
    manifest = json.loads((corpus / "corpus.json").read_text())
    (corpus / "corpus.json").write_text(json.dumps(manifest | changes))


def swap_two_tokens(tokenizer: Path) -> None:
    """Exchange the ids of two tokens in a stored tokenizer."""
    changed = Tokenizer.load(tokenizer)
    (first, second), ranks = list(changed.ranks)[:2], dict(changed.ranks)
    ranks[first], ranks[second] = ranks[second], ranks[first]
    Tokenizer.build(changed.name, changed.pattern, ranks, changed.special_tokens).save(tokenizer)


# The config


def test_without_arguments_the_missing_corpus_is_named(tmp_path):
    command = [sys.executable, "-m", "mlm_dist.train"]
    assert_refused(start(command, cwd=tmp_path), "data.path", "corpora/novels")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_key_is_named(train, new_run):
    assert_refused(train("--optim.warmup_iter=3"), "--optim.warmup_iter", "did you mean optim.warmup_iters?")
    assert not new_run.exists()


def test_invalid_yaml_is_reported_in_one_line(train, new_run, tmp_path):
    file = tmp_path / "broken.yaml"
    file.write_text("optim: [\n")
    assert_refused(train("--config", file), file, "not YAML")
    assert not new_run.exists()


def test_cuda_without_a_gpu_is_refused(train, new_run):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert_refused(train(device="cuda"), "device: cuda", "cpu")
    assert not new_run.exists()


# The texts and the corpus


@pytest.mark.parametrize("key", ["data.path", "run_dir"])
def test_a_path_that_is_too_long_is_refused(key, train, new_run):
    assert_refused(train(f"--{key}", "n" * 300), "n" * 300, "too long")
    assert not new_run.exists()


def test_a_data_path_that_does_not_exist_is_refused(train, new_run, tmp_path):
    assert_refused(train(data__path=tmp_path / "nothing"), "data.path", tmp_path / "nothing", "mlm_dist.prepare")
    assert not new_run.exists()


@pytest.mark.parametrize(
    ("content", "overrides", "words"),
    [
        (b"", {}, ["empty"]),
        ("Zoë went.".encode("latin-1"), {}, ["not utf-8 at byte 2"]),
        (b"Once upon a time.\n" * 9, {}, ["train.batch_size 16", "more text"]),
        (SAMPLE_TEXT.read_bytes(), {"data__val_fraction": 0}, ["val_fraction", "train.eval_interval 0"]),
    ],
    ids=["empty", "not UTF-8", "shorter than one batch", "no validation split"],
)
def test_an_unusable_text_is_refused(content, overrides, words, train, new_run, tmp_path):
    text = tmp_path / "text.txt"
    text.write_bytes(content)
    result = train(**{"data__path": text, "data__tokenizer": "bpe"} | overrides)
    assert_refused(result, *words)
    assert not new_run.exists()
    partial = [path for path in (tmp_path / "cache").rglob("*") if "partial" in path.name]
    assert partial == []


def test_a_vocabulary_that_cannot_be_downloaded_is_reported(train, new_run, tmp_path):
    text, cache = tmp_path / "text.txt", tmp_path / "tiktoken"
    shutil.copy(SAMPLE_TEXT, text)
    cache.mkdir()
    environment = {"TIKTOKEN_CACHE_DIR": str(cache), "HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": ""}
    result = train(data__path=text, data__tokenizer="gpt2", environment=environment)
    assert_refused(result, "'gpt2'", "TIKTOKEN_CACHE_DIR", "bpe")
    assert not new_run.exists()
    assert contents(tmp_path / "cache") == {}


def test_a_truncated_corpus_is_refused(train, corpus_copy, new_run):
    file = corpus_copy / "train.bin"
    file.write_bytes(file.read_bytes()[:-1000])
    assert_refused(train(data__path=corpus_copy), file, "prepare it again")
    assert not new_run.exists()


def test_a_vocabulary_larger_than_that_of_the_model_is_refused(train, new_run):
    assert_refused(train(model__vocab_size=299), "vocabulary of 300", "model.vocab_size 299")
    assert not new_run.exists()


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_overwritten_token_file_is_refused(split, train, new_run, corpus_copy):
    assert train(data__path=corpus_copy, train__max_iters=1).returncode == 0
    tokens = corpus_copy / f"{split}.bin"
    tokens.write_bytes(tokens.read_bytes()[::-1])
    before = contents(new_run)
    assert_refused(train(data__path=corpus_copy), tokens, "SHA-256", "restore a copy")
    assert contents(new_run) == before


def test_data_verify_verifies_a_corpus_that_was_verified_before(train, corpus_copy, tmp_path):
    assert train(data__path=corpus_copy, train__max_iters=1).returncode == 0
    tokens = corpus_copy / "train.bin"
    tokens.write_bytes(bytes(len(tokens.read_bytes())))
    times = {"mtime_ns": tokens.stat().st_mtime_ns, "ctime_ns": tokens.stat().st_ctime_ns}
    for note in (tmp_path / "cache/mlm_dist/verified").iterdir():
        note.write_text(json.dumps(json.loads(note.read_text()) | times))
    assert train(data__path=corpus_copy, train__max_iters=2).returncode == 0
    assert_refused(train(data__path=corpus_copy, data__verify=True), tokens, "SHA-256")


def test_a_token_id_outside_the_vocabulary_is_refused(train, new_run, corpus_copy):
    tokens = corpus_copy / "train.bin"
    tokens.write_bytes(b"\x2c\x01" + tokens.read_bytes()[2:])  # the ids are 0 to 299
    manifest = json.loads((corpus_copy / "corpus.json").read_text())
    manifest["sha256"]["train"] = hashlib.sha256(tokens.read_bytes()).hexdigest()
    (corpus_copy / "corpus.json").write_text(json.dumps(manifest))
    assert_refused(
        train(data__path=corpus_copy), tokens, "the token id 300, but the largest id of the vocabulary is 299"
    )
    assert not new_run.exists()


# The run directory


def test_a_file_as_run_directory_is_refused(train, new_run):
    new_run.write_text("mine")
    assert_refused(train(), "run_dir", new_run)
    assert new_run.read_text() == "mine"


def test_a_file_as_parent_of_the_run_directory_is_refused(train, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert_refused(train(f"--run_dir={tmp_path}/file/run"), "run_dir", tmp_path / "file" / "run")
    assert (tmp_path / "file").read_text() == "mine"


FIXED_KEYS: list[tuple[dict[str, object], str]] = [
    ({"model__blocks": 1}, "model.blocks 2, not 1"),
    ({"model__tie_embeddings": False}, "model.tie_embeddings True, not False"),
    ({"seed": 7}, "seed 1337, not 7"),
    ({"masking__mask_prob": 0.3}, "masking.mask_prob 0.15, not 0.3"),
    ({"masking__replacement": "80/10/10"}, "masking.replacement 'mask', not '80/10/10'"),
    ({"train__batch_size": 8}, "train.batch_size 16, not 8"),
    ({"train__eval_rows": 7}, "train.eval_rows 50, not 7"),
]


@pytest.mark.parametrize(("overrides", "words"), FIXED_KEYS)
def test_keys_that_determine_parameters_and_data_cannot_change(overrides, words, run_dir):
    before = read_config(run_dir / "config.yaml")
    now = parse_config(tiny_flags(Path(before.data.paths), run_dir, **overrides), verb="train")
    with pytest.raises(UserError) as caught:
        check_same_run(fixed_values(before), fixed_values(now), run_dir)
    assert words in str(caught.value)
    assert str(run_dir) in str(caught.value)


def test_other_keys_can_change(run_dir):
    before = read_config(run_dir / "config.yaml")
    changes = {"optim__lr": 5e-4, "train__max_iters": 60, "train__micro_batch_size": 4, "checkpoint__interval": 7}
    now = parse_config(tiny_flags(Path("moved/corpus"), run_dir, **changes), verb="train")
    check_same_run(fixed_values(before), fixed_values(now), run_dir)


def test_a_run_with_another_config_is_refused_and_not_changed(train, begun_run):
    overrides = {key: value for changes, _ in FIXED_KEYS for key, value in changes.items()}
    before = contents(begun_run)
    assert_refused(train(**overrides), begun_run, *[words for _, words in FIXED_KEYS])
    assert contents(begun_run) == before


def test_a_run_past_its_new_last_step_is_refused_and_not_changed(train, begun_run):
    before = contents(begun_run)
    assert_refused(train(train__max_iters=20), begun_run, "step-00000030", "train.max_iters 20")
    assert contents(begun_run) == before


def test_a_run_on_another_corpus_is_refused_and_not_changed(train, begun_run, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("It was not the same story at all. " * 2000)
    before = contents(begun_run)
    assert_refused(train(data__path=text, data__tokenizer="bpe"), begun_run, "the training text (SHA-256)")
    assert contents(begun_run) == before


def test_a_run_with_another_validation_split_is_refused_and_not_changed(train, begun_run, corpus_copy):
    replace_tokens(corpus_copy, "val")
    before = contents(begun_run)
    old, new = (
        json.loads((folder / "corpus.json").read_text())["sha256"]["val"][:12]
        for folder in (Path(read_config(begun_run / "config.yaml").data.paths), corpus_copy)
    )
    assert_refused(
        train(data__path=corpus_copy),
        begun_run,
        f"the validation text (SHA-256) {old}, not {new}: use the same values, or another run_dir",
    )
    assert contents(begun_run) == before


def test_a_run_with_another_tokenizer_but_the_same_tokens_is_refused_and_not_changed(train, begun_run, corpus_copy):
    swap_two_tokens(corpus_copy / "tokenizer")
    before = contents(begun_run)
    assert_refused(train(data__path=corpus_copy), "tokenizer: it was changed after the corpus was prepared")
    edit_corpus(corpus_copy, tokenizer_sha256=Tokenizer.load(corpus_copy / "tokenizer").fingerprint)
    assert_refused(train(data__path=corpus_copy), begun_run, "the tokenizer (SHA-256)")
    assert contents(begun_run) == before


def test_a_run_without_its_config_is_compared_with_its_checkpoints(train, begun_run):
    (begun_run / "config.yaml").unlink()
    before = contents(begun_run)
    assert_refused(train(model__heads=4), begun_run, "model.heads 2, not 4")
    assert contents(begun_run) == before
    assert train().returncode == 0
    assert (begun_run / "config.yaml").exists()


def test_a_run_with_an_edited_config_is_compared_with_its_checkpoints(train, begun_run):
    config = begun_run / "config.yaml"
    config.write_text(config.read_text().replace("heads: 2", "heads: 4"))
    assert_refused(train(model__heads=4), begun_run, "model.heads 2, not 4")
    assert train().returncode == 0


def test_fill_refuses_a_run_with_an_edited_config(begun_run):
    config = begun_run / "config.yaml"
    config.write_text(config.read_text().replace("heads: 2", "heads: 4"))
    assert_refused(verb("fill", "--run", begun_run, "The [MASK]"), config, "model.heads 2, not 4")


def test_fill_refuses_a_run_with_a_changed_tokenizer(begun_run):
    swap_two_tokens(begun_run / "tokenizer")
    assert_refused(verb("fill", "--run", begun_run, "The [MASK]"), begun_run / "tokenizer", "the tokenizer (SHA-256)")


def test_a_run_of_an_earlier_version_resumes_and_is_compared_with_its_config(train, begun_run, corpus_copy):
    manifest = json.loads((corpus_copy / "corpus.json").read_text())
    for checkpoint in (begun_run / "checkpoints").iterdir():
        state = torch.load(checkpoint / "state.pt", weights_only=True) | {"corpus": manifest["sha256"]["train"]}
        torch.save(state, checkpoint / "state.pt")
        step, files = step_of(checkpoint), {"state.pt": fingerprint(checkpoint / "state.pt")}
        (checkpoint / "manifest.json").write_text(json.dumps({"step": step, "files": files}))
    assert_refused(train(model__heads=4), begun_run, "model.heads 2, not 4")
    replace_tokens(corpus_copy, "train")
    assert_refused(train(data__path=corpus_copy), "step-00000030", "was trained on a different corpus")
    assert train().returncode == 0
    (begun_run / "config.yaml").unlink()
    assert_refused(train(), begun_run, "restore config.yaml, or give another run_dir")


def test_changed_keys_of_a_resumed_run_are_reported_in_a_line(train, begun_run):
    result = train(train__max_iters=32, optim__lr=5e-4)
    assert result.returncode == 0
    (line,) = result.stderr.splitlines()
    assert "step-00000030: the run continues with optim.lr 0.0005, not 0.001; train.max_iters 32, not 30" in line


@pytest.mark.parametrize("path", ["/proc/run", "/sys/run"])
def test_a_file_system_that_stores_no_files_is_refused(path, train):
    if not Path(path).parent.is_dir():
        pytest.skip("this system has no such folder")
    assert_refused(train("--run_dir", path), f"run_dir {path} is on a file system that cannot store files")


# The processes


def test_a_port_that_is_in_use_is_refused(train, taken_port, new_run):
    rank_zero = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken_port)}
    assert_refused(train(environment=rank_zero | address), f"127.0.0.1:{taken_port}", "port is in use")
    assert not new_run.exists()


def test_debug_with_two_processes_is_refused(train, new_run):
    environment = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    assert_refused(train(debug=True, environment=environment), "debug: true", "2 were started")
    assert not new_run.exists()


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"masking__mask_prob": 1.5}, ["masking.mask_prob is 1.5"]),
        ({"train__micro_batch_size": 16}, ["train.batch_size 16", "2 processes"]),
        ({"data__path": "nothing/here"}, ["data.path nothing/here"]),
    ],
    ids=["out of bounds", "batch not divisible", "no corpus"],
)
def test_two_processes_report_an_error_once(overrides, words, corpus_folder, new_run):
    result = torchrun(2, *tiny_flags(corpus_folder, new_run, **overrides))
    assert result.returncode != 0
    messages = [line for line in result.stderr.splitlines() if line.startswith(PREFIX)]
    assert len(messages) == 1, result.stderr
    assert all(word in messages[0] for word in words)
    assert f'File "{REPOSITORY}/mlm_dist/' not in result.stderr, result.stderr
    assert not new_run.exists()


# fill


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--run"]),
        (["A [MASK]."], ["--run"]),
        (["--run", "{run}"], ["standard input: it is empty"]),
        (["--run", "{run}", "--top", "0", "A [MASK]."], ["--top is 0"]),
        (["--run", "{run}", "--top", "many", "A [MASK]."], ["--top", "many"]),
        (["--run", "{run}", "--to", "3", "A [MASK]."], ["--to"]),
        (["--run", "{new}", "A [MASK]."], ["{new}", "not a run directory"]),
        (["--run", "{empty}", "A [MASK]."], ["{empty}", "not a run directory"]),
        (["--run", "n" * 300, "A [MASK]."], ["n" * 300, "too long"]),
        (["--run", "{run}", "No gap."], ["[MASK]", "No gap."]),
    ],
    ids=[
        "nothing",
        "no run",
        "no text",
        "top 0",
        "top not a number",
        "abbreviated flag",
        "no such folder",
        "empty folder",
        "name too long",
        "no mask",
    ],
)
def test_fill_refuses_a_user_error(arguments, words, run_dir, new_run, tmp_path):
    paths = {"run": run_dir, "new": new_run, "empty": tmp_path}
    given = [argument.format(**paths) for argument in arguments]
    assert_refused(verb("fill", *given), *[word.format(**paths) for word in words])
    assert not new_run.exists()


def test_a_run_without_parameters_cannot_be_loaded(begun_run):
    (begun_run / "model.pth").unlink()
    shutil.rmtree(begun_run / "checkpoints")
    with pytest.raises(UserError, match=r"neither model\.pth nor a checkpoint"):
        load(begun_run, "cpu")


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04"], ids=["empty", "text", "truncated"])
def test_a_run_with_damaged_parameters_cannot_be_loaded(content, begun_run):
    (begun_run / "model.pth").write_bytes(content)
    with pytest.raises(UserError, match=re.escape(f"{begun_run}/model.pth cannot be read")):
        load(begun_run, "cpu")


def test_a_run_whose_config_does_not_fit_its_parameters_cannot_be_loaded(begun_run):
    config = begun_run / "config.yaml"
    config.write_text(config.read_text().replace("blocks: 2", "blocks: 1"))
    with pytest.raises(UserError, match=re.escape(str(begun_run))):
        load(begun_run, "cpu")


CONTROL_CHARACTERS = "a\x1b[2J\x9b1m\x7f\rb\u202ec\u2066d\tZoë 😀"
ESCAPED = "a\\u001b[2J\\u009b1m\\u007f\\u000db\\u202ec\\u2066d\tZoë 😀"


def test_control_characters_in_messages_are_escaped(capsys):
    print_log(f"{CONTROL_CHARACTERS}\n{CONTROL_CHARACTERS}")
    print_error(f"{CONTROL_CHARACTERS}\n{CONTROL_CHARACTERS}")
    assert capsys.readouterr() == (f"{ESCAPED}\n{ESCAPED}\n", f"mlm_dist: {ESCAPED}\\n{ESCAPED}\n")


def test_control_characters_in_results_are_escaped_only_on_a_terminal(capsys, monkeypatch):
    print_result(CONTROL_CHARACTERS, CONTROL_CHARACTERS)
    assert capsys.readouterr().out == f"{CONTROL_CHARACTERS}\n{CONTROL_CHARACTERS}\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_result(CONTROL_CHARACTERS, json.dumps(CONTROL_CHARACTERS, ensure_ascii=False))
    text, as_json = capsys.readouterr().out.splitlines()
    assert text == ESCAPED
    assert json.loads(as_json) == CONTROL_CHARACTERS


def test_control_characters_in_a_document_name_are_escaped(train, tmp_path):
    text = tmp_path / "texts" / "\x1b[2J\x1b]0;title\x07.txt"
    text.parent.mkdir()
    text.write_bytes(b"Zo\xeb" * 500)
    result = train(data__path=text.parent, data__tokenizer="bpe")
    assert_refused(result, "\\u001b[2J\\u001b]0;title\\u0007.txt: not utf-8 at byte 2")
    assert "\x1b" not in result.stderr


def test_a_verb_on_a_terminal_escapes_the_control_characters_of_a_text(run_dir):
    reader, terminal = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "mlm_dist.fill",
        "--run",
        str(run_dir),
        "--device",
        "cpu",
        f"{CONTROL_CHARACTERS} [MASK]",
    ]
    process = subprocess.Popen(command, stdout=terminal, cwd=REPOSITORY)
    os.close(terminal)
    written = b""
    with suppress(OSError), open(reader, "rb", buffering=0) as screen:  # noqa: PTH123 (reading fails at the end)
        while part := screen.read(1000):
            written += part
    assert process.wait() == 0
    assert written.decode().startswith(f"{ESCAPED} [MASK]\r\n")
    assert not re.search(r"[\x1b\x9b\u202e]", written.decode())


@pytest.mark.parametrize(
    ("key", "value"),
    [("model.embedding_dim", 2_000_000), ("model.blocks", 10**9), ("model.vocab_size", 10**12)],
)
def test_a_model_larger_than_the_memory_is_refused(key, value, train, new_run):
    assert_refused(train(**{key.replace(".", "__"): value}), f"{key} {value}", "make the model smaller")
    assert not new_run.exists()


def test_a_fifo_as_model_pth_is_refused_without_blocking(begun_run):
    (begun_run / "DONE").touch()
    (begun_run / "model.pth").unlink(missing_ok=True)
    os.mkfifo(begun_run / "model.pth")
    assert_refused(verb("fill", "--run", begun_run, "A [MASK].", timeout=60), "model.pth: it is a FIFO")


def test_a_fifo_as_metrics_jsonl_is_refused_without_blocking(train, begun_run):
    (begun_run / "metrics.jsonl").unlink()
    os.mkfifo(begun_run / "metrics.jsonl")
    assert_refused(train(), "metrics.jsonl: it is a FIFO")
