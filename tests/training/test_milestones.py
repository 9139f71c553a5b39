"""The steps of milestones, and the milestones of a run."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import mlm_dist
from mlm_dist.config import CheckpointConfig, Config, DataConfig, ModelConfig, TrainConfig, words_of
from mlm_dist.config_reading import parse_config, read_config
from mlm_dist.data.corpus import Corpus
from mlm_dist.data.word_count import words_per_token
from mlm_dist.errors import UserError
from mlm_dist.run.checkpoint import find_damage, list_checkpoints, load_checkpoint, step_of
from mlm_dist.run.metrics import read_events
from mlm_dist.run.run_dir import RunDir
from mlm_dist.training.milestones import milestone_steps
from tests.conftest import tiny_flags, verb


def config_of(milestones: list[int | str], *weights: float) -> Config:
    """A config of 160 tokens per step, on corpora with these weights."""
    parts = [{"path": str(index), "weight": weight} for index, weight in enumerate(weights)]
    return Config(
        model=ModelConfig(block_size=16),
        train=TrainConfig(batch_size=10),
        data=DataConfig(path=parts) if weights else DataConfig(),  # type: ignore[arg-type]
        checkpoint=CheckpointConfig(milestones=milestones),
    )


def test_a_number_of_words_is_the_first_step_after_which_so_many_were_read(corpus: Corpus) -> None:
    words = 160 * words_per_token(corpus.train, corpus.tokenizer)
    steps = milestone_steps(config_of([500, "1kw", "0.5Mw", 7]), [corpus])
    assert steps == {7: "7", math.ceil(1e3 / words): "1kw", 500: "500", math.ceil(5e5 / words): "0.5Mw"}
    assert list(steps) == sorted(steps)
    first = next(step for step, value in steps.items() if value == "1kw")
    assert (first - 1) * words < 1000 <= first * words


def test_words_are_counted_over_all_phases(corpus: Corpus) -> None:
    config = config_of(["5kw"])
    config.train = TrainConfig(batch_size=10, phases=[{"steps": 20, "batch_size": 5, "row_length": 4}])
    words = 80 * words_per_token(corpus.train, corpus.tokenizer)  # of a step of the first phase
    assert milestone_steps(config, [corpus]) == {20 + math.ceil((5000 - 20 * words) / (2 * words)): "5kw"}


def test_in_a_mixture_words_count_by_the_weights(corpus: Corpus) -> None:
    spaces = np.array(corpus.tokenizer.encode(" \n"), dtype=corpus.train.dtype)
    blank = dataclasses.replace(corpus, train=spaces)
    words = 160 * words_per_token(corpus.train, corpus.tokenizer) * 2 / 5
    assert milestone_steps(config_of(["5kw"], 2, 3), [corpus, blank]) == {math.ceil(5000 / words): "5kw"}
    with pytest.raises(UserError, match=r"has no words: give the steps of checkpoint\.milestones"):
        milestone_steps(config_of(["5kw"]), [blank])


@pytest.mark.parametrize(("text", "words"), [("500kw", 500_000), ("1Mw", 1_000_000), ("1.5Mw", 1_500_000)])
def test_thousands_and_millions_of_words(text: str, words: int) -> None:
    assert words_of(text) == words


@pytest.mark.parametrize("value", ["1Gw", "1M", "500 kw", "0kw", "-1Mw", "500", "1e3kw", "9" * 400 + "kw"])
def test_anything_else_is_refused_in_one_line(value: str) -> None:
    with pytest.raises(UserError, match=r"^checkpoint\.milestones has .*: give a step, such as 500, or words, such"):
        parse_config([f"--checkpoint.milestones=['{value}']"], "train")


@pytest.mark.parametrize("value", ["[0]", "[-5]", "[1.5]", "[true]", "5", "null", "[[1]]"])
def test_a_milestone_is_a_whole_number_or_text(value: str) -> None:
    with pytest.raises(UserError, match=r"--checkpoint\.milestones is .*: it must be a list of values, each a whole"):
        parse_config([f"--checkpoint.milestones={value}"], "train")


def test_milestones_are_read_back_from_the_config_of_a_run(tmp_path: Path) -> None:
    config = config_of([500, "1.5Mw"])
    (tmp_path / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    assert read_config(tmp_path / "config.yaml") == config


@pytest.fixture(scope="module")
def marked_run(corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 20 steps with milestones and an average, whose only checkpoint is its last."""
    run = tmp_path_factory.mktemp("marked") / "run"
    settings = {"optim__ema": 0.5, "checkpoint__interval": 20, "checkpoint__milestones": "[3, 1kw, 20, 900]"}
    result = verb("train", *tiny_flags(corpus_folder, run, train__max_iters=20, train__log_interval=10, **settings))
    assert result.returncode == 0
    assert "milestones at 3, 13 (1kw), 20, 900, in" in result.stdout
    assert result.stderr.splitlines() == ["mlm_dist: checkpoint.milestones 900: not saved, since train.max_iters is 20"]
    return run


def test_milestones_have_the_parameters_of_the_model_and_nothing_else(marked_run: Path) -> None:
    milestones = list_checkpoints(marked_run / "milestones")
    assert [step_of(path) for path in milestones] == [20, 13, 3]
    assert [find_damage(path) for path in milestones] == [None] * 3
    state, final = load_checkpoint(milestones[0]), torch.load(marked_run / "model.pth", weights_only=True)
    assert state.keys() == {"version", "step", "model"}
    assert all(torch.equal(state["model"][name], final[name]) for name in final)
    assert (milestones[0] / "state.pt").stat().st_size < (marked_run / "model.pth").stat().st_size + 2000


def test_the_steps_of_milestones_are_recorded(marked_run: Path) -> None:
    recorded = [event["step"] for event in read_events(marked_run / "metrics.jsonl") if "loss" in event]
    assert recorded == [3, 10, 13, 20]


def test_a_milestone_has_the_parameters_of_its_step(marked_run: Path, corpus_folder: Path, tmp_path: Path) -> None:
    settings = {"train__max_iters": 20, "optim__ema": 0.5, "checkpoint__interval": 13}
    assert verb("train", *tiny_flags(corpus_folder, tmp_path / "run", **settings)).returncode == 0
    model, expected = (mlm_dist.load(run, "cpu", step=13) for run in (marked_run, tmp_path / "run"))
    assert model.step == 13
    parameters = expected.encoder.state_dict()
    assert all(torch.equal(value, parameters[name]) for name, value in model.encoder.state_dict().items())


def test_a_missing_milestone_of_the_last_step_is_written_when_the_run_is_started_again(
    marked_run: Path, corpus_folder: Path
) -> None:
    milestone = marked_run / "milestones/step-00000020/state.pt"
    before = milestone.read_bytes()
    milestone.write_bytes(b"damage")
    assert verb("train", "--config", marked_run / "config.yaml").returncode == 0
    assert milestone.read_bytes() == before


def test_the_disk_space_for_milestones_is_checked(tmp_path: Path) -> None:
    run_dir, config = RunDir(tmp_path), Config()
    run_dir.check_space(1, config, 1)
    with pytest.raises(UserError, match=r"needs 1000000000\.0 GB more for 5 checkpoints and the milestones, but only"):
        run_dir.check_space(0, config, 10**18)
