from pathlib import Path

import pytest

import verbs
from mlm_dist.errors import UserError


def test_a_verb_answers(run_dir: Path) -> None:
    (answer,) = verbs.ask("evaluate", "--run", str(run_dir), "--json")
    assert 0 < answer["loss"] < 6


def test_what_a_verb_complains_of_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"evaluate --run {tmp_path} --json: mlm_dist: error: .*no run directory"):
        verbs.ask("evaluate", "--run", str(tmp_path), "--json")
