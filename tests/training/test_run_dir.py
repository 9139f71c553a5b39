from pathlib import Path

import pytest

from mlm_dist.config import Config
from mlm_dist.data.corpus import Corpus
from mlm_dist.errors import UserError
from mlm_dist.training.record import fixed_values
from mlm_dist.training.run_dir import RunDir, check_same_run


def test_a_run_that_goes_on_is_neither_done_nor_stopped_any_more(tmp_path: Path, corpus: Corpus) -> None:
    run_dir = RunDir(tmp_path / "run")
    run_dir.take()
    run_dir.done.touch()
    run_dir.stopped.write_text("SIGTERM\n")
    run_dir.begin(Config(), corpus.tokenizer)
    assert not run_dir.done.exists()
    assert not run_dir.stopped.exists()


def test_a_run_whose_checkpoints_are_gone_is_not_overwritten(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "run")
    run_dir.take()
    run_dir.check(Config())
    run_dir.model.touch()
    with pytest.raises(UserError, match="run holds the weights of a run, and no checkpoint"):
        run_dir.check(Config())


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("", "seed", 7),
        ("train", "batch_size", 8),
        ("train", "eval_rows", 8),
        ("optim", "name", "muon"),
        ("masking", "mask_prob", 0.3),
    ],
)
def test_what_decides_weights_and_data_stays_as_it_was(section: str, key: str, value: object) -> None:
    changed = Config()
    setattr(getattr(changed, section) if section else changed, key, value)
    with pytest.raises(UserError, match=rf"{key} .* and not {value!r}: give that, or another run_dir"):
        check_same_run(fixed_values(Config()), fixed_values(changed), Path("run"))


def test_what_decides_neither_may_change() -> None:
    changed = Config(precision="fp32")
    changed.optim.lr, changed.train.max_iters = 1e-4, 7
    check_same_run(fixed_values(Config()), fixed_values(changed), Path("run"))
