import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mlm_dist.errors import UserError
from mlm_dist.run import checkpoint
from mlm_dist.run.checkpoint import (
    find_best,
    find_damage,
    find_newest,
    list_checkpoints,
    load_checkpoint,
    read_record,
    save_checkpoint,
    step_of,
)


def save(folder: Path, step: int, keep: int = 3) -> Path:
    folder.mkdir(exist_ok=True)
    save_checkpoint(folder, step, {"step": step, "weight": torch.full((50,), float(step))}, keep)
    return folder / f"step-{step:08d}"


@pytest.mark.parametrize("mapped", [False, True])
def test_a_saved_state_is_loaded(mapped: bool, tmp_path: Path) -> None:
    path = save(tmp_path, 7)
    state = load_checkpoint(path, mapped)
    assert state["step"] == 7
    assert torch.equal(state["weight"], torch.full((50,), 7.0))


def test_mapped_tensors_stay_in_the_file(tmp_path: Path) -> None:
    path = save(tmp_path, 7)
    weight = load_checkpoint(path, mapped=True)["weight"]
    assert str(path / "state.pt") in Path("/proc/self/maps").read_text(encoding="utf-8")
    weight.add_(1)
    assert find_damage(path) is None


def test_only_the_newest_checkpoints_are_kept_without_temporary_files(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10, 11):
        save(tmp_path, step, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000011", "step-00000010"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000011"]


def test_damaged_checkpoints_of_later_steps_are_kept_until_training_reaches_their_step(tmp_path: Path) -> None:
    for path in [save(tmp_path, step) for step in (1000, 1500, 2000)]:
        remove_the_manifest(path)
    save(tmp_path, 400, keep=2)
    save(tmp_path, 500, keep=2)
    save(tmp_path, 600, keep=2)
    assert saved_steps(tmp_path) == [2000, 1500, 1000, 600, 500]
    save(tmp_path, 1200, keep=2)
    assert saved_steps(tmp_path) == [2000, 1500, 1200, 1000, 600]
    save(tmp_path, 1500, keep=2)
    assert saved_steps(tmp_path) == [2000, 1500, 1200]
    save(tmp_path, 2500, keep=1)
    assert saved_steps(tmp_path) == [2500]


def test_damaged_checkpoints_of_later_steps_do_not_count_toward_keep(tmp_path: Path) -> None:
    for path in [save(tmp_path, step) for step in (1000, 1500)]:
        flip_a_bit(path)
    for step in (400, 500, 600):
        save(tmp_path, step, keep=2)
    assert saved_steps(tmp_path) == [1500, 1000, 600, 500]


def saved_steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in a folder, newest first."""
    return [step_of(path) for path in list_checkpoints(folder)]


VAL_LOSSES = {1: 3.0, 2: 1.0, 3: 2.0, 4: 4.0, 5: 5.0}


def test_the_best_checkpoint_is_kept_in_addition_to_the_newest(tmp_path: Path) -> None:
    for step in range(1, 6):
        save_checkpoint(tmp_path, step, {"step": step}, keep=1, val_losses=VAL_LOSSES)
    assert saved_steps(tmp_path) == [5, 2]


def test_of_equal_losses_the_earliest_is_the_best(tmp_path: Path) -> None:
    paths = [tmp_path / f"step-{step:08d}" for step in (40, 30, 20, 10)]
    losses = {5: 1.0, 10: 3.0, 20: 2.0, 30: 2.0}
    assert find_best(paths, losses) == paths[2]
    assert find_best(paths[:1], losses) is None


def test_a_damaged_checkpoint_is_not_the_best(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, {"step": step}, keep=3, val_losses=VAL_LOSSES)
    truncate(tmp_path / "step-00000002")
    for step in (4, 5):
        save_checkpoint(tmp_path, step, {"step": step}, keep=1, val_losses=VAL_LOSSES)
    assert saved_steps(tmp_path) == [5, 3]


def test_damaged_checkpoints_do_not_count_toward_keep(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    truncate(tmp_path / "step-00000003")
    save(tmp_path, 4, keep=2)
    assert [step for step in saved_steps(tmp_path) if step != 3] == [4, 2]


def test_a_save_hashes_only_its_own_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    hashed: list[Path] = []
    digest = checkpoint.fingerprint

    def record_and_digest(file: Path) -> dict[str, Any]:
        hashed.append(file)
        return digest(file)

    monkeypatch.setattr(checkpoint, "fingerprint", record_and_digest)
    save(tmp_path, 4, keep=4)
    assert [file.parent.name for file in hashed] == [".step-00000004.partial"]


def test_checkpoints_are_sorted_by_step_as_a_number(tmp_path: Path) -> None:
    for step in (99_999_998, 99_999_999, 100_000_000, 100_000_001):
        save(tmp_path, step, keep=2)
    assert saved_steps(tmp_path) == [100_000_001, 100_000_000]


def test_a_saved_record_is_read(tmp_path: Path) -> None:
    record = {"fixed": {"seed": 1, "masking.mask_prob": [0.0, 1.0]}, "adjustable": {"optim.lr": 1e-3}}
    save_checkpoint(tmp_path, 1, {"step": 1}, keep=1, record=record)
    assert read_record(tmp_path / "step-00000001") == record
    assert read_record(save(tmp_path, 2)) is None


def test_a_checkpoint_with_a_damaged_record_is_damaged(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    records: list[object] = [[], {"fixed": {}}, {"fixed": 1, "adjustable": {}}, "text"]
    for record in records:
        (path / "manifest.json").write_text(json.dumps(manifest | {"record": record}))
        assert find_damage(path) == "the record in manifest.json cannot be read"


def test_a_partial_checkpoint_of_a_killed_process_is_removed(tmp_path: Path) -> None:
    half = tmp_path / ".step-00000001.partial"
    half.mkdir()
    (half / "state.pt").write_bytes(b"half")
    save(tmp_path, 2)
    assert not half.exists()


def test_paths_with_names_like_a_checkpoint_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "step-00005000-old").mkdir()
    (tmp_path / "step-notes").touch()
    newest = save(tmp_path, 500, keep=1)
    assert find_newest(tmp_path) == newest
    assert len(list(tmp_path.iterdir())) == 3


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    path = save(tmp_path, 5)
    (path / "state.pt").write_bytes(b"damage")
    save(tmp_path, 5)
    assert find_damage(path) is None


def test_find_newest_returns_none_without_checkpoints(tmp_path: Path) -> None:
    assert find_newest(tmp_path) is None
    assert find_newest(tmp_path / "not there") is None


def truncate(path: Path) -> None:
    file = path / "state.pt"
    file.write_bytes(file.read_bytes()[:-1])


def flip_a_bit(path: Path) -> None:
    file = path / "state.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def remove_the_state(path: Path) -> None:
    (path / "state.pt").unlink()


def remove_the_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def truncate_the_manifest(path: Path) -> None:
    (path / "manifest.json").write_text("{")


def replace_the_manifest_by_a_list(path: Path) -> None:
    (path / "manifest.json").write_text("[]")


def nest_the_manifest_deeply(path: Path) -> None:
    (path / "manifest.json").write_text("[" * 100_000)


def replace_the_state_by_a_fifo(path: Path) -> None:
    (path / "state.pt").unlink()
    os.mkfifo(path / "state.pt")


def replace_the_manifest_by_a_fifo(path: Path) -> None:
    (path / "manifest.json").unlink()
    os.mkfifo(path / "manifest.json")


def change_the_step_in_the_manifest(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"step": 1}))


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        flip_a_bit,
        remove_the_state,
        remove_the_manifest,
        truncate_the_manifest,
        replace_the_manifest_by_a_list,
        change_the_step_in_the_manifest,
        nest_the_manifest_deeply,
        replace_the_state_by_a_fifo,
        replace_the_manifest_by_a_fifo,
    ],
)
def test_a_damaged_checkpoint_is_skipped_and_named(
    damage: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older, newer = save(tmp_path, 1), save(tmp_path, 2)
    damage(newer)
    assert find_newest(tmp_path) == older
    assert f"{newer} is skipped" in capsys.readouterr().err


def test_the_error_names_every_checkpoint_if_all_are_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [save(tmp_path, step) for step in (1, 2, 3)]
    for path, damage in zip(paths, (truncate, remove_the_manifest, flip_a_bit), strict=True):
        damage(path)
    with pytest.raises(UserError, match=r"step-00000003: state\.pt does not .* step-00000002: .* step-00000001: "):
        find_newest(tmp_path)
    assert not capsys.readouterr().err


def test_a_failed_write_keeps_the_older_checkpoints(tmp_path: Path) -> None:
    older = save(tmp_path, 1)
    with pytest.raises(Exception, match="pickle"):
        save_checkpoint(tmp_path, 2, {"step": 2, "unwritable": lambda: None}, keep=1)
    assert list(tmp_path.iterdir()) == [older]
    assert find_newest(tmp_path) == older


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "was here",)

    path = save(tmp_path, 1)
    torch.save({"step": Malicious()}, path / "state.pt")
    with pytest.raises(UserError, match="other than tensors"):
        load_checkpoint(path)
    assert not (tmp_path / "was here").exists()


def saved(value: object, old: bool = False) -> bytes:
    content = io.BytesIO()
    torch.save(value, content, _use_new_zipfile_serialization=not old)
    return content.getvalue()


def compressed(content: bytes) -> bytes:
    """A torch.save file, compressed. torch would read it and decompress it to any size."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as parts, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as out:
        for name in parts.namelist():
            out.writestr(name, parts.read(name))
    return packed.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"junk",
        pickle.dumps({"step": 1}),
        saved([1]),
        saved({1: 2}),
        saved({"step": 1}, old=True),
        compressed(saved({"weight": torch.zeros(1 << 20)})),
    ],
    ids=["empty", "junk", "pickle", "list", "integer key", "old format", "compressed"],
)
@pytest.mark.parametrize("mapped", [False, True])
def test_a_file_that_is_not_a_saved_mapping_is_refused(tmp_path: Path, content: bytes, mapped: bool) -> None:
    path = save(tmp_path, 1)
    (path / "state.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"state.pt contains something other than tensors and plain values"):
        load_checkpoint(path, mapped)
