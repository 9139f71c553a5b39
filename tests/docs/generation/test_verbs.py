from pathlib import Path

import pytest

import verbs
from mlm_dist.errors import UserError


def test_the_output_of_a_command_is_parsed(run_dir: Path) -> None:
    (answer,) = verbs.run_command("evaluate", "--run", str(run_dir), "--json")
    assert 0 < answer["loss"] < 6


def test_the_error_of_a_command_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"evaluate --run {tmp_path} --json: mlm_dist: error: .*not a run directory"):
        verbs.run_command("evaluate", "--run", str(tmp_path), "--json")
