import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mlm_dist.errors import UserError
from mlm_dist.run import checkpoint
from mlm_dist.run.checkpoint import (
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


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    place = save(tmp_path, 7)
    state = load_checkpoint(place)
    assert state["step"] == 7
    assert torch.equal(state["weight"], torch.full((50,), 7.0))


def test_the_newest_are_kept_and_no_trace_of_writing_is_left(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10, 11):
        save(tmp_path, step, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000011", "step-00000010"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000011"]


def test_damaged_ones_of_later_steps_stay_until_training_is_past_them(tmp_path: Path) -> None:
    for place in [save(tmp_path, step) for step in (1000, 1500, 2000)]:
        lose_the_manifest(place)
    save(tmp_path, 400, keep=2)
    save(tmp_path, 500, keep=2)
    save(tmp_path, 600, keep=2)
    assert names(tmp_path) == [2000, 1500, 1000, 600, 500]
    save(tmp_path, 1200, keep=2)
    assert names(tmp_path) == [2000, 1500, 1200, 1000, 600]
    save(tmp_path, 1500, keep=2)
    assert names(tmp_path) == [2000, 1500, 1200]
    save(tmp_path, 2500, keep=1)
    assert names(tmp_path) == [2500]


def test_damaged_ones_of_later_steps_do_not_count_among_those_to_keep(tmp_path: Path) -> None:
    for place in [save(tmp_path, step) for step in (1000, 1500)]:
        flip_a_bit(place)
    for step in (400, 500, 600):
        save(tmp_path, step, keep=2)
    assert names(tmp_path) == [1500, 1000, 600, 500]


def names(folder: Path) -> list[int]:
    """The steps of the checkpoints in a folder, the newest first."""
    return [step_of(place) for place in list_checkpoints(folder)]


VAL_LOSSES = {1: 3.0, 2: 1.0, 3: 2.0, 4: 4.0, 5: 5.0}


def test_the_best_is_kept_besides_the_newest(tmp_path: Path) -> None:
    for step in range(1, 6):
        save_checkpoint(tmp_path, step, {"step": step}, keep=1, val_losses=VAL_LOSSES)
    assert names(tmp_path) == [5, 2]


def test_a_damaged_one_is_not_the_best(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, {"step": step}, keep=3, val_losses=VAL_LOSSES)
    truncate(tmp_path / "step-00000002")
    for step in (4, 5):
        save_checkpoint(tmp_path, step, {"step": step}, keep=1, val_losses=VAL_LOSSES)
    assert names(tmp_path) == [5, 3]


def test_damaged_ones_are_not_counted_among_those_to_keep(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    truncate(tmp_path / "step-00000003")
    save(tmp_path, 4, keep=2)
    assert [step for step in names(tmp_path) if step != 3] == [4, 2]


def test_a_save_reads_no_checkpoint_but_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    hashed: list[Path] = []
    digest = checkpoint.fingerprint
    monkeypatch.setattr(checkpoint, "fingerprint", lambda file: hashed.append(file) or digest(file))
    save(tmp_path, 4, keep=4)
    assert [file.parent.name for file in hashed] == [".step-00000004.partial"]


def test_checkpoints_are_in_the_order_of_their_steps_however_many_digits_those_have(tmp_path: Path) -> None:
    for step in (99_999_998, 99_999_999, 100_000_000, 100_000_001):
        save(tmp_path, step, keep=2)
    assert names(tmp_path) == [100_000_001, 100_000_000]


def test_the_record_of_a_run_is_read_as_it_was_saved(tmp_path: Path) -> None:
    record = {"fixed": {"seed": 1, "masking.mask_prob": [0.0, 1.0]}, "adjustable": {"optim.lr": 1e-3}}
    save_checkpoint(tmp_path, 1, {"step": 1}, keep=1, record=record)
    assert read_record(tmp_path / "step-00000001") == record
    assert read_record(save(tmp_path, 2)) is None


def test_a_checkpoint_whose_record_is_damaged_is_damaged(tmp_path: Path) -> None:
    place = save(tmp_path, 1)
    manifest = json.loads((place / "manifest.json").read_text())
    for record in ([], {"fixed": {}}, {"fixed": 1, "adjustable": {}}, "text"):
        (place / "manifest.json").write_text(json.dumps(manifest | {"record": record}))
        assert find_damage(place) == "the record in manifest.json cannot be read"


def test_what_a_killed_process_has_half_written_is_removed(tmp_path: Path) -> None:
    half = tmp_path / ".step-00000001.partial"
    half.mkdir()
    (half / "state.pt").write_bytes(b"half")
    save(tmp_path, 2)
    assert not half.exists()


def test_what_only_looks_like_a_checkpoint_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "step-00005000-old").mkdir()
    (tmp_path / "step-notes").touch()
    newest = save(tmp_path, 500, keep=1)
    assert find_newest(tmp_path) == newest
    assert len(list(tmp_path.iterdir())) == 3


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    place = save(tmp_path, 5)
    (place / "state.pt").write_bytes(b"damage")
    save(tmp_path, 5)
    assert find_damage(place) is None


def test_without_checkpoints_there_is_no_newest(tmp_path: Path) -> None:
    assert find_newest(tmp_path) is None
    assert find_newest(tmp_path / "not there") is None


def truncate(place: Path) -> None:
    file = place / "state.pt"
    file.write_bytes(file.read_bytes()[:-1])


def flip_a_bit(place: Path) -> None:
    file = place / "state.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def lose_the_state(place: Path) -> None:
    (place / "state.pt").unlink()


def lose_the_manifest(place: Path) -> None:
    (place / "manifest.json").unlink()


def garble_the_manifest(place: Path) -> None:
    (place / "manifest.json").write_text("{")


def empty_the_manifest(place: Path) -> None:
    (place / "manifest.json").write_text("[]")


def nest_the_manifest(place: Path) -> None:
    (place / "manifest.json").write_text("[" * 100_000)


def put_a_fifo_for_the_state(place: Path) -> None:
    (place / "state.pt").unlink()
    os.mkfifo(place / "state.pt")


def put_a_fifo_for_the_manifest(place: Path) -> None:
    (place / "manifest.json").unlink()
    os.mkfifo(place / "manifest.json")


def take_the_manifest_of_another_step(place: Path) -> None:
    manifest = json.loads((place / "manifest.json").read_text())
    (place / "manifest.json").write_text(json.dumps(manifest | {"step": 1}))


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        flip_a_bit,
        lose_the_state,
        lose_the_manifest,
        garble_the_manifest,
        empty_the_manifest,
        take_the_manifest_of_another_step,
        nest_the_manifest,
        put_a_fifo_for_the_state,
        put_a_fifo_for_the_manifest,
    ],
)
def test_a_damaged_checkpoint_is_passed_over_with_a_line_that_names_it(
    damage: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older, newer = save(tmp_path, 1), save(tmp_path, 2)
    damage(newer)
    assert find_newest(tmp_path) == older
    assert f"{newer} is skipped" in capsys.readouterr().err


def test_if_all_checkpoints_are_damaged_the_error_names_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [save(tmp_path, step) for step in (1, 2, 3)]
    for place, damage in zip(places, (truncate, lose_the_manifest, flip_a_bit), strict=True):
        damage(place)
    with pytest.raises(UserError, match=r"step-00000003: state\.pt does not .* step-00000002: .* step-00000001: "):
        find_newest(tmp_path)
    assert not capsys.readouterr().err


def test_a_write_that_fails_leaves_the_older_checkpoints(tmp_path: Path) -> None:
    older = save(tmp_path, 1)
    with pytest.raises(Exception, match="pickle"):
        save_checkpoint(tmp_path, 2, {"step": 2, "unwritable": lambda: None}, keep=1)
    assert list(tmp_path.iterdir()) == [older]
    assert find_newest(tmp_path) == older


def test_no_code_in_a_checkpoint_is_run(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "was here",)

    place = save(tmp_path, 1)
    torch.save({"step": Hostile()}, place / "state.pt")
    with pytest.raises(UserError, match="other than tensors"):
        load_checkpoint(place)
    assert not (tmp_path / "was here").exists()


def saved(value: object, old: bool = False) -> bytes:
    content = io.BytesIO()
    torch.save(value, content, _use_new_zipfile_serialization=not old)
    return content.getvalue()


def compressed(content: bytes) -> bytes:
    """What torch wrote, compressed; torch would read it, whatever size it is then."""
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
    ids=["empty", "junk", "pickle", "list", "numbers", "old form", "compressed"],
)
def test_what_torch_save_did_not_write_of_a_mapping_is_not_read(tmp_path: Path, content: bytes) -> None:
    place = save(tmp_path, 1)
    (place / "state.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"state.pt contains something other than tensors and plain values"):
        load_checkpoint(place)
