import shutil
from pathlib import Path

import pytest
import torch

from mlm_dist.config import Config, ModelConfig
from mlm_dist.data.corpus import Corpus
from mlm_dist.errors import UserError
from mlm_dist.model.encoder import Encoder
from mlm_dist.trained.model import TrainedModel
from mlm_dist.training.run_dir import RunDir
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


def test_weights_alone_are_enough(run_dir: Path, tmp_path: Path, model: TrainedModel) -> None:
    bare = tmp_path / "run"
    shutil.copytree(run_dir, bare)
    (bare / "DONE").unlink()
    shutil.rmtree(bare / "checkpoints")
    assert TrainedModel(bare, device="cpu").fill("The [MASK]") == model.fill("The [MASK]")


def test_the_weights_of_a_run_that_is_done_are_its_last(run_dir: Path, tmp_path: Path, model: TrainedModel) -> None:
    done = tmp_path / "run"
    shutil.copytree(run_dir, done)
    shutil.rmtree(done / "checkpoints/step-00000030")
    assert TrainedModel(done, device="cpu").fill("The [MASK]") == model.fill("The [MASK]")


def test_nothing_is_dropped(run_dir: Path, tmp_path: Path, model: TrainedModel) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy)
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace("dropout: 0.0", "dropout: 0.5"))
    dropping = TrainedModel(copy, device="cpu")
    assert dropping.encoder.config.dropout == 0.5
    assert dropping.fill("The [MASK]") == model.fill("The [MASK]")


def test_entries_of_the_model_that_the_tokenizer_lacks_are_no_candidates(corpus: Corpus, tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "run")
    run_dir.take()
    config = Config(model=ModelConfig(vocab_size=310, block_size=16, embedding_dim=16, heads=2, blocks=1))
    run_dir.begin(config, corpus.tokenizer)
    torch.save(Encoder(config.model).state_dict(), run_dir.model)
    (candidates,) = TrainedModel(run_dir.path, device="cpu").fill("The [MASK]", top=10_000)
    assert len(candidates) == 298


def test_each_mask_has_the_probabilities_of_its_own_place(model: TrainedModel) -> None:
    text = "The [MASK] in the [MASK]"
    ids = model.tokenizer.encode_with_masks(text)
    places = [place for place, token in enumerate(ids) if token == model.tokenizer.mask_id]
    logits = model.encoder(torch.tensor([ids]))[0]
    logits[:, [model.tokenizer.mask_id, model.tokenizer.end_id]] = -torch.inf
    for place, candidates in zip(places, model.fill(text, top=298), strict=True):
        expected = logits[place].softmax(-1).sort(descending=True).values[:298]
        torch.testing.assert_close(torch.tensor([candidate.probability for candidate in candidates]), expected)


def test_a_text_may_be_as_long_as_the_model_sees(model: TrainedModel) -> None:
    text = "a" * 100 + "[MASK]"
    while len(model.tokenizer.encode_with_masks(text)) > 16:
        text = text[1:]
    assert len(model.tokenizer.encode_with_masks(text)) == 16
    model.fill(text)


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
