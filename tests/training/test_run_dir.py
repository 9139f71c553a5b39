from pathlib import Path

import pytest

from mlm_dist.config import Config
from mlm_dist.data.corpus import Corpus
from mlm_dist.errors import UserError
from mlm_dist.training.run_dir import RunDir, check_same_run, replacing


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with replacing(path) as file:
        file.write(b"after")
        assert path.read_text() == "before"
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(ZeroDivisionError), replacing(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_was_replaced_can_be_read_by_whom_other_files_can(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    with replacing(tmp_path / "file") as file:
        file.write(b"after")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_run_that_goes_on_is_neither_done_nor_stopped_any_more(tmp_path: Path, corpus: Corpus) -> None:
    run_dir = RunDir(tmp_path / "run")
    run_dir.take()
    run_dir.done.touch()
    run_dir.stopped.write_text("SIGTERM\n")
    run_dir.begin(Config(), corpus.tokenizer)
    assert not run_dir.done.exists()
    assert not run_dir.stopped.exists()


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("", "seed", 7), ("train", "batch_size", 8), ("optim", "name", "muon"), ("masking", "mask_prob", 0.3)],
)
def test_what_decides_weights_and_data_stays_as_it_was(section: str, key: str, value: object) -> None:
    changed = Config()
    setattr(getattr(changed, section) if section else changed, key, value)
    with pytest.raises(UserError, match=rf"{key} .* and not {value!r}: give that, or another run_dir"):
        check_same_run(Config(), changed, Path("run"))


def test_what_decides_neither_may_change() -> None:
    changed = Config(precision="fp32")
    changed.optim.lr, changed.train.max_iters = 1e-4, 7
    check_same_run(Config(), changed, Path("run"))
