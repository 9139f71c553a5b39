"""Measure `prepare` on made-up inputs: `python docs/prepare_costs.py --megabytes 60 --files 5000`.

Each input has the same amount of text, paragraphs of the sample text in random order, and each is prepared with GPT-2's
tokenizer in a process of its own, on one core. The table in docs/performance.md is the output.
"""

import argparse
import csv
import gzip
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet

from mlm_dist.data.preparation import SAMPLE_TEXT
from mlm_dist.output import print_result

RECORD_CHARACTERS = 1000
REFERENCE_MEGABYTES = 10

# Prints the seconds of prepare on one core, its CPU seconds, the peak memory in kB, and the CPU seconds of tiktoken
# alone for the text of a file: in the same process, because the speed of a shared machine changes all the time.
MEASURED = """
import os, sys, time
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
from pathlib import Path
from mlm_dist import api
from mlm_dist.data.tokenizer import Tokenizer
start, cpu = time.perf_counter(), time.process_time()
api.prepare([sys.argv[1]], sys.argv[2])
print(time.perf_counter() - start, time.process_time() - cpu)
print(*[line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")])
text, encoding = Path(sys.argv[3]).read_text(encoding="utf-8"), Tokenizer.from_tiktoken("gpt2").encoding
cpu = time.process_time()
for start in range(0, len(text), 1 << 18):
    encoding.encode_to_numpy(text[start : start + (1 << 18)], disallowed_special=())
print(time.process_time() - cpu)
"""


class Cost(NamedTuple):
    """What preparing an input takes.

    Attributes:
        seconds: wall time.
        cpu_seconds: CPU time of all threads.
        megabytes: peak memory.
        tiktoken_rate: megabytes of text that tiktoken alone encodes in a CPU second.
    """

    seconds: float
    cpu_seconds: float
    megabytes: float
    tiktoken_rate: float


def records(megabytes: float, characters: int) -> Iterator[str]:
    """Texts of about this many characters, of this many megabytes in total."""
    paragraphs = [text for text in SAMPLE_TEXT.read_text(encoding="utf-8").split("\n\n") if text.strip()]
    rng = random.Random(1)
    kept, size = "", 0.0
    while size < megabytes * 1e6:
        while len(kept) < characters:
            kept += rng.choice(paragraphs) + "\n\n"
        yield kept[:characters]
        size += len(kept[:characters].encode())
        kept = kept[characters:]


def one_file(folder: Path, megabytes: float, files: int) -> Path:
    """Write the text as one file."""
    path = folder / "one.txt"
    path.write_text("".join(records(megabytes, RECORD_CHARACTERS)), encoding="utf-8")
    return path


def many_files(folder: Path, megabytes: float, files: int) -> Path:
    """Write the text as many files."""
    (folder / "files").mkdir()
    for index, text in enumerate(records(megabytes, max(1, int(megabytes * 1e6 / files)))):
        (folder / "files" / f"{index:07}.txt").write_text(text, encoding="utf-8")
    return folder / "files"


def one_line(folder: Path, megabytes: float, files: int) -> Path:
    """Write the text as a file without a newline."""
    path = folder / "line.txt"
    path.write_text("".join(records(megabytes, RECORD_CHARACTERS)).replace("\n", " "), encoding="utf-8")
    return path


def json_lines(folder: Path, megabytes: float, files: int) -> Path:
    """Write the text as records of JSON Lines."""
    path = folder / "records.jsonl"
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in records(megabytes, RECORD_CHARACTERS))
    return path


def compressed_json_lines(folder: Path, megabytes: float, files: int) -> Path:
    """Write the text as records of JSON Lines and compress them."""
    path = folder / "records.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in records(megabytes, RECORD_CHARACTERS))
    return path


def table(folder: Path, megabytes: float, files: int) -> Path:
    """Write the text as the rows of a CSV table."""
    path = folder / "records.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text in records(megabytes, RECORD_CHARACTERS))])
    return path


def parquet(folder: Path, megabytes: float, files: int) -> Path:
    """Write the text as the rows of a Parquet file, in a single row group."""
    path = folder / "records.parquet"
    rows = pa.table({"text": list(records(megabytes, RECORD_CHARACTERS))})
    pa.parquet.write_table(rows, path, row_group_size=len(rows))
    return path


INPUTS: dict[str, Callable[[Path, float, int], Path]] = {
    "one text file": one_file,
    "many text files": many_files,
    "one line": one_line,
    "JSON Lines, records of 1 kB": json_lines,
    "the same as .gz": compressed_json_lines,
    "CSV": table,
    "Parquet": parquet,
}


def measure(path: Path, out: Path, reference: Path) -> Cost:
    """Measure the preparation of a path, and tiktoken alone on the text of `reference`."""
    command = [sys.executable, "-c", MEASURED, str(path), str(out), str(reference)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    seconds, cpu_seconds, kilobytes, tiktoken_seconds = map(float, printed)
    rate = reference.stat().st_size / 1e6 / tiktoken_seconds
    return Cost(seconds, cpu_seconds, kilobytes * 1024 / 1e6, rate)


def main() -> None:
    """Measure all inputs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=60, help="size of each input")
    parser.add_argument("--files", type=int, default=5000, help="number of small files")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each input; the fastest counts")
    given = parser.parse_args()
    print_result("| input | MB/s | MB per CPU second | of one file | of tiktoken alone | peak memory, MB |")
    print_result("|---|---|---|---|---|---|")
    first = 0.0
    for name, write in INPUTS.items():
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "reference").mkdir()
            reference = one_file(Path(folder) / "reference", REFERENCE_MEGABYTES, 1)
            path = write(Path(folder), given.megabytes, given.files)
            costs = [measure(path, Path(folder) / f"out-{index}", reference) for index in range(given.rounds)]
        rate = max(given.megabytes / cost.cpu_seconds for cost in costs)
        of_tiktoken = max(given.megabytes / cost.cpu_seconds / cost.tiktoken_rate for cost in costs)
        wall_rate, peak = given.megabytes / min(costs).seconds, max(cost.megabytes for cost in costs)
        first = first or rate
        print_result(f"| {name} | {wall_rate:.1f} | {rate:.1f} | {rate / first:.2f} | {of_tiktoken:.2f} | {peak:.0f} |")


if __name__ == "__main__":
    main()
