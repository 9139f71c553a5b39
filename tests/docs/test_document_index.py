"""The cost of many documents is measured."""

import subprocess
import sys

from tests.conftest import start


def test_a_row_is_printed_for_each_number_of_documents() -> None:
    result: subprocess.CompletedProcess[str] = start([sys.executable, "docs/document_index.py", "10", "2000"])
    assert result.returncode == 0, result.stderr
    _, _, few, many = result.stdout.splitlines()
    assert few.startswith("| 10 | 0.0 MB | 0.0") and many.startswith("| 2,000 | 0.1 MB | 0.0")
    for line in (few, many):
        assert 20 < float(line.split("|")[4].removesuffix(" MB ")) < 200
