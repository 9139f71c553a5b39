"""`python -m mlm_dist.train`: values that the config leaves open, and values that do not fit."""

import math
from pathlib import Path

import pytest

from mlm_dist import fault_points
from mlm_dist.config_reading import read_config
from mlm_dist.data.preparation import SAMPLE_TEXT
from mlm_dist.run.metrics import read_events
from tests.conftest import tiny_flags, torchrun, verb

SHORT = {"train__max_iters": 4, "optim__warmup_iters": 2}


def vocab_size(run_dir: Path) -> int | None:
    """The `model.vocab_size` in the config.yaml of a run."""
    return read_config(run_dir / "config.yaml").model.vocab_size


def messages_in(stderr: str) -> list[str]:
    """The lines of mlm_dist on stderr, except the one about changed keys."""
    prefix = "mlm_dist: "
    lines = [line.removeprefix(prefix) for line in stderr.splitlines() if line.startswith(prefix)]
    return [line for line in lines if "the run continues with" not in line]


def test_a_vocabulary_size_of_null_is_that_of_the_corpus_without_a_message(corpus_folder: Path, tmp_path: Path) -> None:
    result = verb("train", *tiny_flags(corpus_folder, tmp_path / "run", model__vocab_size="null", **SHORT))
    assert (result.returncode, result.stderr) == (0, "")
    assert vocab_size(tmp_path / "run") == 300
    first = next(event for event in read_events(tmp_path / "run" / "metrics.jsonl") if "val_loss" in event)
    assert first["val_loss"] == pytest.approx(math.log(300), abs=0.1)
    filled = verb("fill", "--run", tmp_path / "run", "The [MASK].")
    assert filled.returncode == 0, filled.stderr


def test_a_run_resumed_with_a_vocabulary_size_of_null_keeps_its_size(corpus_folder: Path, tmp_path: Path) -> None:
    for size, max_iters in ((310, 4), ("null", 6)):
        changes = SHORT | {"model__vocab_size": size, "train__max_iters": max_iters}
        result = verb("train", *tiny_flags(corpus_folder, tmp_path / "run", **changes))
        assert result.returncode == 0, result.stderr
        assert messages_in(result.stderr) == [
            f"model.vocab_size 310 is larger than the vocabulary of {corpus_folder} (300): 10 entries are never used"
        ]
        assert vocab_size(tmp_path / "run") == 310
    assert "step 4 to 6" in result.stdout


def test_a_run_resumed_with_a_vocabulary_size_of_null_finds_its_trained_bpe(tmp_path: Path) -> None:
    text, cache = tmp_path / "text.txt", {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    text.write_bytes(SAMPLE_TEXT.read_bytes()[:20000])
    for size, max_iters in ((100000, 4), ("null", 6)):
        changes = SHORT | {"model__vocab_size": size, "train__max_iters": max_iters, "data__tokenizer": "bpe"}
        result = verb("train", *tiny_flags(text, tmp_path / "run", data__val_fraction=0.1, **changes), **cache)
        assert result.returncode == 0, result.stderr
        # The text has fewer entries. The model has the size of the config.
        (line,) = messages_in(result.stderr)
        assert line.startswith(f"model.vocab_size 100000 is larger than the vocabulary of {text} (")
        assert vocab_size(tmp_path / "run") == 100000
    assert "step 4 to 6" in result.stdout
    assert len(list((tmp_path / "cache" / "mlm_dist").glob("*/corpus.json"))) == 1


def test_a_run_whose_plot_cannot_be_written_is_done(corpus_folder: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "plots").write_text("in the way")
    result = verb("train", *tiny_flags(corpus_folder, run_dir, **SHORT))
    assert result.returncode == 0, result.stderr
    assert (run_dir / "DONE").exists()
    assert messages_in(result.stderr) == [
        f"{run_dir}/plots/curves.png cannot be written (File exists); `python -m mlm_dist.plot` plots it again"
    ]


def test_a_run_whose_metrics_cannot_be_read_at_the_end_is_done(
    corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_unreadable(point: str) -> None:
        if point == "plot begins":
            (tmp_path / "run" / "metrics.jsonl").unlink()

    monkeypatch.setattr(fault_points, "on_reached", make_unreadable)
    result = verb("train", *tiny_flags(corpus_folder, tmp_path / "run", **SHORT))
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "DONE").exists()
    assert "plots/curves.png is not plotted: " in result.stderr


@pytest.mark.multiprocess
def test_two_processes_report_values_that_do_not_fit_once(corpus_folder: Path, tmp_path: Path) -> None:
    changes = {"train__max_iters": 4, "optim__decay_fraction": 0.9, "model__vocab_size": 301}
    result = torchrun(2, *tiny_flags(corpus_folder, tmp_path / "run", **changes))
    assert result.returncode == 0, result.stderr
    assert messages_in(result.stderr) == [
        "optim.warmup_iters 5 is more than half of train.max_iters 4: the warmup takes 2 steps",
        "optim.decay_fraction 0.9 of train.max_iters 4 is more than the warmup leaves: the decay takes 2 steps",
        f"model.vocab_size 301 is larger than the vocabulary of {corpus_folder} (300): 1 entry is never used",
    ]
