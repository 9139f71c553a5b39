"""`bash launch/gpu_check.sh`, as far as it runs without a GPU."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import gpu_check
import pytest

from tests.conftest import start


def results(out: Path) -> dict[str, Any]:
    """The stages of gpu_check.json by name."""
    return {
        stage["name"]: stage for stage in json.loads((out / "gpu_check.json").read_text(encoding="utf-8"))["stages"]
    }


def test_a_stage_that_fails_or_runs_out_of_time_does_not_stop_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(check: gpu_check.Check) -> dict[str, Any]:
        return {"output": check.run(sys.executable, "-c", "print('why'); raise SystemExit(3)")}

    def hangs(check: gpu_check.Check) -> dict[str, Any]:
        return {"output": check.run(sys.executable, "-c", "import time; time.sleep(100)")}

    def works(check: gpu_check.Check) -> dict[str, Any]:
        return {"milliseconds": float(check.run(sys.executable, "-c", "print(1.5)"))}

    stages = [("fails", fails, 30.0), ("hangs", hangs, 0.5), ("step", works, 30.0)]
    monkeypatch.setattr(gpu_check, "STAGES", stages)
    began = time.monotonic()
    assert gpu_check.main(["--out", str(tmp_path / "out")]) == 2
    assert time.monotonic() - began < 60
    found = results(tmp_path / "out")
    assert [stage["status"] for stage in found.values()] == ["failed", "failed", "ok"]
    assert "why" in found["fails"]["error"]
    assert "out of time" in found["hangs"]["error"]
    targets = json.loads((tmp_path / "out/gpu_check.json").read_text(encoding="utf-8"))["targets"]
    assert targets[0] == {"name": "step: milliseconds", "target": 2.0, "measured": 1.5}


@pytest.mark.slow
@pytest.mark.long
def test_the_stages_of_a_dry_run_succeed(tmp_path: Path) -> None:
    stages = ["machine", "resume", "verbs"]
    result = start(["bash", "launch/gpu_check.sh", "--tiny", "--out", str(tmp_path / "out"), "--only", *stages])
    assert result.returncode == 0, result.stdout + result.stderr
    assert {name: stage["status"] for name, stage in results(tmp_path / "out").items()} == dict.fromkeys(stages, "ok")
