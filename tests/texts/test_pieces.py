"""Texts in pieces give the same tokens as whole texts."""

import functools
import itertools
import random
import re

import pytest
import tiktoken
import tiktoken_ext.openai_public  # type: ignore[import-untyped]
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from mlm_dist.data.preparation import SAMPLE_TEXT
from mlm_dist.data.tokenizer import GPT2_PATTERN, byte_characters
from mlm_dist.texts.pieces import PIECE_CHARACTERS, Piece, cut_text

# Each has safe cuts now and then, as real texts do.
HARD_TEXTS = {
    "windows newlines": "One line.\r\nTwo lines\r\n\r\n  three\r\n\r\n\r\nfour , five\r\r\nsix\r" * 5,
    "emoji": "Smile 😀 twice 😀😀 family👩‍👩‍👧‍👦 thumb 👍🏽 flag 🇩🇪 end\n" * 5,
    "scripts without spaces": "吾輩は猫である。名前はまだ無い。\nどこで生れたか\n頓と見当がつかぬ。\n\nที่นี่ภาษาไทย\n" * 5,
    "accents": "Ça déjà vu, naïve façade; e\u0301te\u0301 Ångström ǅ ʰa ªb ﬁ हिन्दी में नमस्ते और\n" * 5,
    "digits": "1 22 333 4444 1234567890 3.14159 1,000,000 ٣٤٥ ½ ² Ⅷ 12th x2 2x\n" * 5,
    "tabs": "a\tb\t\tc\t \td\n\te\n\t\tf \t\n" * 5,
    "runs of spaces and newlines": "a  b   c" + " " * 20 + "d\n\n\n\n\ne \n \n  \n f\n   g" + "\n" * 20 + "h " * 5,
    "strange white space": "a\u00a0b\u3000c\u2028d\x85e\x0bf\x0cg\x1ch\x1fi\u200bj\ufeffk \u00a0 l\u1680m\n" * 5,
    "contractions": "I'll don't we've 'tis it's IT'S she'd 'em ' 's 'S'T o'clock ''ll''\n" * 5,
    "punctuation": "--- ... !? (a) [b] {c} a_b __c__ snake_case_ d/e // f/\n\n/g .\n\n!\n\"h\"\n'i'\n" * 5,
    "special tokens": "a<|endoftext|>b <|endoftext|> [MASK]c [MASK] \n[MASK]\n<|endoftext|>\n" * 5,
    "controls": "nul\x00 bell\x07 escape\x1b[0m delete\x7f end\n" * 5,
}
ATOMS = sorted(
    {"  ", "\n\n", "\r\n", "'s", "'LL", ".\n", "/\n", "e\u0301", "word", "Word", "123", *"".join(HARD_TEXTS.values())}
)

# A lower bound on the safe cuts: between a letter or digit and white space, and between the newline of a line that is
# not empty and a letter or digit.
SAFE_CUT = re.compile(r"(?<=[^\W_])(?=\s)|(?<=\S\n)(?=[^\W_])")


def random_text(rng: random.Random, length: int) -> str:
    """Characters and fragments of all hard texts, in random order."""
    chosen = rng.sample(ATOMS, rng.randint(3, 40)) + [" ", "\n", "a ", "b\n"] * rng.randint(0, 5)
    return "".join(rng.choice(chosen) for _ in range(length))


def piece_characters_for(text: str) -> int:
    """The smallest piece size for which no token of a text is split."""
    cuts = [0, *(match.start() for match in SAFE_CUT.finditer(text)), len(text)]
    return max(after - before for before, after in itertools.pairwise(cuts)) + 1


def val_start_of(text: str, val_fraction: float) -> int:
    """Where validation text of this fraction starts, in bytes."""
    return round(len(text.encode()) * (1 - val_fraction))


def cut(text: str, val_fraction: float = 0.0, piece_characters: int = PIECE_CHARACTERS) -> list[Piece]:
    """The pieces of a text that arrives in parts of 7 characters. They do not depend on the parts."""
    parts = [text[start : start + 7] for start in range(0, len(text), 7)]
    pieces = list(cut_text(parts, val_start_of(text, val_fraction), piece_characters))
    assert pieces == list(cut_text([text], val_start_of(text, val_fraction), piece_characters))
    return pieces


@functools.cache
def ranks_across_words() -> dict[bytes, int]:
    """A vocabulary with tokens across words and white space, so that any unsafe cut changes the ids."""
    rng = random.Random(1)
    texts = [*HARD_TEXTS.values(), *(random_text(rng, 300) for _ in range(100))]
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=3000, initial_alphabet=alphabet, show_progress=False)
    )
    to_byte = {character: byte for byte, character in enumerate(byte_characters())}
    return {bytes(to_byte[c] for c in token): rank for token, rank in trained.get_vocab().items()}


def pattern_of(name: str) -> str:
    """The pattern of a tiktoken encoding or of `bpe`. It does not need tiktoken's vocabulary files."""
    if name == "bpe":
        return GPT2_PATTERN
    with pytest.MonkeyPatch.context() as patch:
        for loader in ("load_tiktoken_bpe", "data_gym_to_mergeable_bpe_ranks"):
            patch.setattr(tiktoken_ext.openai_public, loader, lambda *_, **__: {})
        return str(getattr(tiktoken_ext.openai_public, name)()["pat_str"])


@pytest.fixture(scope="module", params=["gpt2", "cl100k_base", "o200k_base", "bpe"])
def encoding(request: pytest.FixtureRequest) -> tiktoken.Encoding:
    """An encoding with the pattern of a real tokenizer and the ranks of `ranks_across_words`."""
    ranks = ranks_across_words()
    return tiktoken.Encoding("test", pat_str=pattern_of(request.param), mergeable_ranks=ranks, special_tokens={})


def check_tokens(text: str, val_fraction: float, piece_characters: int, encoding: tiktoken.Encoding) -> None:
    """Check that the pieces of a text, encoded separately, give the tokens of the whole text."""
    pieces = cut(text, val_fraction, piece_characters)
    assert "".join(piece.text for piece in pieces) == text
    splits = [piece.split for piece in pieces]
    assert splits == sorted(splits)  # train, then val
    assert [piece.is_last for piece in pieces] == [a != b for a, b in itertools.pairwise([*splits, ""])]
    ids = [token for piece in pieces for token in encoding.encode_ordinary(piece.text)]
    assert ids == encoding.encode_ordinary(text), (text, piece_characters, [piece.text for piece in pieces])


@pytest.mark.parametrize("text", HARD_TEXTS.values(), ids=HARD_TEXTS.keys())
def test_pieces_of_hard_texts_have_the_tokens_of_the_whole(text: str, encoding: tiktoken.Encoding) -> None:
    smallest = piece_characters_for(text)
    for piece_characters in (smallest, smallest + 1, smallest + 7, 3 * smallest, 1 << 18):
        for val_fraction in (0.0, 0.05, 0.5, 0.9, 1.0):
            check_tokens(text, val_fraction, piece_characters, encoding)


def test_pieces_of_random_texts_have_the_tokens_of_the_whole(encoding: tiktoken.Encoding) -> None:
    rng = random.Random(2)
    for _ in range(150):
        text = random_text(rng, rng.randint(1, 200))
        check_tokens(text, rng.choice([0.0, 0.05, 0.3, 0.7, 1.0]), max(8, piece_characters_for(text)), encoding)


def test_pieces_of_a_novel_have_the_tokens_of_the_whole(encoding: tiktoken.Encoding) -> None:
    check_tokens(SAMPLE_TEXT.read_text(encoding="utf-8"), 0.1, 500, encoding)


@pytest.mark.parametrize("piece_characters", [8, 64, 1000])
def test_pieces_are_bounded_and_complete_even_without_safe_cuts(piece_characters: int) -> None:
    for text in ("x" * 5000, " " * 5000, "文" * 5000, "👍" * 5000, "-" * 4999 + "a b", "a " * 2500):
        pieces = [piece.text for piece in cut(text, piece_characters=piece_characters)]
        assert "".join(pieces) == text
        assert max(map(len, pieces)) <= 2 * piece_characters


def test_a_text_that_is_shorter_than_a_piece_is_one() -> None:
    assert cut("One. Two, three.\nFour") == [Piece("train", "One. Two, three.\nFour", is_last=True)]


@pytest.mark.parametrize("text", HARD_TEXTS.values(), ids=HARD_TEXTS.keys())
def test_validation_text_starts_no_later_than_at_the_first_safe_cut_after_val_start(text: str) -> None:
    cuts = [match.start() for match in SAFE_CUT.finditer(text)]
    for val_fraction in (0.1, 0.5, 0.9):
        val_start = val_start_of(text, val_fraction)
        allowed = [cut for cut in cuts if len(text[:cut].encode()) >= val_start]
        for piece_characters in (piece_characters_for(text), 1 << 18):
            train = "".join(p.text for p in cut(text, val_fraction, piece_characters) if p.split == "train")
            assert val_start <= len(train.encode())
            assert len(train) <= min(allowed, default=len(text))


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\n\n", "\n\u3000"], ids=["plain", "windows", "blank", "indented"])
def test_the_end_is_validation_text_in_scripts_without_spaces(line_end: str, encoding: tiktoken.Encoding) -> None:
    # Such texts have Windows newlines, blank lines between paragraphs, or indented paragraphs.
    text = f"吾輩は猫である。名前はまだ無い。{line_end}" * 100
    val = "".join(p.text for p in cut(text, 0.5) if p.split == "val")
    assert 0.45 < len(val) / len(text) <= 0.5
    check_tokens(text, 0.5, 200, encoding)


def test_a_text_can_be_in_one_split_only() -> None:
    assert {piece.split for piece in cut("some validation words\n", 1.0, piece_characters=8)} == {"val"}
    assert {piece.split for piece in cut("some training words\n", 0.0, piece_characters=8)} == {"train"}
