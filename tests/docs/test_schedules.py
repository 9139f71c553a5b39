"""docs/schedules.py plots the figure in docs/schedules.md, as a small file."""

import sys
from pathlib import Path

import matplotlib.image

from tests.conftest import REPOSITORY, start

MAX_BYTES = 100_000


def test_the_script_plots_the_figure_of_the_page(tmp_path: Path) -> None:
    file = tmp_path / "schedules.png"
    result = start([sys.executable, "docs/schedules.py", str(file)])
    assert result.returncode == 0, result.stderr
    in_docs = REPOSITORY / "docs" / "schedules.png"
    assert matplotlib.image.imread(file).shape == matplotlib.image.imread(in_docs).shape
    assert max(file.stat().st_size, in_docs.stat().st_size) < MAX_BYTES
    assert "(schedules.png)" in (REPOSITORY / "docs" / "schedules.md").read_text(encoding="utf-8")
