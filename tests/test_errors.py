"""What real processes do with what is wrong: exit code 2, one line on stderr that names it, and nothing written."""

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
    """Exit code 2 and one line on stderr, with all the words in it."""
    assert result.returncode == 2, result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stderr.startswith(PREFIX)
    for word in words:
        assert str(word) in result.stderr


def contents(folder: Path) -> dict[str, str]:
    """A digest of every file below a folder but the lock, which names who last asked for it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


Train = Callable[..., Result]


@pytest.fixture
def new_run(tmp_path: Path) -> Path:
    """Where a run would go."""
    return tmp_path / "run"


@pytest.fixture
def train(corpus_folder: Path, new_run: Path, tmp_path: Path) -> Train:
    """Train in `new_run` with flags of a tiny run and changes to them; text is prepared below `tmp_path`."""

    def run(*arguments: object, environment: dict[str, str] | None = None, **overrides: object) -> Result:
        settings = {"XDG_CACHE_HOME": str(tmp_path / "cache")} | (environment or {})
        return verb("train", *tiny_flags(corpus_folder, new_run, **overrides), *arguments, **settings)

    return run


@pytest.fixture
def corpus_copy(corpus_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(corpus_folder, tmp_path / "corpus")


@pytest.fixture
def begun_run(run_dir: Path, new_run: Path) -> Path:
    """A copy of the run of 30 steps, where `train` continues."""
    return shutil.copytree(run_dir, new_run)


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def replace_tokens(corpus: Path, split: str) -> None:
    """Put other tokens into a corpus, as many as there were, and describe them in corpus.json."""
    tokens = corpus / f"{split}.bin"
    tokens.write_bytes(bytes(len(tokens.read_bytes())))
    digests = json.loads((corpus / "corpus.json").read_text())["sha256"]
    edit_corpus(corpus, sha256=digests | {split: hashlib.sha256(tokens.read_bytes()).hexdigest()})


def edit_corpus(corpus: Path, **changes: object) -> None:
    """Change what corpus.json says."""
    manifest = json.loads((corpus / "corpus.json").read_text())
    (corpus / "corpus.json").write_text(json.dumps(manifest | changes))


def swap_two_tokens(tokenizer: Path) -> None:
    """Exchange the ids of two tokens in a stored tokenizer."""
    changed = Tokenizer.load(tokenizer)
    (first, second), ranks = list(changed.ranks)[:2], dict(changed.ranks)
    ranks[first], ranks[second] = ranks[second], ranks[first]
    Tokenizer.build(changed.name, changed.pattern, ranks, changed.special_tokens).save(tokenizer)


# The config


def test_no_arguments_at_all_are_a_question_of_data(tmp_path):
    command = [sys.executable, "-m", "mlm_dist.train"]
    assert_refused(start(command, cwd=tmp_path), "data.path", "corpora/novels")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_key_is_said_in_one_line(train, new_run):
    assert_refused(train("--optim.warmup_iter=3"), "--optim.warmup_iter", "did you mean optim.warmup_iters?")
    assert not new_run.exists()


def test_broken_yaml_is_said_in_one_line_though_the_reason_has_several(train, new_run, tmp_path):
    file = tmp_path / "broken.yaml"
    file.write_text("optim: [\n")
    assert_refused(train("--config", file), file, "not YAML")
    assert not new_run.exists()


def test_a_device_that_is_not_there(train, new_run):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert_refused(train(device="cuda"), "device: cuda", "cpu")
    assert not new_run.exists()


# The texts and the corpus


@pytest.mark.parametrize("key", ["data.path", "run_dir"])
def test_a_path_that_the_system_refuses(key, train, new_run):
    assert_refused(train(f"--{key}", "n" * 300), "n" * 300, "too long")
    assert not new_run.exists()


def test_a_data_path_where_nothing_is(train, new_run, tmp_path):
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
    ids=["empty", "not UTF-8", "shorter than one batch", "nothing held out"],
)
def test_a_text_that_cannot_be_trained_on(content, overrides, words, train, new_run, tmp_path):
    text = tmp_path / "text.txt"
    text.write_bytes(content)
    result = train(**{"data__path": text, "data__tokenizer": "bpe"} | overrides)
    assert_refused(result, *words)
    assert not new_run.exists()
    partial = [path for path in (tmp_path / "cache").rglob("*") if "partial" in path.name]
    assert partial == []


def test_no_network_to_fetch_a_vocabulary_from(train, new_run, tmp_path):
    text, cache = tmp_path / "text.txt", tmp_path / "tiktoken"
    shutil.copy(SAMPLE_TEXT, text)
    cache.mkdir()
    environment = {"TIKTOKEN_CACHE_DIR": str(cache), "HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": ""}
    result = train(data__path=text, data__tokenizer="gpt2", environment=environment)
    assert_refused(result, "'gpt2'", "TIKTOKEN_CACHE_DIR", "bpe")
    assert not new_run.exists()
    assert contents(tmp_path / "cache") == {}


def test_a_corpus_that_was_cut(train, corpus_copy, new_run):
    file = corpus_copy / "train.bin"
    file.write_bytes(file.read_bytes()[:-1000])
    assert_refused(train(data__path=corpus_copy), file, "prepare it again")
    assert not new_run.exists()


def test_a_vocabulary_that_the_model_has_no_room_for(train, new_run):
    assert_refused(train(model__vocab_size=299), "vocabulary of 300", "model.vocab_size 299")
    assert not new_run.exists()


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_token_file_that_was_overwritten_is_not_trained_on(split, train, new_run, corpus_copy):
    assert train(data__path=corpus_copy, train__max_iters=1).returncode == 0
    tokens = corpus_copy / f"{split}.bin"
    tokens.write_bytes(tokens.read_bytes()[::-1])
    before = contents(new_run)
    assert_refused(train(data__path=corpus_copy), tokens, "SHA-256", "restore a copy")
    assert contents(new_run) == before


def test_what_this_machine_has_verified_is_verified_again_where_that_is_asked_for(train, corpus_copy, tmp_path):
    assert train(data__path=corpus_copy, train__max_iters=1).returncode == 0
    tokens = corpus_copy / "train.bin"
    tokens.write_bytes(bytes(len(tokens.read_bytes())))
    times = {"mtime_ns": tokens.stat().st_mtime_ns, "ctime_ns": tokens.stat().st_ctime_ns}
    for note in (tmp_path / "cache/mlm_dist/verified").iterdir():
        note.write_text(json.dumps(json.loads(note.read_text()) | times))
    assert train(data__path=corpus_copy, train__max_iters=2).returncode == 0
    assert_refused(train(data__path=corpus_copy, data__verify=True), tokens, "SHA-256")


def test_a_token_id_beyond_the_vocabulary_is_not_trained_on(train, new_run, corpus_copy):
    tokens = corpus_copy / "train.bin"
    tokens.write_bytes(b"\x2c\x01" + tokens.read_bytes()[2:])  # 300 is the first that there is not
    manifest = json.loads((corpus_copy / "corpus.json").read_text())
    manifest["sha256"]["train"] = hashlib.sha256(tokens.read_bytes()).hexdigest()
    (corpus_copy / "corpus.json").write_text(json.dumps(manifest))
    assert_refused(
        train(data__path=corpus_copy), tokens, "the token id 300, but the largest id of the vocabulary is 299"
    )
    assert not new_run.exists()


# The run directory


def test_a_file_in_the_run_directorys_place(train, new_run):
    new_run.write_text("mine")
    assert_refused(train(), "run_dir", new_run)
    assert new_run.read_text() == "mine"


def test_a_file_in_the_place_of_the_run_directorys_parent(train, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert_refused(train(f"--run_dir={tmp_path}/file/run"), "run_dir", tmp_path / "file" / "run")
    assert (tmp_path / "file").read_text() == "mine"


OTHERWISE = [
    ({"model__blocks": 1}, "model.blocks 2, not 1"),
    ({"model__tie_embeddings": False}, "model.tie_embeddings True, not False"),
    ({"seed": 7}, "seed 1337, not 7"),
    ({"masking__mask_prob": 0.3}, "masking.mask_prob 0.15, not 0.3"),
    ({"masking__replacement": "80/10/10"}, "masking.replacement 'mask', not '80/10/10'"),
    ({"train__batch_size": 8}, "train.batch_size 16, not 8"),
    ({"train__eval_rows": 7}, "train.eval_rows 50, not 7"),
]


@pytest.mark.parametrize(("overrides", "words"), OTHERWISE)
def test_a_run_keeps_its_model_its_order_and_its_masks(overrides, words, run_dir):
    before = read_config(run_dir / "config.yaml")
    now = parse_config(tiny_flags(Path(before.data.path), run_dir, **overrides), verb="train")
    with pytest.raises(UserError) as caught:
        check_same_run(fixed_values(before), fixed_values(now), run_dir)
    assert words in str(caught.value)
    assert str(run_dir) in str(caught.value)


def test_a_run_may_change_what_decides_neither_weights_nor_data(run_dir):
    before = read_config(run_dir / "config.yaml")
    changes = {"optim__lr": 5e-4, "train__max_iters": 60, "train__micro_batch_size": 4, "checkpoint__interval": 7}
    now = parse_config(tiny_flags(Path("moved/corpus"), run_dir, **changes), verb="train")
    check_same_run(fixed_values(before), fixed_values(now), run_dir)


def test_a_run_that_was_started_otherwise_is_left_as_it_is(train, begun_run):
    overrides = {key: value for changes, _ in OTHERWISE for key, value in changes.items()}
    before = contents(begun_run)
    assert_refused(train(**overrides), begun_run, *[words for _, words in OTHERWISE])
    assert contents(begun_run) == before


def test_a_run_that_is_further_than_its_new_end_is_left_as_it_is(train, begun_run):
    before = contents(begun_run)
    assert_refused(train(train__max_iters=20), begun_run, "step-00000030", "train.max_iters 20")
    assert contents(begun_run) == before


def test_a_run_on_another_corpus_is_left_as_it_is(train, begun_run, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("It was not the same story at all. " * 2000)
    before = contents(begun_run)
    assert_refused(train(data__path=text, data__tokenizer="bpe"), begun_run, "the training text (SHA-256 of train.bin)")
    assert contents(begun_run) == before


def test_a_run_with_other_validation_text_is_left_as_it_is(train, begun_run, corpus_copy):
    replace_tokens(corpus_copy, "val")
    before = contents(begun_run)
    old, new = (
        json.loads((folder / "corpus.json").read_text())["sha256"]["val"][:12]
        for folder in (Path(read_config(begun_run / "config.yaml").data.path), corpus_copy)
    )
    assert_refused(
        train(data__path=corpus_copy),
        begun_run,
        f"the validation text (SHA-256 of val.bin) {old}, not {new}: use the same values, or another run_dir",
    )
    assert contents(begun_run) == before


def test_a_run_with_another_tokenizer_beside_the_same_tokens_is_left_as_it_is(train, begun_run, corpus_copy):
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


def test_a_config_that_was_edited_does_not_decide_what_a_run_was_started_with(train, begun_run):
    config = begun_run / "config.yaml"
    config.write_text(config.read_text().replace("heads: 2", "heads: 4"))
    assert_refused(train(model__heads=4), begun_run, "model.heads 2, not 4")
    assert train().returncode == 0


def test_an_answer_is_refused_where_the_config_of_the_run_was_edited(begun_run):
    config = begun_run / "config.yaml"
    config.write_text(config.read_text().replace("heads: 2", "heads: 4"))
    assert_refused(verb("fill", "--run", begun_run, "The [MASK]"), config, "model.heads 2, not 4")


def test_an_answer_is_refused_where_the_tokenizer_of_the_run_was_changed(begun_run):
    swap_two_tokens(begun_run / "tokenizer")
    assert_refused(verb("fill", "--run", begun_run, "The [MASK]"), begun_run / "tokenizer", "the tokenizer (SHA-256)")


def test_a_run_of_an_earlier_version_goes_on_and_is_compared_with_its_config(train, begun_run, corpus_copy):
    manifest = json.loads((corpus_copy / "corpus.json").read_text())
    for checkpoint in (begun_run / "checkpoints").iterdir():
        state = torch.load(checkpoint / "state.pt", weights_only=True) | {"corpus": manifest["sha256"]["train"]}
        torch.save(state, checkpoint / "state.pt")
        step, files = step_of(checkpoint), {"state.pt": fingerprint(checkpoint / "state.pt")}
        (checkpoint / "manifest.json").write_text(json.dumps({"step": step, "files": files}))
    assert_refused(train(model__heads=4), begun_run, "model.heads 2, not 4")
    replace_tokens(corpus_copy, "train")
    assert_refused(train(data__path=corpus_copy), "step-00000030", "was trained on another corpus")
    assert train().returncode == 0
    (begun_run / "config.yaml").unlink()
    assert_refused(train(), begun_run, "restore config.yaml, or give another run_dir")


def test_what_a_run_goes_on_with_otherwise_is_said_in_a_line(train, begun_run):
    result = train(train__max_iters=32, optim__lr=5e-4)
    assert result.returncode == 0
    (line,) = result.stderr.splitlines()
    assert "step-00000030: the run continues with optim.lr 0.0005, not 0.001; train.max_iters 32, not 30" in line


@pytest.mark.parametrize("place", ["/proc/run", "/sys/run"])
def test_a_place_that_stores_no_files_is_no_question_of_room(place, train):
    if not Path(place).parent.is_dir():
        pytest.skip("this system has no such folder")
    assert_refused(train("--run_dir", place), f"run_dir {place} is on a file system that cannot store files")


# The processes


def test_a_port_that_is_taken(train, taken_port, new_run):
    rank_0 = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken_port)}
    assert_refused(train(environment=rank_0 | place), f"127.0.0.1:{taken_port}", "port is in use")
    assert not new_run.exists()


def test_debug_under_torchrun(train, new_run):
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
    ids=["out of bounds", "not to be shared", "no corpus"],
)
def test_two_processes_say_it_once(overrides, words, corpus_folder, new_run):
    result = torchrun(2, *tiny_flags(corpus_folder, new_run, **overrides))
    assert result.returncode != 0
    said = [line for line in result.stderr.splitlines() if line.startswith(PREFIX)]
    assert len(said) == 1, result.stderr
    assert all(word in said[0] for word in words)
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
        "top no number",
        "abbreviated flag",
        "no such folder",
        "empty folder",
        "a name too long",
        "no mask",
    ],
)
def test_fill_refuses(arguments, words, run_dir, new_run, tmp_path):
    places = {"run": run_dir, "new": new_run, "empty": tmp_path}
    # A text may have braces; none of these has.
    given = [argument.format(**places) for argument in arguments]
    assert_refused(verb("fill", *given), *[word.format(**places) for word in words])
    assert not new_run.exists()


def test_a_run_without_weights_cannot_be_asked(begun_run):
    (begun_run / "model.pth").unlink()
    shutil.rmtree(begun_run / "checkpoints")
    with pytest.raises(UserError, match=r"neither model\.pth nor a checkpoint"):
        load(begun_run, "cpu")


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04"], ids=["empty", "text", "cut"])
def test_a_run_with_damaged_weights_cannot_be_asked(content, begun_run):
    (begun_run / "model.pth").write_bytes(content)
    with pytest.raises(UserError, match=re.escape(f"{begun_run}/model.pth cannot be read")):
        load(begun_run, "cpu")


def test_a_run_whose_config_does_not_fit_its_weights_cannot_be_asked(begun_run):
    config = begun_run / "config.yaml"
    config.write_text(config.read_text().replace("blocks: 2", "blocks: 1"))
    with pytest.raises(UserError, match=re.escape(str(begun_run))):
        load(begun_run, "cpu")


NASTY = "a\x1b[2J\x9b1m\x7f\rb\u202ec\u2066d\tZoë 😀"
HARMLESS = "a\\u001b[2J\\u009b1m\\u007f\\u000db\\u202ec\\u2066d\tZoë 😀"


def test_messages_have_a_terminal_do_nothing(capsys):
    print_log(f"{NASTY}\n{NASTY}")
    print_error(f"{NASTY}\n{NASTY}")
    assert capsys.readouterr() == (f"{HARMLESS}\n{HARMLESS}\n", f"mlm_dist: {HARMLESS}\\n{HARMLESS}\n")


def test_what_was_asked_for_is_escaped_on_a_terminal_alone(capsys, monkeypatch):
    print_result(NASTY, NASTY)
    assert capsys.readouterr().out == f"{NASTY}\n{NASTY}\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_result(NASTY, json.dumps(NASTY, ensure_ascii=False))
    text, told = capsys.readouterr().out.splitlines()
    assert text == HARMLESS
    assert json.loads(told) == NASTY


def test_a_document_with_a_nasty_name_does_not_clear_the_screen(train, tmp_path):
    text = tmp_path / "texts" / "\x1b[2J\x1b]0;title\x07.txt"
    text.parent.mkdir()
    text.write_bytes(b"Zo\xeb" * 500)
    result = train(data__path=text.parent, data__tokenizer="bpe")
    assert_refused(result, "\\u001b[2J\\u001b]0;title\\u0007.txt: not utf-8 at byte 2")
    assert "\x1b" not in result.stderr


def test_a_verb_on_a_terminal_writes_no_escape_sequence_of_a_text(run_dir):
    ours, terminal = pty.openpty()
    command = [sys.executable, "-m", "mlm_dist.fill", "--run", str(run_dir), "--device", "cpu", f"{NASTY} [MASK]"]
    process = subprocess.Popen(command, stdout=terminal, cwd=REPOSITORY)
    os.close(terminal)
    written = b""
    with suppress(OSError), open(ours, "rb", buffering=0) as screen:  # noqa: PTH123 (reading fails at its end)
        while part := screen.read(1000):
            written += part
    assert process.wait() == 0
    assert written.decode().startswith(f"{HARMLESS} [MASK]\r\n")
    assert not re.search(r"[\x1b\x9b\u202e]", written.decode())


@pytest.mark.parametrize(
    ("key", "value"),
    [("model.embedding_dim", 2_000_000), ("model.blocks", 10**9), ("model.vocab_size", 10**12)],
)
def test_a_model_that_is_too_large_for_the_machine(key, value, train, new_run):
    assert_refused(train(**{key.replace(".", "__"): value}), f"{key} {value}", "make the model smaller")
    assert not new_run.exists()


def test_weights_in_a_fifo_are_not_waited_for(begun_run):
    (begun_run / "DONE").touch()
    (begun_run / "model.pth").unlink(missing_ok=True)
    os.mkfifo(begun_run / "model.pth")
    assert_refused(verb("fill", "--run", begun_run, "A [MASK].", timeout=60), "model.pth: it is a FIFO")


def test_metrics_in_a_fifo_are_not_waited_for(train, begun_run):
    (begun_run / "metrics.jsonl").unlink()
    os.mkfifo(begun_run / "metrics.jsonl")
    assert_refused(train(), "metrics.jsonl: it is a FIFO")
