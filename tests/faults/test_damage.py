"""Damaged checkpoints are skipped and reported. Malicious files run no code and change nothing outside their run."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from mlm_dist.run.checkpoint import fingerprint, step_of
from tests.conftest import run_in_process, tiny_flags, verb
from tests.faults.conftest import assert_same_run, train_command

pytestmark = pytest.mark.slow

Damage = Callable[[Path], Any]


def flip_bit(checkpoint: Path, fraction: float) -> None:
    """Flip a bit of state.pt, in the byte at this fraction of its length."""
    file = checkpoint / "state.pt"
    content = bytearray(file.read_bytes())
    content[round(fraction * (len(content) - 1))] ^= 0x10
    file.write_bytes(content)


def truncate(checkpoint: Path, fraction: float) -> None:
    """Truncate state.pt to this fraction of its size."""
    file = checkpoint / "state.pt"
    content = file.read_bytes()
    file.write_bytes(content[: round(fraction * len(content))])


def rewrite(checkpoint: Path, **changes: Any) -> None:
    """Change values of manifest.json."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    (checkpoint / "manifest.json").write_text(json.dumps(manifest | changes))


def replace_by_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def remove_files(checkpoint: Path) -> None:
    for file in checkpoint.iterdir():
        file.unlink()


DAMAGES: list[Damage] = [
    *[partial(flip_bit, fraction=fraction) for fraction in (0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 1)],
    *[partial(truncate, fraction=fraction) for fraction in (0, 0.001, 0.3, 0.97, 0.9999)],
    lambda checkpoint: (checkpoint / "state.pt").write_bytes((checkpoint / "state.pt").read_bytes() + b"more"),
    lambda checkpoint: (checkpoint / "state.pt").write_bytes(bytes((checkpoint / "state.pt").stat().st_size)),
    lambda checkpoint: (checkpoint / "state.pt").unlink(),
    lambda checkpoint: replace_by_folder(checkpoint / "state.pt"),
    lambda checkpoint: (checkpoint / "manifest.json").unlink(),
    lambda checkpoint: (checkpoint / "manifest.json").write_bytes(b""),
    lambda checkpoint: (checkpoint / "manifest.json").write_bytes(bytes(range(256))),
    lambda checkpoint: (checkpoint / "manifest.json").write_text("[1, 2]"),
    lambda checkpoint: (checkpoint / "manifest.json").write_text("null"),
    lambda checkpoint: (checkpoint / "manifest.json").write_text((checkpoint / "manifest.json").read_text()[:-20]),
    lambda checkpoint: replace_by_folder(checkpoint / "manifest.json"),
    lambda checkpoint: rewrite(checkpoint, step=1),
    lambda checkpoint: rewrite(checkpoint, step="200"),
    lambda checkpoint: rewrite(checkpoint, files={}),
    lambda checkpoint: rewrite(checkpoint, files={"state.pt": {"size": 1, "sha256": "0"}}),
    lambda checkpoint: rewrite(checkpoint, files={"state.pt": None}),
    lambda checkpoint: rewrite(checkpoint, files={"../../model.pth": fingerprint(checkpoint.parents[1] / "model.pth")}),
    lambda checkpoint: rewrite(checkpoint, files=["state.pt"]),
    remove_files,
]


def test_every_damaged_checkpoint_is_skipped_and_reported_and_the_run_resumes_from_the_newest_intact_one(
    corpus_folder: Path, reference_run: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(reference_run, run_dir)
    newest, *others = sorted((run_dir / "checkpoints").iterdir())
    for other in others:
        shutil.rmtree(other)
    newest_step = int(newest.name.removeprefix("step-"))
    for step, damage in enumerate(DAMAGES, start=newest_step + 1):
        checkpoint = newest.with_name(f"step-{step:08d}")
        shutil.copytree(newest, checkpoint)
        rewrite(checkpoint, step=step)
        damage(checkpoint)
    result = run_in_process(train_command(corpus_folder, run_dir))
    assert result.returncode == 0, result.stderr
    assert f"step {newest_step} to 240" in result.stdout
    for step in range(newest_step + 1, newest_step + 1 + len(DAMAGES)):
        assert result.stderr.count(f"step-{step:08d} is skipped: ") == 1
    assert len(result.stderr.splitlines()) == len(DAMAGES)
    assert_same_run(run_dir, reference_run)


@pytest.fixture
def all_damaged(run_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny run whose checkpoints are all damaged."""
    copy = Path(shutil.copytree(run_dir, tmp_path / "run"))
    for checkpoint in (copy / "checkpoints").iterdir():
        flip_bit(checkpoint, 0.5)
    return copy


@pytest.mark.parametrize("missing", [[], ["DONE"], ["DONE", "model.pth"]], ids=["done", "not done", "no model"])
def test_a_run_whose_checkpoints_are_all_damaged_is_not_restarted_from_step_0(missing, corpus_folder, all_damaged):
    for name in missing:
        (all_damaged / name).unlink()
    checkpoints = sorted((all_damaged / "checkpoints").iterdir(), reverse=True)
    before = {path: path.read_bytes() for path in all_damaged.rglob("*") if path.is_file() and path.name != ".lock"}
    result = verb("train", *tiny_flags(corpus_folder, all_damaged, train__max_iters=40))
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert f"{all_damaged / 'checkpoints'}: every checkpoint is damaged" in line
    assert "Restore a copy of one, or delete them to train from step 0, or give another run_dir" in line
    assert all(f"{checkpoint.name}: state.pt does not match manifest.json" in line for checkpoint in checkpoints)
    assert {p: p.read_bytes() for p in all_damaged.rglob("*") if p.is_file() and p.name != ".lock"} == before


def test_fill_refuses_a_run_whose_checkpoints_are_all_damaged(all_damaged):
    for name in ("DONE", "model.pth"):
        (all_damaged / name).unlink()
    result = verb("fill", "--run", all_damaged, "The [MASK].")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "every checkpoint is damaged" in line


def test_damaged_checkpoints_of_later_steps_are_kept(corpus_folder, run_dir, tmp_path):
    copy = Path(shutil.copytree(run_dir, tmp_path / "run"))
    (copy / "DONE").unlink()
    newest, middle, oldest = sorted((copy / "checkpoints").iterdir(), reverse=True)
    for checkpoint in (newest, middle):
        flip_bit(checkpoint, 0.5)
    damaged = {checkpoint: (checkpoint / "state.pt").read_bytes() for checkpoint in (newest, middle)}
    limits = {"train__max_iters": 30, "checkpoint__interval": 3, "checkpoint__keep": 1}
    (copy / "STOP").touch()
    result = verb("train", *tiny_flags(corpus_folder, copy, **limits))
    assert result.returncode == 0, result.stderr
    assert f"step {step_of(oldest)} to 30" in result.stdout
    assert all((checkpoint / "state.pt").read_bytes() == content for checkpoint, content in damaged.items())


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.marker,)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "was here"


@pytest.fixture
def run_copy(run_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_dir, tmp_path / "run"))


def test_code_in_a_checkpoint_is_not_run(corpus_folder, run_copy, marker):
    for checkpoint in (run_copy / "checkpoints").iterdir():
        torch.save({"step": 30, "model": Malicious(marker)}, checkpoint / "state.pt")
        rewrite(checkpoint, files={"state.pt": fingerprint(checkpoint / "state.pt")})
    (run_copy / "DONE").unlink()
    for result in (
        verb("train", "--config", run_copy / "config.yaml", f"--run_dir={run_copy}"),
        verb("fill", "--run", run_copy, "The [MASK]."),
    ):
        assert result.returncode == 2
        (line,) = result.stderr.splitlines()
        assert "contains something other than tensors and plain values" in line
    assert not marker.exists()


@pytest.mark.parametrize("state", [{}, {"corpus": None}, [1], "text"], ids=["empty", "invalid", "list", "text"])
def test_a_checkpoint_of_another_program_is_refused(state, corpus_folder, run_copy):
    for checkpoint in (run_copy / "checkpoints").iterdir():
        torch.save(state, checkpoint / "state.pt")
        rewrite(checkpoint, files={"state.pt": fingerprint(checkpoint / "state.pt")})
    result = verb("train", *tiny_flags(corpus_folder, run_copy))
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert str(run_copy / "checkpoints/step-00000030") in line


def test_code_in_model_pth_is_not_run(run_copy, marker):
    torch.save(Malicious(marker), run_copy / "model.pth")
    result = verb("fill", "--run", run_copy, "The [MASK].")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "model.pth cannot be read as model parameters" in line
    assert not marker.exists()


def test_code_in_a_config_is_not_run(run_copy, marker):
    (run_copy / "config.yaml").write_text(f"seed: !!python/object/apply:os.mknod ['{marker}']\n")
    for result in (
        verb("train", "--config", run_copy / "config.yaml"),
        verb("fill", "--run", run_copy, "The [MASK]."),
    ):
        assert result.returncode == 2
        (line,) = result.stderr.splitlines()
        assert "config.yaml line 1: not YAML" in line
    assert not marker.exists()


def test_code_in_a_corpus_is_not_run_and_its_names_are_not_used_as_paths(corpus_folder, marker, tmp_path):
    corpus = Path(shutil.copytree(corpus_folder, tmp_path / "corpus"))
    manifest = json.loads((corpus / "corpus.json").read_text())
    manifest["tokenizer"] = str(marker)
    (corpus / "corpus.json").write_text(json.dumps(manifest))
    (corpus / "documents.names").write_text(f"{marker}\n")
    with (corpus / "val.bin").open("r+b") as file:
        torch.save(Malicious(marker), file)
    run_in_process(train_command(corpus, tmp_path / "run", train__max_iters=2))
    assert not marker.exists()


def test_links_in_a_run_directory_cause_no_changes_outside_it(corpus_folder, run_copy, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    for name in ("state.pt", "manifest.json"):
        (precious / name).write_text("mine")
    (run_copy / "checkpoints/step-00000001").symlink_to(precious)  # old enough to be deleted
    for name in ("model.pth", "metrics.jsonl"):
        (run_copy / name).unlink()
        (run_copy / name).symlink_to(precious / "state.pt")
    result = verb("train", *tiny_flags(corpus_folder, run_copy, train__max_iters=40))
    assert result.returncode == 0, result.stderr
    assert [file.read_text() for file in precious.iterdir()] == ["mine", "mine"]
