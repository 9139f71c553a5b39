"""The picture in docs/schedules.md is drawn by the script that the page names, and is small."""

import sys
from pathlib import Path

import matplotlib.image

from tests.conftest import REPOSITORY, start

MOST_BYTES = 100_000


def test_the_script_draws_the_picture_of_the_page(tmp_path: Path) -> None:
    file = tmp_path / "schedules.png"
    result = start([sys.executable, "docs/schedules.py", str(file)])
    assert result.returncode == 0, result.stderr
    there = REPOSITORY / "docs" / "schedules.png"
    assert matplotlib.image.imread(file).shape == matplotlib.image.imread(there).shape
    assert max(file.stat().st_size, there.stat().st_size) < MOST_BYTES
    assert "(schedules.png)" in (REPOSITORY / "docs" / "schedules.md").read_text(encoding="utf-8")
