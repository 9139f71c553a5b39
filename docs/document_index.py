"""Measure what many documents cost at the start of a run: `python docs/document_index.py 1000 1000000 50000000`.

For each number, a corpus gets a made-up index of as many documents. Its token files are sparse. Each corpus is opened
in a process of its own. The table in docs/performance.md is the output.
"""

import dataclasses
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from mlm_dist.data.corpus import Manifest
from mlm_dist.data.documents import write_index
from mlm_dist.data.preparation import SAMPLE_TEXT, prepare_corpus
from mlm_dist.output import print_result
from mlm_dist.texts.document_list import find_documents
from mlm_dist.texts.finding import SPLITS

TOKENS = 100  # of a document, in each split

# Prints the seconds to open a corpus, the peak memory then in kB, and the seconds until a report has the index, with
# the verification of its digests.
MEASURED = """
import sys, time
from pathlib import Path
from mlm_dist.data.corpus import Corpus
start = time.perf_counter()
corpus = Corpus.open(Path(sys.argv[1]), verify="never")
print(time.perf_counter() - start)
print(*[line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")])
start = time.perf_counter()
corpus.documents()
print(time.perf_counter() - start)
"""


def make_up(folder: Path, count: int) -> None:
    """Prepare a corpus with an index of `count` documents."""
    manifest = prepare_corpus(find_documents([SAMPLE_TEXT]), folder, "bpe", vocab_size=300)
    digests = write_index(folder, (f"{i:08}.txt" for i in range(count)), np.full((count, 2), TOKENS, dtype=np.int64))
    tokens = dict.fromkeys(SPLITS, count * TOKENS)
    for split in SPLITS:
        with (folder / f"{split}.bin").open("wb") as file:
            file.truncate(tokens[split] * manifest.dtype.itemsize)
    dataclasses.replace(manifest, tokens=tokens, documents=count, sha256=manifest.sha256 | digests).write(folder)
    assert Manifest.read(folder).documents == count


def main() -> None:
    """Measure each number of documents and print the table."""
    print_result("| documents | index | open | peak memory | first reading by a report |\n|---|---|---|---|---|")
    for count in map(int, sys.argv[1:]):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "corpus"
            make_up(folder, count)
            size = sum((folder / file).stat().st_size for file in ("documents.bin", "documents.names"))
            command = [sys.executable, "-c", MEASURED, str(folder)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        opened, peak, read = map(float, output.split())
        print_result(f"| {count:,} | {size / 1e6:,.1f} MB | {opened:.3f} s | {peak / 1e3:.0f} MB | {read:.2f} s |")


if __name__ == "__main__":
    main()
