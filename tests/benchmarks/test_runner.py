"""Contenders in processes of their own."""

from pathlib import Path

import pytest

from mlm_dist.benchmarks.runner import Runner, running, take_turns
from mlm_dist.config import Config
from mlm_dist.config_reading import parse_config
from mlm_dist.errors import RunError, UserError
from tests.conftest import tiny_flags


@pytest.fixture
def config(corpus_folder: Path, tmp_path: Path) -> Config:
    return parse_config(tiny_flags(corpus_folder, tmp_path / "run", train__eval_interval=0), "benchmark")


def test_each_takes_its_turn() -> None:
    asked: list[str] = []

    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

        def ask(self, question: str) -> list[float]:
            asked.append(f"{self.name} {question}")
            return [len(asked)]

        def slowest(self, question: str) -> float:
            return self.ask(question)[0]

    assert take_turns([Named("a"), Named("b")], "run 9", 2) == [[2, 6], [4, 8]]  # type: ignore[list-item]
    assert asked == 2 * ["a run 1", "a run 9", "b run 1", "b run 9"]


@pytest.mark.multiprocess
def test_our_trainer_answers_every_question_on_two_ranks(config: Config) -> None:
    with running([Runner("mlm_dist", config, world_size=2, threads=1)]) as (runner,):
        times = runner.ask("run 2")
        assert len(times) == 2
        assert min(times) > 0
        parts = runner.ask("split")[0]
        assert parts.keys() == {"input", "forward", "backward", "optimizer", "all-reduce"}
        assert min(parts.values()) > 0
        for question in ("read", "save", "all_reduce"):
            assert runner.slowest(question) > 0
        assert runner.ask("finish_saving") == [None, None]
        assert 100e6 < runner.slowest("peak_memory") < 4e9


def test_peers_are_asked_alike(config: Config) -> None:
    with running([Runner("seed", config)]) as (runner,):
        assert runner.slowest("run 1") > 0
        assert 100e6 < runner.slowest("peak_memory") < 4e9


def test_a_contender_that_refuses_its_config_says_why(config: Config) -> None:
    config.train.batch_size = 10**6
    with pytest.raises(UserError, match="fewer than one batch"):
        Runner("mlm_dist", config)


def test_a_contender_that_dies_ends_the_benchmark(config: Config) -> None:
    runner = Runner("mlm_dist", config)
    with pytest.raises(RunError, match=r"mlm_dist ended: .*no attribute 'sing'"):
        runner.ask("sing")
