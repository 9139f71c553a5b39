"""Words never start inside a word, number or character, in any script."""

import numpy as np
import pytest
import regex
import torch

from mlm_dist.data.preparation import SAMPLE_TEXT
from mlm_dist.data.tokenizer import END_OF_TEXT, GPT2_PATTERN, MASK, Tokenizer
from mlm_dist.data.words import WordTable, last_true

TEXTS = {
    "punctuation": 'Wait -- he said, "stop!" (twice); then... nothing?! Then: no-one.',
    "accents": "Aunt Zoë's naïve café crème, déjà vu; Ærøskøbing, Łódź, Dvořák, tiếng Việt, cafe\u0301 nai\u0308ve",
    "digits": "In 1984 there were 12345 of 67,890.12 pages, and 3rd and x2 and 2x.",
    "scripts": "Привет, мир! Καλημέρα κόσμε. שלום עולם مرحبا بالعالم 안녕하세요 세계 नमस्ते दुनिया",
    "cjk": "我喜欢读书。東京タワーは高いですね!ภาษาไทย 한국어 text中文text",
    "apostrophes": "Don't, can’t, o'clock, ‘quoted’ and “quoted”, the boys’ rock'n'roll",
    "signs": "snake_case a+b=c 😀👍🏽👨\u200d👩\u200d👧 £5 — – … §12",
    "space": "one\n\n  two\tthree \n four",
}
# No word starts inside these: letters with accents and apostrophes (in scripts with spaces), numbers, characters.
UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}ー\p{Thai}"
WORD = regex.compile(rf"(?:(?![{UNSPACED}])[\p{{L}}\p{{M}}])(?:(?![{UNSPACED}])[\p{{L}}\p{{M}}'’])*|\p{{N}}+|\X")


@pytest.fixture(scope="module")
def byte_tokenizer() -> Tokenizer:
    """The hardest case: one token per byte, and one for the first two bytes of quotation marks and of emoji each."""
    tokens = [*(bytes([n]) for n in range(256)), b"\xe2\x80", b"\xf0\x9f"]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    return Tokenizer.build("bytes", GPT2_PATTERN, ranks, {END_OF_TEXT: 258, MASK: 259})


@pytest.fixture(scope="module")
def bpe_tokenizer() -> Tokenizer:
    """A byte-level BPE trained on the English sample and on repeated `TEXTS`."""
    return Tokenizer.train_bpe([SAMPLE_TEXT.read_text(encoding="utf-8"), *(5 * [*TEXTS.values()])], 1000)


def words_of(tokenizer: Tokenizer, text: str) -> list[bytes]:
    """A text split at the starts of words."""
    ids = tokenizer.encode(text).astype(np.int64)
    starts = WordTable(tokenizer, torch.device("cpu")).starts(torch.from_numpy(ids)[None])[0]
    words: list[bytes] = []
    for token, is_start in zip(ids.tolist(), starts.tolist(), strict=True):
        piece = tokenizer.encoding.decode_single_token_bytes(token)
        words = [*words, piece] if is_start else [*words[:-1], words[-1] + piece]
    return words


def word_offsets(words: list[bytes]) -> set[int]:
    """The byte offsets at which words start."""
    return set(np.cumsum([0, *map(len, words)][:-1]).tolist())


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("tokenizer", ["byte_tokenizer", "bpe_tokenizer"])
def test_no_word_number_or_character_is_split(kind: str, tokenizer: str, request: pytest.FixtureRequest) -> None:
    text = TEXTS[kind]
    starts = word_offsets(words_of(request.getfixturevalue(tokenizer), text))
    for found in WORD.finditer(text):
        first = len(text[: found.start()].encode())
        inside = range(first + 1, first + len(found.group().encode()))
        assert not starts & set(inside), found.group()


@pytest.mark.parametrize("tokenizer", ["byte_tokenizer", "bpe_tokenizer"])
def test_words_are_split_as_a_reader_expects(tokenizer: str, request: pytest.FixtureRequest) -> None:
    text = "Aunt Zoë's 12 naïve boys don’t stop—“never”, мир我们! o'clock"
    expected = ["Aunt", " Zoë's", " 12", " naïve", " boys", " don’t", " stop", "—“", "never", "”,", " мир", "我", "们"]
    assert [word.decode() for word in words_of(request.getfixturevalue(tokenizer), text)] == [
        *expected,
        "!",
        " o'clock",
    ]


def test_words_of_a_text_start_only_where_the_pattern_splits_it(bpe_tokenizer: Tokenizer) -> None:
    text = SAMPLE_TEXT.read_text(encoding="utf-8")
    starts = word_offsets(words_of(bpe_tokenizer, text))
    pieces = word_offsets([found.group().encode() for found in regex.finditer(GPT2_PATTERN, text)])
    assert starts <= pieces
    assert len(starts) > 0.95 * len(pieces)  # they differ only at apostrophes


def test_a_special_token_is_a_word_of_its_own(bpe_tokenizer: Tokenizer) -> None:
    (letter,) = bpe_tokenizer.encode("a").tolist()
    row = torch.tensor([[letter, bpe_tokenizer.end_id, letter, bpe_tokenizer.mask_id, letter, letter]])
    starts = WordTable(bpe_tokenizer, torch.device("cpu")).starts(row)
    assert starts.tolist() == [[True, True, True, True, True, False]]


def test_an_accent_at_the_start_of_a_document_does_not_continue_the_previous_document(
    byte_tokenizer: Tokenizer,
) -> None:
    row = torch.tensor([[byte_tokenizer.end_id, *"\u0301a".encode()]])
    assert WordTable(byte_tokenizer, torch.device("cpu")).starts(row).tolist() == [[True, True, False, True]]


def test_a_token_that_ends_with_an_accent_or_is_invisible_does_not_end_a_word() -> None:
    accented, soft_hyphen, joiner = (text.encode() for text in ("e\u0301", "\u00ad", "\u200c"))
    tokens = [*(bytes([n]) for n in range(256)), accented[1:], accented, soft_hyphen, joiner[:2], joiner]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    tokenizer = Tokenizer.build("accents", r"\S+|\s+", ranks, {END_OF_TEXT: 261, MASK: 262})
    text = "coup-d'-e\u0301tat co\u00adoperation \u0645\u06cc\u200c\u062e\u0648"
    words = [word.decode() for word in words_of(tokenizer, text)]
    assert words == ["coup", "-", "d'", "-", "e\u0301tat", " co\u00adoperation", " \u0645\u06cc\u200c\u062e\u0648"]


def test_the_first_token_of_a_row_starts_a_word(byte_tokenizer: Tokenizer) -> None:
    rows = torch.tensor([list("ë and".encode()[1:]), list(b"nd an")])
    starts = WordTable(byte_tokenizer, torch.device("cpu")).starts(rows)
    assert starts.tolist() == [[True, True, False, False, False], [True, False, True, False, False]]


def test_last_true_gives_the_last_set_position() -> None:
    flags = torch.tensor([[True, False, True, False, False], [False, False, False, True, True]])
    assert last_true(flags).tolist() == [[0, 0, 2, 2, 2], [0, 0, 0, 3, 4]]
