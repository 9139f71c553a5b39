import pytest

from mlm_dist.data.corpus import Corpus
from mlm_dist.data.preparation import SAMPLE_TEXT
from mlm_dist.errors import UserError
from passages import document_texts, documents, held_out_passages


def test_the_documents_are_the_text_without_its_end_token(corpus: Corpus) -> None:
    parts = document_texts(corpus, "train") + document_texts(corpus, "val")
    assert "".join(parts) == SAMPLE_TEXT.read_text(encoding="utf-8")


def test_held_out_passages_stand_in_the_held_out_text(corpus: Corpus) -> None:
    (document,) = documents(corpus, "val")
    passages = held_out_passages(corpus, 5, 20, seed=1)
    for text, tokens in passages:
        assert len(tokens) == 20
        assert text == corpus.tokenizer.decode(tokens)
        assert any(document[start : start + 20].tolist() == tokens for start in range(len(document)))
    assert passages == held_out_passages(corpus, 5, 20, seed=1) != held_out_passages(corpus, 5, 20, seed=2)


def test_more_than_is_held_out_cannot_be_had(corpus: Corpus) -> None:
    (document,) = documents(corpus, "val")
    (whole,) = held_out_passages(corpus, 1, len(document), seed=1)
    assert whole.tokens == document.tolist()
    with pytest.raises(UserError, match=r"holds out 1 passages of \d+ tokens, not 2"):
        held_out_passages(corpus, 2, len(document), seed=1)
