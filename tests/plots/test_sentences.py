import pytest

from mlm_dist.errors import UserError
from mlm_dist.inference.model import TrainedModel
from mlm_dist.plots.sentences import SENTENCES, fill_sentences


def test_a_sentence_is_split_at_its_masks_and_each_mask_has_the_predictions_of_the_model(model: TrainedModel) -> None:
    text = "The [MASK] was [MASK*2]"
    (sentence,) = fill_sentences(model, [text])
    assert sentence.parts == ["The ", " was ", ""]
    for mask, candidates in zip(sentence.masks, model.fill(text, 5).masks, strict=True):
        assert mask == [(c.text.replace(" ", "·").replace("\n", "\\n"), 100 * c.probability) for c in candidates]


def test_without_texts_the_default_sentences_are_filled(model: TrainedModel) -> None:
    assert ["[MASK]".join(sentence.parts) for sentence in fill_sentences(model, [])] == list(SENTENCES)


def test_a_text_without_a_mask_is_a_user_error(model: TrainedModel) -> None:
    with pytest.raises(UserError, match=r"contains no \[MASK\]"):
        fill_sentences(model, ["The [MASK]", "no mask"])
