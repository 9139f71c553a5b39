"""Training in real processes: world sizes, resuming, and the files of a run."""

import itertools
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mlm_dist.config import ModelConfig
from mlm_dist.model.encoder import Encoder
from mlm_dist.run.metrics import read_events
from tests.conftest import TINY, start, tiny_flags, torchrun, verb

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
PROBE = Path(__file__).with_name("probe.py")


def probe(processes: int, out: Path, corpus: Path, **overrides: object) -> list[list[dict[str, Any]]]:
    """What each rank read and computed in the first steps: a list of steps per rank."""
    out.mkdir()
    settings = {"optim__weight_decay": 0, "optim__grad_clip": 0} | overrides
    arguments = tiny_flags(corpus, out / "run", **settings)
    result = start([*TORCHRUN, f"--nproc_per_node={processes}", str(PROBE), str(out), *arguments])
    assert result.returncode == 0, result.stderr
    return [torch.load(out / f"rank-{rank}.pt") for rank in range(processes)]


@pytest.fixture(scope="module")
def one_process(corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return probe(1, tmp_path_factory.mktemp("probe") / "one", corpus_folder)[0]


def assert_same_step(step: dict[str, Any], expected: dict[str, Any]) -> None:
    assert step["loss"] == pytest.approx(expected["loss"], abs=1e-5)
    distance = (step["gradient"] - expected["gradient"]).norm()
    assert distance <= 1e-5 * expected["gradient"].norm()


@pytest.mark.multiprocess
@pytest.mark.parametrize("processes", [2, 4])
def test_rows_masks_and_gradient_are_the_same_at_every_world_size(
    processes: int, corpus_folder: Path, tmp_path: Path, one_process: list[dict[str, Any]]
) -> None:
    ranks = probe(processes, tmp_path / "probe", corpus_folder)
    for i, expected in enumerate(one_process):
        steps = [rank[i] for rank in ranks]
        order = expected["rows"].argsort()
        rows, indices = torch.cat([step["rows"] for step in steps]).sort()
        assert torch.equal(rows, expected["rows"][order])
        for name, tensor in expected["batch"].items():
            gathered = torch.cat([step["batch"][name] for step in steps])
            assert torch.equal(gathered[indices], tensor[order]), name
        for step in steps:
            assert_same_step(step, expected)


@pytest.mark.multiprocess
def test_micro_batches_do_not_change_the_gradient_which_is_all_reduced_once_per_step(
    corpus_folder: Path, tmp_path: Path, one_process: list[dict[str, Any]]
) -> None:
    ranks = probe(2, tmp_path / "probe", corpus_folder, train__micro_batch_size=2)
    for steps in ranks:
        for step, expected in zip(steps, one_process, strict=True):
            assert_same_step(step, expected)
            assert step["all_reduces"] == 1


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    "masking",
    [
        {"masking__mask_prob_range": "[0, 1]"},
        pytest.param({"masking__mask_prob_range": "[0.2, 0.7]", "masking__unit": "word"}, marks=pytest.mark.long),
        pytest.param(
            {"masking__mask_prob": 0.4, "masking__mask_prob_end": 0.2, "masking__unit": "span"},
            marks=pytest.mark.long,
        ),
    ],
    ids=["sampled", "sampled, words", "scheduled, spans"],
)
def test_sampled_and_scheduled_mask_rates_give_the_same_gradient_at_every_world_size(
    masking: dict[str, object], corpus_folder: Path, tmp_path: Path
) -> None:
    (one_rank,) = probe(1, tmp_path / "one", corpus_folder, **masking)
    for steps in probe(2, tmp_path / "two", corpus_folder, train__micro_batch_size=4, **masking):
        for step, expected in zip(steps, one_rank, strict=True):
            assert_same_step(step, expected)


def losses(run_dir: Path, key: str = "loss") -> list[float]:
    return [event[key] for event in read_events(run_dir / "metrics.jsonl") if key in event]


@pytest.mark.multiprocess
def test_the_losses_of_a_run_are_the_same_at_every_world_size(
    corpus_folder: Path, run_dir: Path, tmp_path: Path
) -> None:
    for processes in (2, 4):
        other = tmp_path / str(processes)
        result = torchrun(processes, *tiny_flags(corpus_folder, other))
        assert result.returncode == 0, result.stderr
        assert losses(other) == pytest.approx(losses(run_dir), abs=5e-3)
        assert losses(other, "digest") == losses(run_dir, "digest")  # of the data, which are identical
        assert losses(other, "val_loss") == pytest.approx(losses(run_dir, "val_loss"), abs=5e-3)


def test_the_validation_loss_falls(run_dir: Path) -> None:
    first, *_, last = losses(run_dir, "val_loss")
    assert first == pytest.approx(5.7, abs=0.1)  # ln 300: at the start, all tokens are equally likely
    assert last < first - 0.3


def test_a_run_directory_has_the_files_that_the_readme_lists(run_dir: Path) -> None:
    found = {path.relative_to(run_dir).as_posix() for path in run_dir.rglob("*") if path.is_file()}
    assert {
        "DONE",
        "config.yaml",
        "machine.json",
        "metrics.jsonl",
        "model.pth",
        "plots/curves.png",
        "tokenizer/encoding.json",
        "tokenizer/ranks.tiktoken",
    } <= found
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == [
        f"step-{step:08d}" for step in (10, 20, 30)
    ]
    assert not [name for name in found if "partial" in name or "tmp" in name]


def test_model_pth_is_a_state_dict_of_the_encoder(run_dir: Path) -> None:
    shape: dict[str, Any] = {
        key.removeprefix("model."): value for key, value in TINY.items() if key.startswith("model.")
    }
    encoder = Encoder(ModelConfig(**shape))
    encoder.load_state_dict(torch.load(run_dir / "model.pth", weights_only=True))


def test_metrics_have_the_documented_keys_in_a_line_per_step(run_dir: Path) -> None:
    events = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    training = [event for event in events if "loss" in event]
    evaluations = [event for event in events if "val_loss" in event]
    keys = {"step", "epoch", "loss", "lr", "grad_norm", "tokens", "tokens_per_second", "seconds", "digest"}
    assert all(set(event) == keys for event in training)
    assert all(set(event) == {"step", "val_loss", "val_accuracy"} for event in evaluations)
    assert [event["step"] for event in training] == list(range(1, 31))
    assert [event["step"] for event in evaluations] == [0, 10, 20, 30]
    assert [event["tokens"] for event in training] == [step * 16 * 16 for step in range(1, 31)]


def test_tokens_per_second_is_tokens_divided_by_seconds(run_dir: Path) -> None:
    training = [event for event in read_events(run_dir / "metrics.jsonl") if "loss" in event]
    for before, after in itertools.pairwise(training):
        tokens, seconds = (after[key] - before[key] for key in ("tokens", "seconds"))
        assert after["tokens_per_second"] == pytest.approx(tokens / seconds, rel=1e-6)


def test_a_finished_run_is_not_changed(corpus_folder: Path, run_dir: Path) -> None:
    kept = [run_dir / name for name in ("metrics.jsonl", "model.pth")]
    before = [path.read_bytes() for path in kept]
    result = verb("train", *tiny_flags(corpus_folder, run_dir))
    assert result.returncode == 0, result.stderr
    assert [path.read_bytes() for path in kept] == before
    assert (run_dir / "DONE").exists()


def test_a_longer_run_continues_a_finished_one(corpus_folder: Path, run_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy)
    result = verb("train", *tiny_flags(corpus_folder, copy, train__max_iters=40))
    assert result.returncode == 0, result.stderr
    assert "step 30 to 40" in result.stdout
    assert [event["step"] for event in read_events(copy / "metrics.jsonl") if "loss" in event] == list(range(1, 41))
    assert losses(copy, "val_loss")[:4] == losses(run_dir, "val_loss")
    assert [event["step"] for event in read_events(copy / "metrics.jsonl") if "val_loss" in event] == [
        0,
        10,
        20,
        30,
        40,
    ]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_learns_like_full_precision(
    precision: str, corpus_folder: Path, run_dir: Path, tmp_path: Path
) -> None:
    result = verb("train", *tiny_flags(corpus_folder, tmp_path / "run", precision=precision))
    assert result.returncode == 0, result.stderr
    assert losses(tmp_path / "run", "val_loss")[-1] == pytest.approx(losses(run_dir, "val_loss")[-1], abs=0.05)
    parameters = torch.load(tmp_path / "run/model.pth", weights_only=True)
    assert {parameter.dtype for parameter in parameters.values()} == {torch.float32}


def test_losses_that_are_not_finite_end_the_run_without_another_checkpoint(corpus_folder: Path, tmp_path: Path) -> None:
    explosive = {"optim__lr": 1e30, "optim__grad_clip": 0, "optim__warmup_iters": 0, "optim__schedule": "constant"}
    result = verb("train", *tiny_flags(corpus_folder, tmp_path / "run", **explosive))
    assert result.returncode == 1
    *skips, last = result.stderr.splitlines()
    assert [f"step {step} is skipped" in line for step, line in enumerate(skips, start=2)] == [True] * 10
    assert last.startswith("mlm_dist: error: loss or gradient was not finite in 10 consecutive steps")
    assert not list((tmp_path / "run/checkpoints").glob("step-*"))


def test_debug_mode_is_deterministic_and_names_the_operation_that_returned_nan(
    corpus_folder: Path, tmp_path: Path
) -> None:
    runs = [tmp_path / name for name in ("one", "two")]
    for run in runs:
        result = verb("train", *tiny_flags(corpus_folder, run, debug=True, train__max_iters=5, model__dropout=0.1))
        assert result.returncode == 0, result.stderr
    assert losses(runs[0]) == losses(runs[1])
    explosive = {"optim__lr": 1e30, "optim__grad_clip": 0, "optim__warmup_iters": 0}
    # In a new process: pytest would capture autograd's warning, which contains the traceback of the forward pass.
    result = verb("train", *tiny_flags(corpus_folder, tmp_path / "three", debug=True, **explosive), timeout=60)
    assert result.returncode == 1
    assert re.search(r"Function '\w+Backward0?' returned nan values", result.stderr)
    assert "mlm_dist/model/" in result.stderr  # where in the forward pass


@pytest.mark.multiprocess
def test_one_rank_prepares_the_text_for_all(tmp_path: Path) -> None:
    flags = tiny_flags(Path("sample"), tmp_path / "run", data__tokenizer="bpe", train__max_iters=2)
    for _ in range(2):
        result = torchrun(2, *flags, XDG_CACHE_HOME=str(tmp_path / "cache"))
        assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "cache/mlm_dist").glob("*/corpus.json"))) == 1


@pytest.mark.multiprocess
def test_a_corpus_missing_on_one_machine_ends_all_ranks_with_one_line(corpus_folder: Path, tmp_path: Path) -> None:
    script = str(PROBE.with_name("half_blind.py"))
    result = start([*TORCHRUN, "--nproc_per_node=2", script, *tiny_flags(corpus_folder, tmp_path / "run")], timeout=60)
    lines = [line for line in result.stderr.splitlines() if line.startswith("mlm_dist: error:")]
    assert len(lines) == 1
    assert f"{corpus_folder}: not there (rank 1, on " in lines[0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_has_the_same_losses_as_the_cpu(
    precision: str, corpus_folder: Path, run_dir: Path, tmp_path: Path
) -> None:
    result = torchrun(1, *tiny_flags(corpus_folder, tmp_path / "run", device="cuda", precision=precision))
    assert result.returncode == 0, result.stderr
    assert losses(tmp_path / "run") == pytest.approx(losses(run_dir), abs=0.05)
