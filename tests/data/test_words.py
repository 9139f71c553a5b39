"""Where words begin: never inside one, in whatever script."""

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
# What no boundary may fall into: letters with accents and apostrophes, in scripts with spaces; numbers; characters.
UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}ー\p{Thai}"
WORD = regex.compile(rf"(?:(?![{UNSPACED}])[\p{{L}}\p{{M}}])(?:(?![{UNSPACED}])[\p{{L}}\p{{M}}'’])*|\p{{N}}+|\X")


@pytest.fixture(scope="module")
def of_bytes() -> Tokenizer:
    """The hardest case: a token is a byte, but for the first two of quotation marks and of emoji, as GPT-2 has them."""
    tokens = [*(bytes([n]) for n in range(256)), b"\xe2\x80", b"\xf0\x9f"]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    return Tokenizer.build("bytes", GPT2_PATTERN, ranks, {END_OF_TEXT: 258, MASK: 259})


@pytest.fixture(scope="module")
def of_pieces() -> Tokenizer:
    """A byte-level BPE trained on a text in English and on the others a few times."""
    return Tokenizer.train_bpe([SAMPLE_TEXT.read_text(encoding="utf-8"), *(5 * [*TEXTS.values()])], 1000)


def words_of(tokenizer: Tokenizer, text: str) -> list[bytes]:
    """A text cut where words begin."""
    ids = tokenizer.encode(text).astype(np.int64)
    begins = WordTable(tokenizer, torch.device("cpu")).starts(torch.from_numpy(ids)[None])[0]
    words: list[bytes] = []
    for token, begin in zip(ids.tolist(), begins.tolist(), strict=True):
        piece = tokenizer.encoding.decode_single_token_bytes(token)
        words = [*words, piece] if begin else [*words[:-1], words[-1] + piece]
    return words


def begins_of(words: list[bytes]) -> set[int]:
    """The bytes of a text at which words begin."""
    return set(np.cumsum([0, *map(len, words)][:-1]).tolist())


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("tokenizer", ["of_bytes", "of_pieces"])
def test_no_word_no_number_and_no_character_is_split(kind: str, tokenizer: str, request: pytest.FixtureRequest) -> None:
    text = TEXTS[kind]
    begins = begins_of(words_of(request.getfixturevalue(tokenizer), text))
    for found in WORD.finditer(text):
        first = len(text[: found.start()].encode())
        inside = range(first + 1, first + len(found.group().encode()))
        assert not begins & set(inside), found.group()


@pytest.mark.parametrize("tokenizer", ["of_bytes", "of_pieces"])
def test_words_are_what_a_reader_would_cut(tokenizer: str, request: pytest.FixtureRequest) -> None:
    text = "Aunt Zoë's 12 naïve boys don’t stop—“never”, мир我们! o'clock"
    expected = ["Aunt", " Zoë's", " 12", " naïve", " boys", " don’t", " stop", "—“", "never", "”,", " мир", "我", "们"]
    assert [word.decode() for word in words_of(request.getfixturevalue(tokenizer), text)] == [
        *expected,
        "!",
        " o'clock",
    ]


def test_a_whole_text_is_cut_nowhere_but_between_the_pieces_of_the_pattern(of_pieces: Tokenizer) -> None:
    text = SAMPLE_TEXT.read_text(encoding="utf-8")
    begins = begins_of(words_of(of_pieces, text))
    pieces = begins_of([found.group().encode() for found in regex.finditer(GPT2_PATTERN, text)])
    assert begins <= pieces
    assert len(begins) > 0.95 * len(pieces)  # apostrophes are what there is between


def test_special_tokens_stand_alone(of_pieces: Tokenizer) -> None:
    (letter,) = of_pieces.encode("a").tolist()
    row = torch.tensor([[letter, of_pieces.end_id, letter, of_pieces.mask_id, letter, letter]])
    begins = WordTable(of_pieces, torch.device("cpu")).starts(row)
    assert begins.tolist() == [[True, True, True, True, True, False]]


def test_an_accent_that_begins_a_document_is_whole_and_no_part_of_the_last_one(of_bytes: Tokenizer) -> None:
    row = torch.tensor([[of_bytes.end_id, *"\u0301a".encode()]])
    assert WordTable(of_bytes, torch.device("cpu")).starts(row).tolist() == [[True, True, False, True]]


def test_a_token_that_ends_with_an_accent_or_is_invisible_does_not_end_a_word() -> None:
    accented, soft_hyphen, joiner = (text.encode() for text in ("e\u0301", "\u00ad", "\u200c"))
    tokens = [*(bytes([n]) for n in range(256)), accented[1:], accented, soft_hyphen, joiner[:2], joiner]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    tokenizer = Tokenizer.build("accents", r"\S+|\s+", ranks, {END_OF_TEXT: 261, MASK: 262})
    text = "coup-d'-e\u0301tat co\u00adoperation \u0645\u06cc\u200c\u062e\u0648"
    words = [word.decode() for word in words_of(tokenizer, text)]
    assert words == ["coup", "-", "d'", "-", "e\u0301tat", " co\u00adoperation", " \u0645\u06cc\u200c\u062e\u0648"]


def test_a_row_that_begins_in_a_word_begins_with_a_word(of_bytes: Tokenizer) -> None:
    rows = torch.tensor([list("ë and".encode()[1:]), list(b"nd an")])
    begins = WordTable(of_bytes, torch.device("cpu")).starts(rows)
    assert begins.tolist() == [[True, True, False, False, False], [True, False, True, False, False]]


def test_the_last_true() -> None:
    flags = torch.tensor([[True, False, True, False, False], [False, False, False, True, True]])
    assert last_true(flags).tolist() == [[0, 0, 2, 2, 2], [0, 0, 0, 3, 4]]
