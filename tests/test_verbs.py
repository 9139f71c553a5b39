"""The verbs called from Python: they return, raise `UserError`, and leave the process as they found it."""

import json
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mlm_dist import contrast, embed, evaluate, export, fill, finetune, generate, plot, probe
from mlm_dist.average import main as average_main
from mlm_dist.data.preparation import SAMPLE_TEXT
from mlm_dist.errors import UserError
from mlm_dist.prepare import main as prepare_main
from mlm_dist.run.lock import lock
from mlm_dist.train import main as train_main
from mlm_dist.training.stopping import SIGNALS
from tests.conftest import start, tiny_flags


@pytest.fixture(autouse=True)
def outside_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)


def test_every_verb_returns(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "lines.txt").write_text("A line.\n")
    (tmp_path / "labelled.txt").write_text("1 A line.\n2 A page.\n" * 10)
    (tmp_path / "pairs.txt").write_text("A line.\nA lines.\n")
    bpe = ["--tokenizer", "bpe", "--vocab_size", "300"]
    calls: list[tuple[Callable[[list[str]], None], list[object]]] = [
        (prepare_main, [SAMPLE_TEXT, "--out", tmp_path / "corpus", *bpe]),
        (fill.main, ["--run", run_dir, "The [MASK]."]),
        (generate.main, ["--run", run_dir, "--length", 3]),
        (evaluate.main, ["--run", run_dir, "--data", SAMPLE_TEXT]),
        (evaluate.main, ["--run", run_dir, "--lines", tmp_path / "lines.txt"]),
        (probe.main, ["--run", run_dir, "--pairs", tmp_path / "pairs.txt", "--good_line", "first"]),
        (finetune.main, ["--run", run_dir, "--train", tmp_path / "labelled.txt", "--out", tmp_path / "results"]),
        (embed.main, ["--run", run_dir, tmp_path / "lines.txt", "--out", tmp_path / "vectors.npy"]),
        (contrast.main, ["--run", run_dir, SAMPLE_TEXT, "--out", tmp_path / "sentences", "--steps", 1]),
        (average_main, ["--run", run_dir, "--last", 2, "--out", tmp_path / "averaged"]),
        (export.main, ["--run", run_dir, "--out", tmp_path / "exported"]),
        (plot.main, ["--run", run_dir, "--out", tmp_path / "plots"]),
    ]
    for main, arguments in calls:
        main([str(argument) for argument in arguments])
        assert capsys.readouterr().out


def test_training_returns_and_leaves_the_process_as_it_was(corpus_folder: Path, tmp_path: Path) -> None:
    handlers, hook = {signum: signal.getsignal(signum) for signum in SIGNALS}, threading.excepthook
    for run in ("one", "two"):
        train_main(tiny_flags(corpus_folder, tmp_path / run, train__max_iters=3, debug=True))
        assert (tmp_path / run / "DONE").exists()
        handle = lock(tmp_path / run / ".lock")  # raises while another file of this process holds the lock
        assert handle is not None
        handle.close()
    evaluate.main(["--run", str(tmp_path / "two")])
    assert {signum: signal.getsignal(signum) for signum in SIGNALS} == handlers
    assert threading.excepthook == hook
    assert torch.get_deterministic_debug_mode() == 0
    assert not torch.is_anomaly_enabled()
    assert not [thread.name for thread in threading.enumerate() if thread.name == "checkpoint"]


def test_a_user_error_in_training_leaves_the_process_as_it_was(run_dir: Path, corpus_folder: Path) -> None:
    handlers = {signum: signal.getsignal(signum) for signum in SIGNALS}
    with pytest.raises(UserError, match=r"seed 1337, not 7"):
        train_main(tiny_flags(corpus_folder, run_dir, seed=7))
    assert {signum: signal.getsignal(signum) for signum in SIGNALS} == handlers


def test_training_runs_in_a_thread(corpus_folder: Path, tmp_path: Path) -> None:
    thread = threading.Thread(target=train_main, args=(tiny_flags(corpus_folder, tmp_path / "run"),))
    thread.start()
    thread.join()
    assert (tmp_path / "run" / "DONE").exists()


@pytest.mark.multiprocess
def test_a_program_under_torchrun_trains_evaluates_and_trains_again(corpus_folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "several.py"
    calls = [tiny_flags(corpus_folder, tmp_path / run, train__max_iters=3) for run in ("one", "two")]
    script.write_text(
        f"""
import json
from mlm_dist import evaluate, train
from mlm_dist.exit_codes import run_verb

def main(arguments):
    one, two = json.loads({json.dumps(json.dumps(calls))})
    train.main(one)
    evaluate.main(["--run", {str(tmp_path / "one")!r}, "--json"])
    train.main(two)

run_verb(main)
"""
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    result = start(launcher, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert [(tmp_path / run / "DONE").exists() for run in ("one", "two")] == [True, True]
    assert '"loss"' in result.stdout
