"""The rows of every kind are the same with any number of processes, and after a kill."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import assert_same_run, history, kill_at, run_to_end, train_command

pytestmark = pytest.mark.slow

# An epoch of the sample alone has 167 steps; of its paragraphs, a quarter of the rows here, about 160.
SETTINGS: dict[str, Any] = {"train__max_iters": 180, "checkpoint__interval": 60}
KINDS = ["same rows", "shifted", "isolated", "mixture", "all"]


def settings_of(kind: str, sharded: Path, paragraphs: Path) -> dict[str, Any]:
    """The flags of a kind of rows."""
    mixture = json.dumps([{"path": str(sharded), "weight": 3}, {"path": str(paragraphs), "weight": 1}])
    return SETTINGS | {
        "data__path": mixture if kind in ("mixture", "all") else paragraphs,
        "data__documents": "isolated" if kind in ("isolated", "all") else "joined",
        "data__shift_rows": kind in ("shifted", "all"),
    }


@pytest.mark.multiprocess
@pytest.mark.parametrize("kind", ["all", *(pytest.param(kind, marks=pytest.mark.long) for kind in KINDS[:-1])])
def test_rows_are_the_same_after_a_kill_and_with_two_processes(
    kind: str, corpus_folder: Path, sharded_folder: Path, paragraphs: Path, tmp_path: Path
) -> None:
    settings = settings_of(kind, sharded_folder, paragraphs)
    undisturbed, killed, split = (tmp_path / name for name in ("undisturbed", "killed", "split"))
    run_to_end(train_command(corpus_folder, undisturbed, **settings))
    command = train_command(corpus_folder, killed, **settings)
    kill_at("step taken", 175, command, tmp_path / "output")
    run_to_end(command)
    assert_same_run(killed, undisturbed)

    run_to_end(train_command(corpus_folder, split, processes=2, **settings))
    digests = [[event.get("digest") for event in history(run)] for run in (split, undisturbed)]
    assert digests[0] == digests[1]
    assert sum(digest is not None for digest in digests[0]) == 180


def test_every_kind_of_rows_is_another_run(
    corpus_folder: Path, sharded_folder: Path, paragraphs: Path, tmp_path: Path
) -> None:
    losses = {}
    for kind in KINDS:
        settings = settings_of(kind, sharded_folder, paragraphs) | {"train__max_iters": 10}
        run_to_end(train_command(corpus_folder, tmp_path / kind, **settings))
        losses[kind] = tuple(event["loss"] for event in history(tmp_path / kind) if "loss" in event)
    assert len(set(losses.values())) == len(KINDS)
