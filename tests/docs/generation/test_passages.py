import pytest

from mlm_dist.data.corpus import Corpus
from mlm_dist.data.preparation import SAMPLE_TEXT
from mlm_dist.errors import UserError
from passages import document_texts, documents, validation_passages


def test_documents_are_the_text_without_end_tokens(corpus: Corpus) -> None:
    parts = document_texts(corpus, "train") + document_texts(corpus, "val")
    assert "".join(parts) == SAMPLE_TEXT.read_text(encoding="utf-8")


def test_validation_passages_are_from_the_validation_text(corpus: Corpus) -> None:
    (document,) = documents(corpus, "val")
    passages = validation_passages(corpus, 5, 20, seed=1)
    for text, tokens in passages:
        assert len(tokens) == 20
        assert text == corpus.tokenizer.decode(tokens)
        assert any(document[start : start + 20].tolist() == tokens for start in range(len(document)))
    assert passages == validation_passages(corpus, 5, 20, seed=1) != validation_passages(corpus, 5, 20, seed=2)


def test_too_many_passages_are_refused(corpus: Corpus) -> None:
    (document,) = documents(corpus, "val")
    (whole,) = validation_passages(corpus, 1, len(document), seed=1)
    assert whole.tokens == document.tolist()
    with pytest.raises(UserError, match=r"has 1 validation passages of \d+ tokens, but --samples is 2"):
        validation_passages(corpus, 2, len(document), seed=1)
