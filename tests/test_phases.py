"""The phases of a run: rows are read in order, and the run is the same at every world size and after a stop."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mlm_dist.config import Config, ModelConfig, TrainConfig
from mlm_dist.config_reading import parse_config
from mlm_dist.data.corpus import Corpus
from mlm_dist.data.rows import choose_rows
from mlm_dist.errors import UserError
from mlm_dist.phases import Phase, Phases
from mlm_dist.run.metrics import read_events
from mlm_dist.run.record import differences, fixed_values
from tests.conftest import tiny_flags, torchrun, verb

# Of the tiny run, whose batches have 16 rows of 16 tokens. It evaluates and saves a checkpoint at step 10.
PHASES = [
    {"steps": 4, "batch_size": 4, "row_length": 16},
    {"steps": 8, "batch_size": 8, "row_length": 4},
    {"steps": 6, "batch_size": 16, "row_length": 8},
]
FLAG = json.dumps(PHASES)


def config_of(phases: list[dict[str, int]], **train: Any) -> Config:
    settings = {"batch_size": 16, "max_iters": 30} | train
    return Config(model=ModelConfig(block_size=16), train=TrainConfig(phases=phases, **settings))  # type: ignore[arg-type]


def events(run_dir: Path, key: str) -> list[Any]:
    return [event[key] for event in read_events(run_dir / "metrics.jsonl") if key in event]


def test_each_phase_follows_the_one_before_it() -> None:
    phases = Phases(config_of(PHASES))
    assert [phases.at(step) for step in (0, 3)] == 2 * [Phase(0, 4, 0, 4, 16)]
    assert [phases.at(step) for step in (4, 11)] == 2 * [Phase(4, 12, 16, 8, 4)]
    assert [phases.at(step) for step in (12, 17)] == 2 * [Phase(12, 18, 80, 16, 8)]
    assert [phases.at(step) for step in (18, 10**9)] == 2 * [Phase(18, math.inf, 176, 16, 16)]
    assert [phases.rows_before(step) for step in (0, 1, 4, 5, 12, 18, 20)] == [0, 4, 16, 24, 80, 176, 208]


@pytest.mark.parametrize("phases", [[], PHASES])
def test_a_number_of_rows_is_read_after_the_first_step_that_reaches_it(phases: list[dict[str, int]]) -> None:
    found = Phases(config_of(phases))
    for rows in range(300):
        steps = found.steps_to(rows)
        assert found.rows_before(steps) >= rows
        assert steps == 0 or found.rows_before(steps - 1) < rows


def test_micro_batches_divide_the_rows_of_a_phase() -> None:
    phases = Phases(config_of([{"steps": 1, "batch_size": 16, "row_length": 16}], batch_size=48, micro_batch_size=6))
    assert [phases.config_of(phase, world_size=2).micro_batch_size(2) for phase in phases.phases] == [4, 6]


@pytest.mark.parametrize(("micro", "pieces", "rows"), [(None, 4 * 4, 8), (2, 2 * 4, 2), (8, 4 * 4, 8)])
def test_a_phase_is_a_run_of_pieces(micro: int | None, pieces: int, rows: int) -> None:
    phases = Phases(config_of([{"steps": 1, "batch_size": 8, "row_length": 4}], micro_batch_size=micro))
    config = phases.config_of(phases.at(0), world_size=2)
    assert config.train.batch_size == 8 * 4
    assert config.micro_batch_size(2) == pieces
    assert phases.config_of(phases.at(1), 2).micro_batch_size(2) == rows


def test_rows_are_read_in_the_order_of_a_run_without_phases(corpus: Corpus) -> None:
    def rows(phases: list[dict[str, int]], steps: int) -> np.ndarray:
        _, sampler = choose_rows(config_of(phases), [corpus])
        selections = [sampler.select(step) for step in range(steps)]
        return np.concatenate([np.stack([selection.epochs, selection.rows], 1) for selection in selections])

    steps = 18 + 2 * len(corpus.train) // 256  # more than two epochs
    found = rows(PHASES, steps)
    assert np.array_equal(found, rows([], steps)[: len(found)])


@pytest.mark.slow
def test_a_run_resumes_in_every_phase_with_the_same_bits(corpus_folder: Path, tmp_path: Path) -> None:
    run, resumed = tmp_path / "run", tmp_path / "resumed"
    settings = {"train__phases": FLAG, "checkpoint__interval": 1, "checkpoint__keep": 100, "model__dropout": 0.1}
    assert verb("train", *tiny_flags(corpus_folder, run, **settings)).returncode == 0
    tokens = [0, *events(run, "tokens")]
    assert np.diff(tokens).tolist() == 4 * [64] + 8 * [128] + 18 * [256]
    expected = torch.load(run / "model.pth", weights_only=True)
    for step in (3, 4, 7, 12, 15, 18):  # inside a phase and at its first step
        shutil.copytree(run, resumed)
        for later in range(step + 1, 31):
            shutil.rmtree(resumed / f"checkpoints/step-{later:08}")
        (resumed / "model.pth").unlink()
        assert verb("train", *tiny_flags(corpus_folder, resumed, **settings)).returncode == 0
        assert events(resumed, "loss") == events(run, "loss")
        found = torch.load(resumed / "model.pth", weights_only=True)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        shutil.rmtree(resumed)


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize(
    "options",
    [
        {
            "train__loss_frequency_exponent": 0.5,
            "masking__mask_prob_end": 0.3,
            "masking__mask_prob_change_fraction": 0.5,
        },
        pytest.param({"masking__mask_prob_range": "[0, 1]", "data__documents": "isolated"}, marks=pytest.mark.long),
    ],
)
def test_phases_are_the_same_at_every_world_size_and_in_micro_batches(
    options: dict[str, Any], corpus_folder: Path, tmp_path: Path
) -> None:
    settings = {"train__phases": FLAG, **options}
    assert verb("train", *tiny_flags(corpus_folder, tmp_path / "one", **settings)).returncode == 0
    for name, processes, micro in [("two", 2, "null"), ("four", 4, "null"), ("micro", 2, "4")]:
        flags = tiny_flags(corpus_folder, tmp_path / name, train__micro_batch_size=micro, **settings)
        result = torchrun(processes, *flags)
        assert result.returncode == 0, result.stderr
        for key, tolerance in {"digest": 0, "loss": 5e-3, "val_loss": 5e-3}.items():
            found, expected = (events(tmp_path / other, key) for other in (name, "one"))
            assert found == expected if not tolerance else found == pytest.approx(expected, abs=tolerance), key


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.multiprocess
def test_four_ranks_resume_in_a_phase_with_the_same_bits(corpus_folder: Path, tmp_path: Path) -> None:
    run, resumed = tmp_path / "run", tmp_path / "resumed"
    settings = {"train__phases": FLAG, "checkpoint__interval": 5, "checkpoint__keep": 100}
    assert torchrun(4, *tiny_flags(corpus_folder, run, **settings)).returncode == 0
    shutil.copytree(run, resumed)
    for step in (20, 25, 30):
        shutil.rmtree(resumed / f"checkpoints/step-{step:08}")
    (resumed / "model.pth").unlink()
    assert torchrun(4, *tiny_flags(corpus_folder, resumed, **settings)).returncode == 0
    assert (resumed / "model.pth").read_bytes() == (run / "model.pth").read_bytes()


@pytest.mark.slow
def test_a_run_does_not_continue_with_other_phases(corpus_folder: Path, tmp_path: Path) -> None:
    assert verb("train", *tiny_flags(corpus_folder, tmp_path / "run", train__phases=FLAG)).returncode == 0
    result = verb("train", *tiny_flags(corpus_folder, tmp_path / "run", train__max_iters=40))
    assert result.returncode == 2
    assert "train.phases [{'batch_size': 4, 'row_length': 16, 'steps': 4}, " in result.stderr


@pytest.mark.parametrize(
    ("phase", "line"),
    [
        ({"steps": 30}, r"train\.phases take 30 steps, which leaves none of train\.max_iters 30: raise it, or shorten"),
        ({"batch_size": 32}, r"train\.phases has batch_size 32, which is more than train\.batch_size 16"),
        ({"row_length": 6}, r"train\.phases has row_length 6, which does not divide model\.block_size 16"),
        (
            {"steps": 0},
            r"^--train\.phases is .*: it must be a list of values, each {steps: a whole number, ",
        ),
        (
            {"rows": 8},
            r"^--train\.phases is .*: it must be a list of values, each {steps: a whole number, ",
        ),
    ],
)
def test_wrong_phases_are_refused_in_a_line(phase: dict[str, int], line: str, tmp_path: Path) -> None:
    phases = [{"steps": 1, "batch_size": 8, "row_length": 8} | phase]
    with pytest.raises(UserError, match=line) as caught:
        parse_config(tiny_flags(tmp_path, tmp_path / "run", train__phases=json.dumps(phases)), "train")
    assert len(str(caught.value).splitlines()) == 1


def test_a_row_length_is_compared_with_the_block_size_that_was_given(tmp_path: Path) -> None:
    phases = json.dumps([{"steps": 1, "batch_size": 8, "row_length": 48}])
    flags = tiny_flags(tmp_path, tmp_path / "run", train__phases=phases, model__block_size=96, model__heads=0)
    with pytest.raises(UserError) as caught:
        parse_config(flags, "train")
    assert [line.split(" is ")[0] for line in str(caught.value).splitlines()] == ["--model.heads"]


def test_a_run_from_before_there_were_phases_does_not_continue_with_some() -> None:
    now = fixed_values(config_of(PHASES))
    before = {key: value for key, value in now.items() if key not in ("train.phases", "train.loss_frequency_exponent")}
    assert differences(before, fixed_values(config_of([]))) == ""
    assert differences(before, now).startswith("train.phases [], not [")
    assert differences(before, now | {"train.loss_frequency_exponent": 0.5}).count(";") == 1


def test_the_rows_of_a_phase_are_split_evenly_over_the_processes() -> None:
    with pytest.raises(UserError, match=r"^train\.phases has batch_size 2, which cannot be split over 4 processes"):
        config_of([{"steps": 1, "batch_size": 2, "row_length": 4}]).check_world_size(4)
