"""Contenders that are trained until their validation loss has fallen to a target."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from mlm_dist.benchmarks.to_loss import Contender, ToLoss, check_comparable
from mlm_dist.config import Config, MaskingConfig, TrainConfig
from mlm_dist.config_reading import parse_config
from mlm_dist.errors import RunError, UserError
from mlm_dist.run.metrics import read_events, validation_losses
from tests.conftest import tiny_flags


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
    first = compared(reference[10], tmp_path, lines.append)
    first.train_all([contender], [config.seed])
    arrival = first.arrival(contender, config.seed)
    assert arrival is not None
    assert (arrival.steps, arrival.tokens) == (10, 10 * 16 * 16)
    assert arrival.seconds > 0
    assert arrival.peak_memory > 1e8
    first.train_all([contender], [config.seed])
    assert lines == [f"tiny, seed {config.seed}"]  # it has arrived, so it was not trained again

    second = compared(reference[30], tmp_path)
    second.train_all([contender], [config.seed])
    final = second.arrival(contender, config.seed)
    assert final is not None
    assert final.steps == 30
    assert compared(0.1, tmp_path).arrival(contender, config.seed) is None


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
        (Config(train=TrainConfig(eval_rows=7)), "a has train.eval_rows 1024 and b has 7: their validation losses are"),
        (Config(masking=MaskingConfig(mask_prob_end=0.3)), "mask_prob at the end of the run 0.15 and b has 0.3"),
        (Config(train=TrainConfig(eval_interval=0)), "train.eval_interval is 0"),
    ],
)
def test_contenders_with_other_evaluations_are_refused(other: Config, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_comparable([Contender("a", Config()), Contender("b", other)])


def test_another_masking_in_training_is_comparable() -> None:
    falling = dataclasses.replace(Config(), masking=MaskingConfig(mask_prob=0.3, mask_prob_end=0.15))
    check_comparable([Contender("a", Config()), Contender("b", falling)])
