"""Run verbs on runs and corpora with a damaged file, in a few thousand cases.

`python -m tests.faults.fuzzing MOST PART PARTS RUN CORPUS FOLDER` runs one part of the cases. There are at most MOST
cases per file in all parts together, the same ones every time; a large MOST selects all of about ten thousand. It
prints a line of JSON: the number of cases per file, and the cases that failed.
"""

import collections
import hashlib
import importlib
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from mlm_dist import embed, evaluate, export, fill, generate, plot
from mlm_dist.exit_codes import run_verb
from mlm_dist.run.checkpoint import MANIFEST, STATE, fingerprint, list_checkpoints
from mlm_dist.train import main as train_main
from tests.conftest import tiny_flags

SECONDS = 10
MEMORY = 2 << 30
STEP = "checkpoints/step-00000030"
STARTS_PROCESSES = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pty.spawn")
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

HUGE = 10**400
DEEP = "nested 100,000 deep"  # a placeholder, replaced by a list of this depth in the text
VALUES: list[Any] = [
    None,
    "",
    "x",
    -1,
    0,
    0.5,
    True,
    1e308,
    2**63,
    HUGE,
    float("nan"),
    [],
    {},
    [[1, {"a": 2}]],
    DEEP,
    "\ud800\x1b[2J",
]


class Hung(BaseException):
    """A verb took longer than `SECONDS`."""


class Case(NamedTuple):
    """A damaged file, and a verb that reads it.

    Attributes:
        file: the file to damage, below `run`, `open` or `corpus`.
        damage: damages the file at a path.
        name: of the damage.
        verb: the verb to run, a key of `commands`.
        update_digests: whether the recorded digest and size of the file are updated to those of the damaged file.
    """

    file: str
    damage: Callable[[Path], None]
    name: str
    verb: str
    update_digests: bool = False


def bytes_damages(rng: random.Random, other: bytes) -> list[tuple[str, Callable[[bytes], bytes]]]:
    """Names and functions that damage bytes; `other` is the content of another file."""

    def position(content: bytes) -> int:
        return rng.randrange(len(content) or 1)

    def flip(content: bytes) -> bytes:
        damaged = bytearray(content)
        for _ in range(rng.choice([1, 1, 3, 30])):
            if damaged:
                damaged[position(content)] ^= 1 << rng.randrange(8)
        return bytes(damaged)

    def cut_out(content: bytes) -> bytes:
        start = position(content)
        return content[:start] + content[start + rng.choice([1, 20, 1000]) :]

    def repeat(content: bytes) -> bytes:
        start = position(content)
        stop = start + rng.choice([1, 20, 1000])
        return content[:stop] + content[start:]

    def overwrite(content: bytes) -> bytes:
        start = position(content)
        junk = rng.randbytes(rng.choice([1, 4, 100]))
        return content[:start] + junk + content[start + len(junk) :]

    return [
        ("flip", flip),
        ("cut", lambda content: content[: position(content)]),
        ("cut out", cut_out),
        ("repeat", repeat),
        ("overwrite", overwrite),
        ("flip again", flip),
        ("empty", lambda _: b""),
        ("zeros", lambda content: bytes(len(content))),
        ("junk", lambda _: rng.randbytes(500)),
        ("another file", lambda _: other),
        ("more", lambda content: content + rng.randbytes(50)),
    ]


def fifo(path: Path) -> None:
    os.mkfifo(path)


def bound_socket(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # because the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
    os.chdir(before)


KINDS: dict[str, Callable[[Path], None]] = {
    "FIFO": fifo,
    "socket": bound_socket,
    "folder": Path.mkdir,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "terminal": lambda path: path.symlink_to("/dev/tty"),
    "loop": lambda path: path.symlink_to(path.name),
    "link to nothing": lambda path: path.symlink_to("nothing"),
    "none": lambda _: None,
}


def replacing(make: Callable[[Path], None]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


def rewriting(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.write_bytes(change(path.read_bytes()))

    return damage


def writing(content: Callable[[], bytes]) -> Callable[[Path], None]:
    return rewriting(lambda _: content())


def changed(value: Any) -> Iterator[tuple[str, Any]]:
    """Names and copies of a value in which one part is replaced or removed, or one is added."""
    for new in VALUES:
        yield f"-> {str(new)[:20]!r}", new
    if isinstance(value, dict):
        yield "+ key", value | {"more": 1}
        for key, part in value.items():
            rest = {name: part for name, part in value.items() if name != key}
            yield f"without {key}", rest
            for name, new in changed(part):
                yield f"{key} {name}", {old: new if old == key else part for old, part in value.items()}
    elif isinstance(value, list) and value:
        yield "- item", value[1:]
        for name, new in changed(value[0]):
            yield f"0 {name}", [new, *value[1:]]


def as_json(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False).replace(json.dumps(DEEP), "[" * 100_000 + "]" * 100_000)
    return text.encode(errors="backslashreplace")


def as_yaml(value: Any) -> bytes:
    text = yaml.safe_dump(value, sort_keys=False).replace(DEEP, "[" * 100_000 + "]" * 100_000)
    return text.encode()


def as_lines(value: Any) -> bytes:
    return b"".join(as_json(line) + b"\n" for line in value)


def as_tensors(value: Any, old: bool = False) -> bytes:
    content = io.BytesIO()
    torch.save(value, content, _use_new_zipfile_serialization=not old)
    return content.getvalue()


class CallWhenLoaded:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.made_by = function, arguments

    def __reduce__(self) -> Any:
        return self.made_by


def tensor_damages(state: Any) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Names and writers of damaged torch.save files: a state with one change, or code in both file formats."""
    tensors = [
        torch.zeros(3),
        torch.zeros(3).to_sparse(),
        torch.empty(10**12, device="meta"),
        torch.zeros(1).expand(10**12),
    ]
    values = [*VALUES, *tensors, torch.tensor(torch.nan), torch.zeros(2, 2, dtype=torch.complex64), torch.zeros(0)]
    deep: Any = []
    for _ in range(200):
        deep = [deep]

    def each(value: Any) -> Iterator[tuple[str, Any]]:
        for new in values:
            yield f"-> {str(new)[:20]!r}", deep if new is DEEP else new
        if isinstance(value, dict):
            yield "+ key", {**value, "more": torch.zeros(1)}
            yield "+ number", {**value, 7: torch.zeros(1)}
            for key in value:
                yield f"without {key}", {name: part for name, part in value.items() if name != key}
                for name, new in each(value[key]):
                    yield f"{key} {name}", {**value, key: new}
        elif isinstance(value, list) and value:
            yield "- item", value[1:]
            for name, new in each(value[0]):
                yield f"0 {name}", [new, *value[1:]]

    marker = "open('executed', 'w').close()"
    for function, argument in ((exec, marker), (eval, marker), (os.system, "touch executed"), (bytearray, 10**11)):
        call = CallWhenLoaded(function, argument)
        yield f"code {function.__name__}", partial(as_tensors, {"model": call})
        yield f"code {function.__name__}, old format", partial(as_tensors, {"model": call}, old=True)
    for name, new in each(state):
        yield name, partial(as_tensors, new)


def metrics_of(run: Path) -> Any:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def all_cases(run: Path, corpus: Path) -> Iterator[Case]:
    """All cases, always in the same order."""
    rng = random.Random(11)
    verbs = {
        "run/config.yaml": ["fill", "train_config", "evaluate", "generate"],
        "run/model.pth": ["fill", "embed"],
        "run/tokenizer/ranks.tiktoken": ["fill", "generate"],
        "run/tokenizer/encoding.json": ["fill", "export"],
        "run/metrics.jsonl": ["export", "read_metrics"],
        "run/machine.json": ["export"],
        "run/STOPPED": ["plot"],
        f"open/{STEP}/state.pt": ["fill_open", "resume"],
        f"open/{STEP}/manifest.json": ["fill_open", "resume"],
        "open/metrics.jsonl": ["resume"],
        "open/.lock": ["resume"],
        "corpus/corpus.json": ["evaluate_corpus", "train_corpus"],
        "corpus/train.bin": ["evaluate_corpus"],
        "corpus/val.bin": ["evaluate_corpus"],
        "corpus/documents.bin": ["evaluate_corpus"],
        "corpus/documents.names": ["evaluate_corpus"],
        "corpus/tokenizer/ranks.tiktoken": ["evaluate_corpus"],
        "corpus/tokenizer/encoding.json": ["evaluate_corpus"],
    }
    other = (run / "model.pth").read_bytes()
    for file, names in verbs.items():
        for kind, make in KINDS.items():
            yield Case(file, replacing(make), kind, rng.choice(names))
        for _ in range(1 if file == "run/STOPPED" else 4):
            for name, change in bytes_damages(random.Random(rng.random()), other):
                yield Case(file, rewriting(change), name, rng.choice(names))
        if file.endswith((".bin", ".tiktoken", ".pt")):
            for _ in range(4):
                for name, change in bytes_damages(random.Random(rng.random()), other):
                    yield Case(
                        file, rewriting(change), f"{name}, digests updated", rng.choice(names), update_digests=True
                    )
    for file in ("run/metrics.jsonl", "run/machine.json", "run/config.yaml"):
        for kind, make in KINDS.items():
            yield Case(file, replacing(make), f"{kind} again", "plot")
    manifest, lines = json.loads((run / STEP / MANIFEST).read_text()), metrics_of(run)
    structures = [
        ("corpus/corpus.json", as_json, json.loads((corpus / "corpus.json").read_text())),
        (f"open/{STEP}/manifest.json", as_json, manifest),
        ("run/machine.json", as_json, json.loads((run / "machine.json").read_text())),
        ("run/tokenizer/encoding.json", as_json, json.loads((run / "tokenizer/encoding.json").read_text())),
        ("run/config.yaml", as_yaml, yaml.safe_load((run / "config.yaml").read_text())),
        ("run/metrics.jsonl", as_lines, [lines[1], lines[0], *lines[2:]]),
        ("run/metrics.jsonl", as_lines, lines),
        ("open/metrics.jsonl", as_lines, lines),
    ]
    for file, write, value in structures:
        for name, new in changed(value):
            if write is as_lines and not isinstance(new, list):
                continue
            yield Case(file, writing(partial(write, new)), name, rng.choice(verbs[file]))
    yield from tensor_cases(run, rng)


def tensor_cases(run: Path, rng: random.Random) -> Iterator[Case]:
    """The cases of files that torch.save wrote."""
    for file, source, verbs in (
        ("run/model.pth", run / "model.pth", ["fill", "embed"]),
        (f"open/{STEP}/state.pt", run / STEP / STATE, ["resume", "resume", "step"]),
    ):
        state = torch.load(source, weights_only=True)
        for name, content in tensor_damages(state):
            verb = rng.choice(verbs)
            yield Case(file, writing(content), name, verb, update_digests=file.endswith(STATE))


def choose(cases: Iterator[Case], most: int) -> list[Case]:
    """At most `most` cases per file, including all that replace the file by another kind or contain code."""
    by_file: dict[str, list[Case]] = {}
    for case in cases:
        by_file.setdefault(case.file, []).append(case)
    chosen: list[Case] = []
    for file, own in by_file.items():
        always = [case for case in own if case.name in KINDS or case.name.startswith("code")]
        rest = [case for case in own if case not in always]
        chosen += always + random.Random(file).sample(rest, min(len(rest), max(0, most - len(always))))
    return chosen


def commands(case: Path) -> dict[str, tuple[Callable[[list[str]], None], list[str]]]:
    """The verbs with their arguments."""
    run, open_run, corpus = case / "run", case / "open", case / "corpus"
    of_run = ["--run", str(run), "--device", "cpu"]
    stop_at_once = ["--train.time_limit", "1e-9"]
    resume = tiny_flags(corpus, open_run, train__max_iters=31)
    elsewhere = ["--run_dir", str(case / "new"), "--data.path", str(corpus), "--device", "cpu", *stop_at_once]
    return {
        "fill": (fill.main, [*of_run, "A [MASK] [MASK]."]),
        "fill_open": (fill.main, ["--run", str(open_run), "--device", "cpu", "A [MASK]."]),
        "embed": (embed.main, [*of_run, "--out", str(case / "out.npy"), str(case / "lines.txt")]),
        "generate": (generate.main, [*of_run, "--length", "3", "A"]),
        "evaluate": (evaluate.main, [*of_run, "--data", str(corpus)]),
        "evaluate_corpus": (evaluate.main, [*of_run, "--data", str(corpus), "--json"]),
        "export": (export.main, ["--run", str(run), "--out", str(case / "exported")]),
        "plot": (plot.main, [*of_run[:2], "--out", str(case / "plots")]),
        "read_metrics": (read_metrics, [str(run)]),
        "train_config": (train_main, ["--config", str(run / "config.yaml"), *elsewhere]),
        "train_corpus": (train_main, [*tiny_flags(corpus, case / "new"), *stop_at_once]),
        "resume": (train_main, [*resume, *stop_at_once]),
        "step": (train_main, resume),
    }


def read_metrics(arguments: list[str]) -> None:
    """Read metrics as `plot` does, without the plotting, which takes a second."""
    from mlm_dist.plots.report import losses_at_round_steps, metrics_of
    from mlm_dist.run.history import read_histories

    (history,) = read_histories([Path(arguments[0])])
    print(metrics_of(history), losses_at_round_steps(history))


def update_digests(file: Path) -> None:
    """Update the recorded digest and size of a file to its content."""
    content = file.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if file.name == STATE:
        manifest = json.loads((file.parent / MANIFEST).read_text())
        manifest["files"] = {STATE: fingerprint(file)}
        (file.parent / MANIFEST).write_text(json.dumps(manifest))
    elif file.suffix == ".bin":
        manifest = json.loads((file.parent / "corpus.json").read_text())
        manifest["sha256"][file.name if file.name in manifest["sha256"] else file.stem] = digest
        if file.stem in manifest["tokens"]:
            manifest["tokens"][file.stem] = len(content) // 2
        (file.parent / "corpus.json").write_text(json.dumps(manifest))
    else:
        parts = json.loads((file.parent / "encoding.json").read_text())
        (file.parent / "encoding.json").write_text(json.dumps(parts | {"sha256": digest}))


def paths_below(folder: Path) -> set[str]:
    """All paths below a folder."""
    return {os.path.join(parent, name) for parent, folders, files in os.walk(folder) for name in (*folders, *files)}  # noqa: PTH118


class Watch:
    """Records, by an audit hook, started processes and files opened for writing outside of the allowed paths."""

    def __init__(self, allowed: list[Path]) -> None:
        self.allowed = tuple(map(str, allowed))
        self.seen: list[str] = []
        sys.addaudithook(self.look)

    def look(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in STARTS_PROCESSES:
            self.seen.append(f"{event} {arguments}")
        elif (
            event == "open" and isinstance(arguments[0], str) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        ):
            path = os.path.abspath(arguments[0])  # noqa: PTH100 (an audit hook must be cheap)
            if not path.startswith(self.allowed):
                self.seen.append(f"open {path}")


def on_alarm(*_: object) -> None:
    raise Hung


def run_and_check(main: Callable[[list[str]], None], arguments: list[str]) -> str:
    """Run a verb as from the command line. Return a description of a wrong exit, or an empty string."""
    sys.argv = ["verb", *arguments]
    output, errors = io.StringIO(), io.StringIO()
    code: Any = 0
    signal.alarm(SECONDS)
    try:
        with redirect_stdout(output), redirect_stderr(errors):
            run_verb(main)
    except SystemExit as end:
        code = end.code
    except BaseException:  # a Rust panic is not an Exception
        return traceback.format_exc(limit=-4)
    finally:
        signal.alarm(0)
    lines = errors.getvalue().splitlines()
    if (
        code not in (0, 2)
        or not all(line.startswith("mlm_dist: ") for line in lines)
        or CONTROLS.search("".join(lines))
    ):
        return f"exit code {code}: {errors.getvalue()[-500:]}"
    if len(errors.getvalue()) > 20_000 or (code == 2 and not lines[-1].startswith("mlm_dist: error: ")):
        return f"{len(errors.getvalue())} characters: {errors.getvalue()[:500]}"
    return ""


def memory(name: str) -> int:
    """A figure of /proc/self/status in bytes. Unlike ru_maxrss, VmHWM does not include the process before its exec."""
    return int(re.findall(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) << 10


def main() -> None:
    """Run the cases of one part."""
    most, part, parts = map(int, sys.argv[1:4])
    run, corpus, folder = map(Path, sys.argv[4:7])
    source, case, home = folder / "source", folder / "case", folder / "home"
    home.mkdir(parents=True)
    shutil.copytree(run, source / "run")
    shutil.copytree(corpus, source / "corpus")
    (source / "run/STOPPED").write_text("SIGTERM\n")
    for checkpoint in list_checkpoints(source / "run/checkpoints")[2:]:
        shutil.rmtree(checkpoint)
    shutil.copytree(source / "run", source / "open")
    for name in ("DONE", "model.pth", "STOPPED"):
        (source / "open" / name).unlink()
    (source / "lines.txt").write_text("A lamp.\n")
    os.chdir(folder)
    cases = choose(all_cases(source / "run", corpus), most)[part::parts]
    watch = Watch([case, home, Path("/dev/null")])
    signal.signal(signal.SIGALRM, on_alarm)
    torch.set_num_threads(1)
    importlib.import_module("matplotlib.font_manager")  # caches fonts, which may take longer than a verb may
    failure = run_and_check(plot.main, ["--run", str(source / "run"), "--out", str(home / "plots")])  # imports the rest
    assert not failure, failure
    used = memory("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    before = paths_below(folder)
    watch.seen.clear()
    counts: collections.Counter[str] = collections.Counter()
    failures: list[str] = []
    for damaged in cases:
        label = f"{damaged.file}: {damaged.name}: {damaged.verb}"
        shutil.copytree(source, case, symlinks=True)
        file = case / damaged.file
        damaged.damage(file)
        if damaged.update_digests:
            update_digests(file)
        found = [run_and_check(*commands(case)[damaged.verb])]
        shutil.rmtree(case)
        found += watch.seen + [
            f"{path} was created" for path in paths_below(folder) - before if not path.startswith(str(home))
        ]
        if memory("VmHWM") > MEMORY:
            found.append("more than 2 GB")
        failures += [f"{label}: {thing}" for thing in found if thing]
        watch.seen.clear()
        counts[damaged.file] += 1
    print(json.dumps({"counts": counts, "failures": failures}))


if __name__ == "__main__":
    main()
