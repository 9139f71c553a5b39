"""A `prepare` that is killed leaves nothing half-written, whatever it reads, and does not block the next one."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from mlm_dist.data.corpus import Corpus
from mlm_dist.data.preparation import SAMPLE_TEXT
from tests.conftest import start, verb

pytestmark = pytest.mark.slow

PARAGRAPHS = SAMPLE_TEXT.read_text(encoding="utf-8").split("\n\n") * 40  # several batches

# prepare.py, killed when it reaches a fault point for the CALL-th time
DYING = """
import sys
from mlm_dist.exit_codes import run_verb
from mlm_dist.prepare import main
from tests.faults.dying import die_at
die_at(sys.argv.pop(1), int(sys.argv.pop(1)))
run_verb(main)
"""


def write(kind: str, folder: Path) -> Path:
    """Write the paragraphs in a format."""
    path = folder / f"texts.{kind}"
    table = pa.table({"text": PARAGRAPHS})
    match kind:
        case "txt":
            path.write_text("\n\n".join(PARAGRAPHS), encoding="utf-8")
        case "jsonl.gz":
            plain = folder / "texts.jsonl"
            plain.write_text("".join(json.dumps({"text": text}) + "\n" for text in PARAGRAPHS), encoding="utf-8")
            subprocess.run(["gzip", str(plain)], check=True)
        case "csv":
            lines = ('"' + text.replace('"', '""') + '"\n' for text in PARAGRAPHS)
            path.write_text("text\n" + "".join(lines), encoding="utf-8")
        case "parquet":
            pa.parquet.write_table(table, path)
        case "parquet.gz":  # copied into a temporary file
            pa.parquet.write_table(table, folder / "texts.parquet")
            subprocess.run(["gzip", str(folder / "texts.parquet")], check=True)
        case "arrow":
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
    return path


KINDS = ["txt", "jsonl.gz", "csv", "parquet", "parquet.gz", "arrow", "standard input"]
POINTS = [("documents listed", 1), ("corpus written", 1)]


@pytest.mark.parametrize(
    ("kind", "point", "call"),
    [*((kind, "batch encoded", 3) for kind in KINDS), *(("jsonl.gz", point, call) for point, call in POINTS)],
)
def test_a_killed_prepare_leaves_nothing_half_written(kind: str, point: str, call: int, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    path = write("txt" if kind == "standard input" else kind, tmp_path)
    given, stdin = ("-", path.read_text(encoding="utf-8")) if kind == "standard input" else (path, "")
    flags = [given, "--tokenizer", "bpe", "--vocab_size", 300, "--near_duplicates", "--out", tmp_path / "out"]
    flags += ["--shard_tokens", 100_000] if kind == "csv" else []  # one of the cases is in shards
    command = [sys.executable, "-c", DYING, point, str(call), *map(str, flags)]
    killed = start(command, stdin=stdin, TMPDIR=str(temporary))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "out").exists()
    assert list(temporary.iterdir()) == []
    again = verb("prepare", *flags, stdin=stdin)
    assert again.returncode == 0, again.stderr
    assert Corpus.open(tmp_path / "out", verify="always").manifest.documents in (1, len(list(filter(None, PARAGRAPHS))))
