"""A learning-rate range: its rates, its short runs, and which rate is suggested."""

import math
from pathlib import Path

import pytest

from mlm_dist.benchmarks.sweep import Trial, best_of, short_config, spaced_rates, train_at_rates
from mlm_dist.config import Config, OptimConfig, TrainConfig
from mlm_dist.config_reading import parse_config
from mlm_dist.data.corpus import Corpus
from mlm_dist.errors import UserError
from mlm_dist.run.metrics import read_events
from tests.conftest import tiny_flags, verb


def test_rates_are_evenly_spaced_on_a_logarithmic_axis() -> None:
    rates = spaced_rates(1e-4, 1e-2)
    assert rates == pytest.approx([1e-4 * 10 ** (i / 3) for i in range(7)])
    assert rates[0] == 1e-4
    assert spaced_rates(1e-3, 1.1e-3) == pytest.approx([1e-3, 1e-3 * math.sqrt(1.1), 1.1e-3])


def test_a_short_run_has_the_whole_schedule_and_one_evaluation() -> None:
    config = Config(train=TrainConfig(max_iters=5000, patience=3), optim=OptimConfig(warmup_iters=1000))
    short = short_config(config)
    assert (short.train.max_iters, short.train.eval_interval, short.train.patience) == (300, 300, None)
    assert short.optim.warmup_iters == 20
    assert short_config(Config(train=TrainConfig(max_iters=50))).train.max_iters == 50
    assert short_config(Config(optim=OptimConfig(warmup_iters=5))).optim.warmup_iters == 5
    longer = TrainConfig(phases=[{"steps": 1000, "batch_size": 64, "row_length": 64}])
    assert short_config(Config(train=longer)).train.phases == []


def test_a_trial_has_the_validation_loss_of_a_run_at_its_rate(corpus: Corpus, run_dir: Path, tmp_path: Path) -> None:
    config = parse_config(tiny_flags(corpus.folder, tmp_path / "none"), "plan")
    logged: list[Trial] = []
    trials = train_at_rates(config, [corpus], "optim.lr", [1e-3, 1e-5], logged.append)
    assert logged == trials
    assert [trial.rate for trial in trials] == [1e-3, 1e-5]
    *_, last = (event for event in read_events(run_dir / "metrics.jsonl") if "val_loss" in event)
    assert trials[0].val_loss == last["val_loss"]  # of the same config, whose rate is 1e-3
    assert trials[1].val_loss > trials[0].val_loss + 0.1
    assert not (tmp_path / "none").exists()


def test_a_trial_has_the_validation_loss_of_the_average_if_the_run_has_one(corpus: Corpus, tmp_path: Path) -> None:
    average = {"optim__ema": 0.99, "train__eval_interval": 30}
    assert verb("train", *tiny_flags(corpus.folder, tmp_path / "run", **average)).returncode == 0
    *_, last = (event for event in read_events(tmp_path / "run/metrics.jsonl") if "val_loss" in event)
    config = parse_config(tiny_flags(corpus.folder, tmp_path / "none", **average), "plan")
    (trial,) = train_at_rates(config, [corpus], "optim.lr", [1e-3], lambda _: None)
    assert trial.val_loss == last["val_loss"]


def test_the_rate_of_a_trial_is_that_of_its_key(corpus: Corpus, tmp_path: Path) -> None:
    flags = tiny_flags(corpus.folder, tmp_path / "none", optim__name="muon", train__max_iters=5)
    config = parse_config(flags, "plan")
    rates = {"optim.lr": config.optim.lr, "optim.muon_lr": config.optim.muon_lr}
    for key, rate in rates.items():
        same, changed = train_at_rates(config, [corpus], key, [rate, 10 * rate], lambda _: None)
        assert same.val_loss != changed.val_loss
        rates[key] = same.val_loss
    assert len(set(rates.values())) == 1  # the other rate stays that of the config


def test_the_best_trial_is_finite() -> None:
    trials = [Trial(1e-4, 5.0), Trial(1e-3, 4.0), Trial(1e-2, 4.5), Trial(1e-1, math.nan), Trial(1.0, -math.inf)]
    assert best_of(trials) == Trial(1e-3, 4.0)
    with pytest.raises(UserError, match="lower the range"):
        best_of(trials[3:])
