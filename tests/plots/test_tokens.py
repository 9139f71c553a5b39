import pytest

from mlm_dist.data.corpus import Corpus
from mlm_dist.plots.tokens import label


@pytest.mark.parametrize(
    ("text", "labels"),
    [("a", ["a"]), (" ", ["·"]), ("\n", ["\\n"]), ("\x00", ["\\x00"]), ("ж", ["\\xd0", "\\xb6"]), ("\\", ["\\"])],
)
def test_labels_of_tokens_are_readable(corpus: Corpus, text: str, labels: list[str]) -> None:
    assert [label(corpus.tokenizer, token) for token in corpus.tokenizer.encode(text).tolist()] == labels


def test_every_token_of_a_vocabulary_has_a_label(corpus: Corpus) -> None:
    labels = [label(corpus.tokenizer, token) for token in range(corpus.tokenizer.vocab_size)]
    assert all(text and text.isprintable() for text in labels)
    assert len(set(labels)) == len(labels)
    assert labels[corpus.tokenizer.mask_id] == "[MASK]"
