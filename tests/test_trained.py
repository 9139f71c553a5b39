import shutil
from pathlib import Path

import pytest

from mlm_dist.errors import UserError
from mlm_dist.trained import TrainedModel
from tests.conftest import verb


@pytest.fixture(scope="module")
def model(run_dir: Path) -> TrainedModel:
    return TrainedModel(run_dir, device="cpu")


def test_each_mask_gets_its_likeliest_tokens_in_order(model: TrainedModel) -> None:
    filled = model.fill("The lamp [MASK] in the [MASK].", top=4)
    assert [len(candidates) for candidates in filled] == [4, 4]
    for candidates in filled:
        probabilities = [candidate.probability for candidate in candidates]
        assert probabilities == sorted(probabilities, reverse=True)
        assert 0 < sum(probabilities) <= 1


def test_all_candidates_together_have_probability_1_and_no_special_token(model: TrainedModel) -> None:
    (candidates,) = model.fill("The [MASK]", top=10_000)
    assert len(candidates) == 298
    assert sum(candidate.probability for candidate in candidates) == pytest.approx(1)
    assert not {"[MASK]", "<|endoftext|>"} & {candidate.text for candidate in candidates}


def test_the_space_before_a_mask_is_part_of_the_hidden_token(model: TrainedModel) -> None:
    assert model.fill("The [MASK]") == model.fill("The[MASK]")


def test_an_unfinished_run_is_read_from_its_newest_checkpoint(
    run_dir: Path, tmp_path: Path, model: TrainedModel
) -> None:
    unfinished = tmp_path / "run"
    shutil.copytree(run_dir, unfinished)
    (unfinished / "DONE").unlink()
    (unfinished / "model.pth").write_bytes(b"of an earlier, shorter run")
    assert TrainedModel(unfinished, device="cpu").fill("The [MASK]") == model.fill("The [MASK]")


def test_damaged_weights_are_said(run_dir: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "run"
    shutil.copytree(run_dir, damaged)
    (damaged / "model.pth").write_bytes(b"PK no weights")
    with pytest.raises(UserError, match=r"model.pth cannot be read"):
        TrainedModel(damaged, device="cpu")


def test_fill_prints_texts_and_candidates(run_dir: Path) -> None:
    result = verb("fill", "--run", run_dir, "--top", 2, "The [MASK] and the [MASK].", "A [MASK]")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == ["The [MASK] and the [MASK].", "A [MASK]"]
    assert sum(line.count("%") for line in lines) == 6
