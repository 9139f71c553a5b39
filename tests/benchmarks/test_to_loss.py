"""Contenders that are trained until their validation loss has fallen to a target."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from mlm_dist.benchmarks.to_loss import Contender, ToLoss, check_comparable, train_peer
from mlm_dist.config import Config, DataConfig, MaskingConfig, TrainConfig
from mlm_dist.config_reading import parse_config
from mlm_dist.errors import RunError, UserError
from mlm_dist.run.metrics import read_events, validation_losses
from tests.conftest import tiny_flags

ROUNDING = 1e-4  # of a loss, with another number of threads


def nothing(line: str) -> None:
    """Log nothing."""


def compared(target: float, out: Path, log: Callable[[str], None] = nothing) -> ToLoss:
    return ToLoss(target, out, at_a_time=1, log=log)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_run_ends_at_its_first_evaluation_below_the_target_and_continues_to_a_lower_one(
    corpus_folder: Path, run_dir: Path, tmp_path: Path
) -> None:
    reference = validation_losses(read_events(run_dir / "metrics.jsonl"))  # the same config, seed and corpus
    config = parse_config(tiny_flags(corpus_folder, tmp_path / "unused"), "benchmark")
    contender, lines = Contender("tiny", config), []  # type: ignore[var-annotated]
    first = compared(reference[10] + ROUNDING, tmp_path, lines.append)
    first.train_all([contender], [config.seed])
    cost = first.cost(contender, config.seed)
    assert cost is not None
    assert (cost.steps, cost.tokens) == (10, 10 * 16 * 16)
    assert cost.seconds > 0
    assert cost.peak_memory > 1e8
    first.train_all([contender], [config.seed])
    assert lines == [f"tiny, seed {config.seed}"]  # it has reached the target, so it was not trained again

    changed = Contender("tiny", dataclasses.replace(config, optim=dataclasses.replace(config.optim, lr=0.5)))
    with pytest.raises(UserError, match=r"was trained with another config: give another --out"):
        first.train_all([changed], [config.seed])

    second = compared(reference[30] + ROUNDING, tmp_path)
    second.train_all([contender], [config.seed])
    final = second.cost(contender, config.seed)
    assert final is not None
    assert final.steps == 30
    assert compared(0.1, tmp_path).cost(contender, config.seed) is None


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data__path": "nowhere"}, UserError, "nothing-1: data.path nowhere: there is no such corpus"),
        ({"optim__lr": 1e30, "optim__grad_clip": 0, "train__max_bad_steps": 1}, RunError, "nothing-1: "),
    ],
)
def test_the_last_line_of_a_run_that_fails_is_the_error(
    changes: dict[str, object], error: type[UserError], message: str, corpus_folder: Path, tmp_path: Path
) -> None:
    config = parse_config(tiny_flags(corpus_folder, tmp_path / "unused") + flags_of(changes), "benchmark")
    with pytest.raises(error, match=message) as raised:
        compared(0.1, tmp_path).train_all([Contender("nothing", config)], [1])
    assert type(raised.value) is error


def flags_of(changes: dict[str, object]) -> list[str]:
    return [f"--{key.replace('__', '.')}={value}" for key, value in changes.items()]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Config(train=TrainConfig(eval_rows=7)), "a has train.eval_rows 1024 and b has 7: they cannot be compared"),
        (Config(masking=MaskingConfig(mask_prob_end=0.3)), "mask_prob at the end of the run 0.15 and b has 0.3"),
        (Config(train=TrainConfig(eval_interval=5)), "a has train.eval_interval 250 and b has 5: they"),
        (Config(data=DataConfig(val_fraction=0.5)), "a has data.val_fraction 0.05 and b has 0.5: they"),
    ],
)
def test_contenders_with_other_evaluations_are_refused(other: Config, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_comparable([Contender("a", Config()), Contender("b", other)])


def test_another_masking_in_training_is_comparable() -> None:
    falling = dataclasses.replace(Config(), masking=MaskingConfig(mask_prob=0.3, mask_prob_end=0.15))
    check_comparable([Contender("a", Config()), Contender("b", falling)])


def test_configs_without_evaluations_are_refused() -> None:
    with pytest.raises(UserError, match=r"train\.eval_interval is 0"):
        check_comparable([Contender("a", Config(train=TrainConfig(eval_interval=0)))])


def test_a_peer_that_is_evaluated_otherwise_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"needs one corpus, data\.documents joined"):
        train_peer(compared(1.0, tmp_path), Config(data=DataConfig(documents="isolated")))


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_run_that_someone_else_stops_is_not_one_that_missed_the_target(corpus_folder: Path, tmp_path: Path) -> None:
    flags = tiny_flags(corpus_folder, tmp_path / "unused", train__max_iters=100_000, train__time_limit=0.001)
    config = parse_config(flags, "benchmark")
    with pytest.raises(RunError, match="tiny-1: it was stopped before its last step"):
        compared(0.1, tmp_path).train_all([Contender("tiny", config)], [1])


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_run_is_stopped_once_it_has_reached_the_target(corpus_folder: Path, tmp_path: Path) -> None:
    config = parse_config(tiny_flags(corpus_folder, tmp_path / "unused", train__max_iters=100_000), "benchmark")
    comparison, contender = compared(9.0, tmp_path), Contender("tiny", config)
    comparison.train_all([contender], [1])
    cost = comparison.cost(contender, 1)
    assert cost is not None
    assert cost.steps == 0
    assert not any((tmp_path / "tiny-1" / name).exists() for name in ("DONE", "STOP"))
