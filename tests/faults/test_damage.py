"""Damaged checkpoints are passed over and said; hostile files run no code and reach nothing outside their run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mlm_dist.run.checkpoint import fingerprint, step_of
from tests.conftest import start, tiny_flags, verb
from tests.faults.conftest import assert_same_run, train_command

pytestmark = pytest.mark.slow

Damage = Callable[[Path], Any]


def change_byte(place: Path, part: float) -> None:
    """Flip a bit of state.pt, `part` of the way from its first to its last byte."""
    file = place / "state.pt"
    content = bytearray(file.read_bytes())
    content[round(part * (len(content) - 1))] ^= 0x10
    file.write_bytes(content)


def cut(place: Path, part: float) -> None:
    """Leave `part` of state.pt."""
    file = place / "state.pt"
    content = file.read_bytes()
    file.write_bytes(content[: round(part * len(content))])


def rewrite(place: Path, **changes: Any) -> None:
    """Change what the manifest says."""
    manifest = json.loads((place / "manifest.json").read_text())
    (place / "manifest.json").write_text(json.dumps(manifest | changes))


def replace_by_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGES: list[Damage] = [
    *[lambda place, part=part: change_byte(place, part) for part in (0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 1)],
    *[lambda place, part=part: cut(place, part) for part in (0, 0.001, 0.3, 0.97, 0.9999)],
    lambda place: (place / "state.pt").write_bytes((place / "state.pt").read_bytes() + b"more"),
    lambda place: (place / "state.pt").write_bytes(bytes((place / "state.pt").stat().st_size)),
    lambda place: (place / "state.pt").unlink(),
    lambda place: replace_by_folder(place / "state.pt"),
    lambda place: (place / "manifest.json").unlink(),
    lambda place: (place / "manifest.json").write_bytes(b""),
    lambda place: (place / "manifest.json").write_bytes(bytes(range(256))),
    lambda place: (place / "manifest.json").write_text("[1, 2]"),
    lambda place: (place / "manifest.json").write_text("null"),
    lambda place: (place / "manifest.json").write_text((place / "manifest.json").read_text()[:-20]),
    lambda place: replace_by_folder(place / "manifest.json"),
    lambda place: rewrite(place, step=1),
    lambda place: rewrite(place, step="200"),
    lambda place: rewrite(place, files={}),
    lambda place: rewrite(place, files={"state.pt": {"size": 1, "sha256": "0"}}),
    lambda place: rewrite(place, files={"state.pt": None}),
    lambda place: rewrite(place, files={"../../model.pth": fingerprint(place.parents[1] / "model.pth")}),
    lambda place: rewrite(place, files=["state.pt"]),
    lambda place: [file.unlink() for file in place.iterdir()],
]


def test_every_damage_is_passed_over_and_said_and_the_run_goes_on_from_the_newest_whole_one(
    corpus_folder: Path, unbroken: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(unbroken, run_dir)
    newest, *others = sorted((run_dir / "checkpoints").iterdir())
    for other in others:
        shutil.rmtree(other)
    number = int(newest.name.removeprefix("step-"))
    for step, damage in enumerate(DAMAGES, start=number + 1):
        place = newest.with_name(f"step-{step:08d}")
        shutil.copytree(newest, place)
        rewrite(place, step=step)
        damage(place)
    result = start(train_command(corpus_folder, run_dir))
    assert result.returncode == 0, result.stderr
    assert f"step {number} to 240" in result.stdout
    for step in range(number + 1, number + 1 + len(DAMAGES)):
        assert result.stderr.count(f"step-{step:08d} is skipped: ") == 1
    assert len(result.stderr.splitlines()) == len(DAMAGES)
    assert_same_run(run_dir, unbroken)


@pytest.fixture
def all_damaged(run_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny run whose checkpoints are all damaged."""
    copy = Path(shutil.copytree(run_dir, tmp_path / "run"))
    for place in (copy / "checkpoints").iterdir():
        change_byte(place, 0.5)
    return copy


@pytest.mark.parametrize("lost", [[], ["DONE"], ["DONE", "model.pth"]], ids=["done", "longer", "killed"])
def test_a_run_whose_checkpoints_are_all_damaged_is_not_trained_again_from_the_start(lost, corpus_folder, all_damaged):
    for name in lost:
        (all_damaged / name).unlink()
    places = sorted((all_damaged / "checkpoints").iterdir(), reverse=True)
    before = {path: path.read_bytes() for path in all_damaged.rglob("*") if path.is_file() and path.name != ".lock"}
    result = verb("train", *tiny_flags(corpus_folder, all_damaged, train__max_iters=40))
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert f"{all_damaged / 'checkpoints'}: every checkpoint is damaged" in line
    assert "Restore a copy of one, or delete them to train from step 0, or give another run_dir" in line
    assert all(f"{place.name}: state.pt does not match manifest.json" in line for place in places)
    assert {p: p.read_bytes() for p in all_damaged.rglob("*") if p.is_file() and p.name != ".lock"} == before


def test_nothing_is_asked_of_a_run_whose_checkpoints_are_all_damaged(all_damaged):
    for name in ("DONE", "model.pth"):
        (all_damaged / name).unlink()
    result = verb("fill", "--run", all_damaged, "The [MASK].")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "every checkpoint is damaged" in line


def test_damaged_checkpoints_stay_while_a_run_has_not_passed_their_steps(corpus_folder, run_dir, tmp_path):
    copy = Path(shutil.copytree(run_dir, tmp_path / "run"))
    (copy / "DONE").unlink()
    newest, middle, oldest = sorted((copy / "checkpoints").iterdir(), reverse=True)
    damaged = {place: (change_byte(place, 0.5), (place / "state.pt").read_bytes())[1] for place in (newest, middle)}
    limits = {"train__max_iters": 30, "checkpoint__interval": 3, "checkpoint__keep": 1}
    (copy / "STOP").touch()
    result = verb("train", *tiny_flags(corpus_folder, copy, **limits))
    assert result.returncode == 0, result.stderr
    assert f"step {step_of(oldest)} to 30" in result.stdout
    assert all((place / "state.pt").read_bytes() == content for place, content in damaged.items())


class Hostile:
    """An object whose unpickling makes a file."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.victim,)


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    return tmp_path / "was here"


@pytest.fixture
def hostile_run(run_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_dir, tmp_path / "run"))


def test_no_code_in_a_checkpoint_is_run(corpus_folder, hostile_run, victim):
    for place in (hostile_run / "checkpoints").iterdir():
        torch.save({"step": 30, "model": Hostile(victim)}, place / "state.pt")
        rewrite(place, files={"state.pt": fingerprint(place / "state.pt")})
    (hostile_run / "DONE").unlink()
    for result in (
        verb("train", "--config", hostile_run / "config.yaml", f"--run_dir={hostile_run}"),
        verb("fill", "--run", hostile_run, "The [MASK]."),
    ):
        assert result.returncode == 2
        (line,) = result.stderr.splitlines()
        assert "contains something other than tensors and plain values" in line
    assert not victim.exists()


@pytest.mark.parametrize("state", [{}, {"corpus": None}, [1], "text"], ids=["empty", "no sense", "list", "text"])
def test_a_checkpoint_of_another_program_is_refused(state, corpus_folder, hostile_run):
    for place in (hostile_run / "checkpoints").iterdir():
        torch.save(state, place / "state.pt")
        rewrite(place, files={"state.pt": fingerprint(place / "state.pt")})
    result = verb("train", *tiny_flags(corpus_folder, hostile_run))
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert str(hostile_run / "checkpoints/step-00000030") in line


def test_no_code_in_final_weights_is_run(hostile_run, victim):
    torch.save(Hostile(victim), hostile_run / "model.pth")
    result = verb("fill", "--run", hostile_run, "The [MASK].")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "model.pth cannot be read as model parameters" in line
    assert not victim.exists()


def test_no_code_in_a_config_is_run(hostile_run, victim):
    (hostile_run / "config.yaml").write_text(f"seed: !!python/object/apply:os.mknod ['{victim}']\n")
    for result in (
        verb("train", "--config", hostile_run / "config.yaml"),
        verb("fill", "--run", hostile_run, "The [MASK]."),
    ):
        assert result.returncode == 2
        (line,) = result.stderr.splitlines()
        assert "config.yaml line 1: not YAML" in line
    assert not victim.exists()


def test_no_code_in_a_corpus_is_run_and_its_names_are_no_paths(corpus_folder, victim, tmp_path):
    corpus = Path(shutil.copytree(corpus_folder, tmp_path / "corpus"))
    manifest = json.loads((corpus / "corpus.json").read_text())
    manifest["tokenizer"] = str(victim)
    for document in manifest["documents"]:
        document["name"] = str(victim)
    (corpus / "corpus.json").write_text(json.dumps(manifest))
    with (corpus / "val.bin").open("r+b") as file:
        torch.save(Hostile(victim), file)
    start(train_command(corpus, tmp_path / "run", train__max_iters=2))
    assert not victim.exists()


def test_nothing_outside_the_run_directory_is_written_or_deleted_through_links_in_it(
    corpus_folder, hostile_run, tmp_path
):
    precious = tmp_path / "precious"
    precious.mkdir()
    for name in ("state.pt", "manifest.json"):
        (precious / name).write_text("mine")
    (hostile_run / "checkpoints/step-00000001").symlink_to(precious)  # retention comes to it
    for name in ("model.pth", "metrics.jsonl"):
        (hostile_run / name).unlink()
        (hostile_run / name).symlink_to(precious / "state.pt")
    result = verb("train", *tiny_flags(corpus_folder, hostile_run, train__max_iters=40))
    assert result.returncode == 0, result.stderr
    assert [file.read_text() for file in precious.iterdir()] == ["mine", "mine"]
