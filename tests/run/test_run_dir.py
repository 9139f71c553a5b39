import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from mlm_dist.config import Config, DataConfig, ModelConfig, TrainConfig
from mlm_dist.config_reading import read_config
from mlm_dist.data.corpus import Corpus
from mlm_dist.errors import UserError
from mlm_dist.run.record import fixed_values
from mlm_dist.run.run_dir import RunDir, check_same_run, most_checkpoints


def test_a_resumed_run_is_neither_done_nor_stopped(tmp_path: Path, corpus: Corpus) -> None:
    run_dir = RunDir(tmp_path / "run")
    run_dir.acquire()
    run_dir.done.touch()
    run_dir.stopped.write_text("SIGTERM\n")
    run_dir.begin(Config(), corpus.tokenizer)
    assert not run_dir.done.exists()
    assert not run_dir.stopped.exists()


def test_a_run_without_checkpoints_is_not_overwritten(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "run")
    run_dir.acquire()
    run_dir.check(Config())
    run_dir.model.touch()
    with pytest.raises(UserError, match="run has the final parameters of a run, but no checkpoint"):
        run_dir.check(Config())


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("", "seed", 7),
        ("train", "batch_size", 8),
        ("train", "eval_rows", 8),
        ("optim", "name", "muon"),
        ("optim", "ema", 0.99),
        ("masking", "mask_prob", 0.3),
    ],
)
def test_keys_that_determine_parameters_and_data_cannot_change(section: str, key: str, value: object) -> None:
    changed = Config()
    setattr(getattr(changed, section) if section else changed, key, value)
    with pytest.raises(UserError, match=rf"{key} .*, not {value!r}: use the same values, or another run_dir"):
        check_same_run(fixed_values(Config()), fixed_values(changed), Path("run"))


def test_done_has_the_step_of_the_final_parameters_except_in_earlier_versions(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    assert run_dir.final_step() is None
    run_dir.mark_done(1200)
    assert run_dir.done.read_text(encoding="utf-8") == "1200\n"
    assert run_dir.final_step() == 1200
    for content in (b"", b"last", b"9" * 5000, b"\xff"):
        run_dir.done.write_bytes(content)
        assert run_dir.final_step() is None


@pytest.mark.parametrize(
    ("max_iters", "patience", "count"), [(5000, None, 5), (600, None, 3), (400, None, 2), (400, 1, 5)]
)
def test_the_most_checkpoints_are_the_newest_the_best_and_the_next(
    max_iters: int, patience: int | None, count: int
) -> None:
    config = Config(train=TrainConfig(max_iters=max_iters, patience=patience))
    assert most_checkpoints(config) == count


def test_other_keys_can_change() -> None:
    changed = Config(precision="fp32")
    changed.optim.lr, changed.train.max_iters = 1e-4, 7
    check_same_run(fixed_values(Config()), fixed_values(changed), Path("run"))


def test_a_vocabulary_size_of_null_fits_every_run_and_another_size_does_not() -> None:
    before = Config(model=ModelConfig(vocab_size=310))
    check_same_run(fixed_values(before), fixed_values(Config()), Path("run"))
    with pytest.raises(UserError, match=r"model\.vocab_size 310, not 300: use the same values, or another run_dir"):
        check_same_run(fixed_values(before), fixed_values(Config(model=ModelConfig(vocab_size=300))), Path("run"))


def test_a_vocabulary_size_of_null_is_replaced_by_that_of_the_run(run_dir: Path, tmp_path: Path) -> None:
    assert RunDir(run_dir).fill_vocab_size(Config()).model.vocab_size == 300
    assert RunDir(run_dir).fill_vocab_size(Config(model=ModelConfig(vocab_size=310))).model.vocab_size == 310
    assert RunDir(tmp_path / "new").fill_vocab_size(Config()).model.vocab_size is None


def test_a_run_from_before_a_fixed_key_was_added_has_its_default(run_dir: Path, tmp_path: Path) -> None:
    earlier = Path(shutil.copytree(run_dir, tmp_path / "earlier"))
    for manifest in earlier.glob("checkpoints/*/manifest.json"):
        content = json.loads(manifest.read_text(encoding="utf-8"))
        for key in ("data.shift_rows", "data.documents", "optim.ema"):
            del content["record"]["fixed"][key]
        manifest.write_text(json.dumps(content), encoding="utf-8")
    config = read_config(run_dir / "config.yaml")
    for data in (DataConfig(shift_rows=True), DataConfig(documents="isolated")):
        with pytest.raises(UserError, match=r"was trained with data\.(shift_rows False|documents 'joined'), not"):
            RunDir(earlier).check(dataclasses.replace(config, data=data))
    with pytest.raises(UserError, match=r"was trained with optim\.ema None, not 0\.9"):
        RunDir(earlier).check(dataclasses.replace(config, optim=dataclasses.replace(config.optim, ema=0.9)))
    RunDir(earlier).check(dataclasses.replace(config, data=DataConfig()))
