"""The exported tokenizer has tiktoken's ids on any text."""

import os
import random
import unicodedata
from pathlib import Path

import pytest
import tokenizers

from mlm_dist.data.bpe_extension import extend_bpe
from mlm_dist.data.preparation import SAMPLE_TEXT
from mlm_dist.data.tokenizer import END_OF_TEXT, GPT2_PATTERN, MASK, Tokenizer
from mlm_dist.data.tokenizer_json import find_merges
from mlm_dist.errors import UserError
from mlm_dist.huggingface.tokenizer_file import convert_tokenizer
from mlm_dist.texts.finding import find_files
from tests.data.test_tokenizer import RUNS
from tests.texts.test_pieces import HARD_TEXTS, pattern_of, random_text, ranks_across_words

SAMPLE = SAMPLE_TEXT.read_text(encoding="utf-8")
BYTES = {bytes([byte]): byte for byte in range(256)}
HARDER_TEXTS = {
    **HARD_TEXTS,
    "nothing": "",
    "one space": " ",
    "spaces at the end": "end   ",
    "newlines at the end": "end \n\n \n",
    "emoji joined and flags": "👩\u200d👩\u200d👧\u200d👦🏳️\u200d🌈🇩🇪🇫🇷🇩 👍🏽👍🏿 ❤️ 1️⃣",
    "contractions in both cases": "I'LL you'Re WE'VE he'd HE'D 'S ſ's 'ſ don't DON'T 'twas ''re'm",
    "a long word": "antidisestablishmentarianism" * 100,
    "a long run without spaces": "吾輩は猫である名前はまだ無い" * 100,
    "a long number": "0123456789" * 100,
    "long runs of one character": RUNS + "=" * 1000 + " " * 1000 + "\n" * 1000 + "!" * 1000,
    "broken special tokens": "<|endoftext| > [MASK <|endoftext [ MASK] [mask] <|<|endoftext|>|> [[MASK]]",
}


def texts(seed: int, count: int, length: int = 60) -> list[str]:
    """Hard texts, and random combinations of their parts."""
    rng = random.Random(seed)
    return [*HARDER_TEXTS.values(), SAMPLE, *(random_text(rng, length) for _ in range(count))]


def with_tokens_across_words(name: str) -> Tokenizer:
    """A tokenizer with the pattern of one of tiktoken's encodings, and gaps between its ids."""
    ranks = ranks_across_words()
    return Tokenizer.build(name, pattern_of(name), ranks, {END_OF_TEXT: 3001, "<|other|>": 3007, MASK: 3010})


@pytest.fixture(scope="module", params=["gpt2", "r50k_base", "p50k_edit", "cl100k_base", "o200k_base", "bpe"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return with_tokens_across_words(request.param)


@pytest.fixture(scope="module")
def converted(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> tokenizers.Tokenizer:
    return save_and_load(tokenizer, tmp_path_factory.mktemp("tokenizer"))


def save_and_load(tokenizer: Tokenizer, folder: Path) -> tokenizers.Tokenizer:
    """Convert a tokenizer, and load it from its file."""
    convert_tokenizer(tokenizer).save(str(folder / "tokenizer.json"))
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def expected_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """tiktoken's ids of a text with special tokens, in which a mask includes one space before it."""
    return tokenizer.encoding.encode(text.replace(" [MASK]", "[MASK]"), allowed_special="all")


def check_ids(converted: tokenizers.Tokenizer, tokenizer: Tokenizer, texts: list[str]) -> None:
    for text in texts:
        assert converted.encode(text).ids == expected_ids(tokenizer, text), text


def test_hard_and_random_texts_have_tiktokens_ids(converted: tokenizers.Tokenizer, tokenizer: Tokenizer) -> None:
    check_ids(converted, tokenizer, texts(seed=3, count=1000))


@pytest.mark.slow
def test_characters_of_all_scripts_have_tiktokens_ids(converted: tokenizers.Tokenizer, tokenizer: Tokenizer) -> None:
    # Python has the oldest Unicode version of the three. The libraries may classify newer characters differently.
    characters = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) not in ("Cn", "Cs")]
    rng = random.Random(4)
    for _ in range(1000):
        check_ids(converted, tokenizer, ["".join(rng.choices([*characters, *" \n'1as" * 5000], k=60))])


@pytest.mark.slow
def test_a_trained_vocabulary_has_tiktokens_ids(tmp_path: Path) -> None:
    for vocab_size in (258, 300, 2000):
        tokenizer = Tokenizer.train_bpe([SAMPLE, RUNS], vocab_size)
        check_ids(save_and_load(tokenizer, tmp_path), tokenizer, texts(seed=5, count=300))


def test_an_extended_vocabulary_has_tiktokens_ids(tmp_path: Path) -> None:
    tokenizer = extend_bpe(with_tokens_across_words("cl100k_base"), [SAMPLE, RUNS], 300)
    assert tokenizer.vocab_size == 3311
    converted = save_and_load(tokenizer, tmp_path)
    check_ids(converted, tokenizer, texts(seed=8, count=300))
    assert {token for token in tokenizer.encode(SAMPLE).tolist() if token > tokenizer.mask_id}
    assert converted.encode(f"a {MASK}{END_OF_TEXT}").ids[-2:] == [3010, 3001]


@pytest.mark.slow
def test_gpt2s_vocabulary_has_tiktokens_ids(gpt2_vocabulary: None, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_tiktoken("gpt2")
    converted = save_and_load(tokenizer, tmp_path)
    check_ids(converted, tokenizer, texts(seed=6, count=1000))
    assert converted.get_vocab_size() == 50258


@pytest.mark.timeout(1800)
def test_novels_have_tiktokens_ids(gpt2_vocabulary: None, tmp_path: Path) -> None:
    """Compare whole novels in the folder MLM_DIST_NOVELS, with GPT-2's vocabulary and with one trained on them."""
    if "MLM_DIST_NOVELS" not in os.environ:
        pytest.skip("needs MLM_DIST_NOVELS, a folder of *.txt files")
    files = find_files([Path(os.environ["MLM_DIST_NOVELS"])])
    novels = [file.path.read_text(encoding="utf-8") for file in files]
    for tokenizer in (Tokenizer.from_tiktoken("gpt2"), Tokenizer.train_bpe(novels, 8000)):
        converted = save_and_load(tokenizer, tmp_path)
        tokens = 0
        for novel in novels:
            expected = tokenizer.encode(novel).tolist()
            assert converted.encode(novel).ids == expected
            tokens += len(expected)
        print(f"\n{tokenizer.name}: {len(novels)} novels, {tokens:,} tokens, all equal")


def test_ids_decode_to_the_text(converted: tokenizers.Tokenizer, tokenizer: Tokenizer) -> None:
    for text in texts(seed=7, count=100):
        assert converted.decode(tokenizer.encode(text).tolist(), skip_special_tokens=False) == text


@pytest.mark.parametrize(
    ("text", "expected_parts"),
    [
        ("a [MASK] b", ["a", None, " b"]),
        ("a  [MASK] b", ["a ", None, " b"]),
        ("a\n[MASK]", ["a\n", None]),
        ("a\n [MASK]", ["a\n", None]),
        ("a\t [MASK]\n", ["a\t", None, "\n"]),
        ("a\u00a0[MASK]", ["a\u00a0", None]),
        (" [MASK] [MASK]", [None, None]),
        ("[MASK]   [MASK]", [None, "  ", None]),
        ("<|endoftext|> [MASK].", [END_OF_TEXT, None, "."]),
    ],
)
def test_a_mask_includes_one_space_before_it(
    converted: tokenizers.Tokenizer, tokenizer: Tokenizer, text: str, expected_parts: list[str | None]
) -> None:
    parts = [tokenizer.mask_id if part is None else part for part in expected_parts]
    expected = [
        token
        for part in parts
        for token in ([part] if isinstance(part, int) else tokenizer.encoding.encode(part, allowed_special="all"))
    ]
    assert converted.encode(text).ids == expected
    if END_OF_TEXT not in text:
        assert tokenizer.encode_with_masks(text) == expected


def test_special_tokens_keep_ids_that_are_not_consecutive(converted: tokenizers.Tokenizer) -> None:
    ids = converted.encode("a<|other|>[MASK]<|endoftext|>").ids
    assert ids[1:] == [3007, 3010, 3001]
    assert converted.decode([3007, 3010], skip_special_tokens=False) == "<|other|>[MASK]"
    assert converted.decode([3007, 3010]) == ""


def test_a_word_in_the_vocabulary_is_one_token_even_without_merges(tmp_path: Path) -> None:
    tokenizer = Tokenizer.build("odd", GPT2_PATTERN, BYTES | {b"xyz": 256}, {END_OF_TEXT: 257, MASK: 258})
    assert not list(find_merges(tokenizer.ranks))
    converted = save_and_load(tokenizer, tmp_path)
    assert converted.encode("xyz xyz").ids == [256, *b" xyz"] == tokenizer.encode("xyz xyz").tolist()


def test_a_possessive_count_is_not_repeated() -> None:
    pattern, ranks = pattern_of("cl100k_base"), BYTES | {b"12": 256, b"34": 257, b"1234": 258}
    assert "{1,3}+" in pattern
    converted = convert_tokenizer(Tokenizer.build("digits", pattern, ranks, {END_OF_TEXT: 259, MASK: 260}))
    assert converted.encode("1234").ids == [256, *b"34"]


@pytest.mark.parametrize(
    "pattern",
    [
        r"(?s:.)\p{L}+|\s+|.",  # a group that Oniguruma, which `tokenizers` uses, does not support
        r"\s+$|\S+|\s",  # Oniguruma's $ is the end of any line
    ],
)
def test_an_encoding_that_tokenizers_cannot_reproduce_is_refused(pattern: str) -> None:
    ranks = BYTES | {b" \n": 256, b"  ": 257, b"..": 258}
    tokenizer = Tokenizer.build("strange", pattern, ranks, {END_OF_TEXT: 259, MASK: 260})
    with pytest.raises(UserError, match="the tokenizer 'strange' cannot be exported"):
        convert_tokenizer(tokenizer)
