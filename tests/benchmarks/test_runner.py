"""Candidates in their own processes."""

from pathlib import Path

import pytest

from mlm_dist.benchmarks.runner import Runner, Turn, running, take_turns
from mlm_dist.config import Config
from mlm_dist.config_reading import parse_config
from mlm_dist.errors import RunError, UserError
from tests.conftest import tiny_flags


@pytest.fixture
def config(corpus_folder: Path, tmp_path: Path) -> Config:
    return parse_config(tiny_flags(corpus_folder, tmp_path / "run", train__eval_interval=0), "benchmark")


def test_runners_take_turns() -> None:
    sent: list[str] = []

    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

        def send(self, command: str) -> list[float]:
            sent.append(f"{self.name} {command}")
            return [len(sent)]

        def max_over_ranks(self, command: str) -> float:
            return self.send(command)[0]

    turns = [Turn("run 1", "run 9"), Turn("run 2", "run 5")]
    assert take_turns([Named("a"), Named("b")], turns, 2) == [[2, 6], [4, 8]]  # type: ignore[list-item]
    assert sent == 2 * ["a run 1", "a run 9", "b run 2", "b run 5"]


@pytest.mark.multiprocess
def test_mlm_dist_executes_every_command_on_two_ranks(config: Config) -> None:
    with running([Runner("mlm_dist", config, world_size=2, threads=1)]) as (runner,):
        times = runner.send("run 2")
        assert len(times) == 2
        assert min(times) > 0
        parts = runner.send("step_parts")[0]
        assert parts.keys() == {"input", "forward", "backward", "optimizer", "all-reduce"}
        assert min(parts.values()) > 0
        for command in ("read", "save", "all_reduce", "evaluate", "plot"):
            assert runner.max_over_ranks(command) > 0
        assert runner.send("finish_saving") == [None, None]
        (checkpoint,) = Path(runner._folder.name).glob("checkpoints/*/state.pt")
        sizes, _ = runner.send("sizes")
        assert checkpoint.stat().st_size == pytest.approx(sizes["checkpoint_bytes"], rel=0.5)
        assert 100e6 < runner.max_over_ranks("peak_memory") < 4e9


def test_peers_execute_the_same_commands(config: Config) -> None:
    with running([Runner("naive", config)]) as (runner,):
        assert runner.max_over_ranks("run 1") > 0
        assert 100e6 < runner.max_over_ranks("peak_memory") < 4e9


def test_a_user_error_of_a_candidate_is_reported(config: Config) -> None:
    config.train.batch_size = 10**6
    with pytest.raises(UserError, match="fewer than one batch"):
        Runner("mlm_dist", config)


def test_a_candidate_that_dies_ends_the_benchmark(config: Config) -> None:
    runner = Runner("mlm_dist", config)
    with pytest.raises(RunError, match=r"the mlm_dist process ended: .*no attribute 'sing'"):
        runner.send("sing")
