"""averaged.json describes a mean in words. A damaged one describes nothing, so that the report is written anyway."""

import json
from pathlib import Path

import pytest

from mlm_dist.run.averaged import describe_average

AVERAGED = {"run": "runs/novels", "steps": [10, 20], "sha256": {}}


def test_the_mean_is_described_by_its_steps_and_its_run(tmp_path: Path) -> None:
    (tmp_path / "averaged.json").write_text(json.dumps(AVERAGED))
    assert describe_average(tmp_path / "averaged.json") == "mean of steps 10, 20 of novels"


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"[]", b"{}", b'{"steps": 5, "run": "x"}', b'{"steps": [5], "run": 1}', None]
)
def test_a_damaged_or_missing_file_describes_nothing(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "averaged.json").write_bytes(content)
    assert describe_average(tmp_path / "averaged.json") == ""
