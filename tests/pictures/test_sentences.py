from pathlib import Path

import pytest
import torch

from mlm_dist import load
from mlm_dist.config import Config, ModelConfig
from mlm_dist.data.corpus import Corpus
from mlm_dist.errors import UserError
from mlm_dist.model.encoder import Encoder
from mlm_dist.pictures.answers import answer
from mlm_dist.pictures.sentences import SENTENCES, fill_sentences
from mlm_dist.trained.model import TrainedModel
from mlm_dist.training.run_dir import RunDir


def model_that_sees(tokens: int, corpus: Corpus, folder: Path) -> TrainedModel:
    run_dir = RunDir(folder)
    run_dir.take()
    config = Config(model=ModelConfig(vocab_size=300, block_size=tokens, embedding_dim=16, heads=2, blocks=1))
    run_dir.begin(config, corpus.tokenizer)
    torch.save(Encoder(config.model).state_dict(), run_dir.model)
    return load(folder, "cpu")


def test_a_sentence_is_cut_at_its_masks_and_each_has_the_models_candidates(model: TrainedModel) -> None:
    (sentence,) = fill_sentences(model, ["The [MASK] was [MASK]"])
    assert sentence.parts == ["The ", " was ", ""]
    for mask, candidates in zip(sentence.masks, model.fill("The [MASK] was [MASK]", 5), strict=True):
        assert mask == [(c.text.replace(" ", "·").replace("\n", "\\n"), 100 * c.probability) for c in candidates]


def test_without_sentences_those_of_ours_are_filled_that_the_model_can_see(
    model: TrainedModel, corpus: Corpus, tmp_path: Path
) -> None:
    assert len(fill_sentences(model_that_sees(64, corpus, tmp_path), [])) == len(SENTENCES)
    assert ["[MASK]".join(sentence.parts) for sentence in fill_sentences(model, [])] == [SENTENCES[1]]


def test_a_model_that_sees_none_of_ours_is_said(corpus: Corpus, tmp_path: Path) -> None:
    answers = answer(model_that_sees(4, corpus, tmp_path), None, [], [])
    assert answers.sentences == []
    assert answers.note == "Our sentences are longer than the 4 tokens that the model sees at once."


def test_a_sentence_of_the_persons_that_cannot_be_filled_is_a_mistake(model: TrainedModel) -> None:
    with pytest.raises(UserError, match="there is no"):
        fill_sentences(model, ["The [MASK]", "no mask"])
