"""Tokenizers are exact and reversible, and survive saving and loading."""

import base64
import hashlib
import json
import random
import re
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import regex
import tiktoken
import tokenizers
from tiktoken.load import load_tiktoken_bpe
from tokenizers import models, pre_tokenizers, trainers

from mlm_dist.data.preparation import SAMPLE_TEXT
from mlm_dist.data.tokenizer import (
    ENCODING_FILE,
    GPT2_PATTERN,
    MASK,
    RANKS_FILE,
    Tokenizer,
    byte_characters,
    parse_ranks,
    run_interruptibly,
)
from mlm_dist.errors import UserError
from tests.texts.test_pieces import HARD_TEXTS, random_text

SAMPLE = SAMPLE_TEXT.read_text(encoding="utf-8")
# Two merge algorithms are most likely to differ on runs of one letter.
RUNS = " ".join("a" * n + "b" * (n % 5) for n in range(60)) + " --------- ....... ......"


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return Tokenizer.train_bpe([SAMPLE], 300)


def train_with_tokenizers(texts: list[str], vocab_size: int) -> tokenizers.Tokenizer:
    """A byte-level BPE trained as in the documentation of `tokenizers`."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(texts, trainer)
    return trained


def random_texts() -> list[str]:
    rng = random.Random(0)
    return [random_text(rng, 60) for _ in range(100)]


def test_a_trained_vocabulary_has_the_requested_size(bpe: Tokenizer) -> None:
    assert (bpe.name, bpe.vocab_size, bpe.end_id, bpe.mask_id) == ("bpe", 300, 298, 299)
    assert sorted(bpe.ranks.values()) == list(range(298))


def test_the_smallest_vocabulary_is_the_bytes_and_two_special_tokens() -> None:
    smallest = Tokenizer.train_bpe([SAMPLE], 258)
    assert smallest.vocab_size == 258
    assert set(smallest.ranks) == {bytes([byte]) for byte in range(256)}
    with pytest.raises(UserError, match="257 is too small: the minimum is 258"):
        Tokenizer.train_bpe([SAMPLE], 257)


def test_a_short_text_gives_a_smaller_vocabulary() -> None:
    short = Tokenizer.train_bpe(["abc abc"], 1000)
    assert 258 < short.vocab_size < 270
    assert (short.end_id, short.mask_id) == (short.vocab_size - 2, short.vocab_size - 1)


def test_training_is_deterministic(bpe: Tokenizer) -> None:
    again = Tokenizer.train_bpe([SAMPLE], 300)
    assert list(again.ranks.items()) == list(bpe.ranks.items())


@pytest.mark.parametrize("vocab_size", [258, 300, 1000, 2000])
def test_a_trained_bpe_encodes_as_one_trained_by_the_tokenizers_library(vocab_size: int) -> None:
    texts = [SAMPLE[: len(SAMPLE) // 2], RUNS]
    trained = Tokenizer.train_bpe(texts, vocab_size)
    reference = train_with_tokenizers(texts, vocab_size - 2)
    for text in [SAMPLE, RUNS, *HARD_TEXTS.values(), *random_texts()]:
        assert trained.encode(text).tolist() == reference.encode(text).ids


def test_training_adds_no_space_before_the_first_word_of_a_text() -> None:
    texts = ["ab", "abc", "abcd"] * 10
    trained = Tokenizer.train_bpe(texts, 265)
    assert b"abcd" in trained.ranks
    assert not [token for token in trained.ranks if len(token) > 1 and token.startswith(b" ")]
    assert trained.encode("abcd ab").tolist() == train_with_tokenizers(texts, 263).encode("abcd ab").ids


@pytest.mark.parametrize("text", HARD_TEXTS.values(), ids=HARD_TEXTS.keys())
def test_any_text_survives_a_round_trip(bpe: Tokenizer, text: str) -> None:
    assert bpe.decode(bpe.encode(text)) == text


def test_random_texts_survive_a_round_trip(bpe: Tokenizer) -> None:
    everything = "".join(chr(code) for code in range(0x3000) if not 0xD800 <= code < 0xE000)
    for text in [everything, *random_texts()]:
        assert bpe.decode(bpe.encode(text)) == text


@pytest.mark.parametrize("text", [SAMPLE, *HARD_TEXTS.values()], ids=["sample", *HARD_TEXTS.keys()])
def test_words_concatenate_to_the_tokens_of_the_text(bpe: Tokenizer, text: str) -> None:
    words = bpe.encode_words(text)
    assert [token for word in words for token in word] == bpe.encode(text).tolist()
    assert "".join(bpe.decode(word) for word in words) == text


def letters_and_numbers() -> str:
    """Every letter and number of the newest Unicode that `regex` knows, each at several positions in a word."""
    characters = regex.findall(r"[\p{L}\p{N}]", "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)])))
    return "".join(f"a{character}b {character}'s 1{character}2 .{character}'ll " for character in characters)


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", ["bpe", "gpt2"])
def test_words_concatenate_to_the_tokens_of_the_text_in_every_script(
    tokenizer: str, request: pytest.FixtureRequest, bpe: Tokenizer
) -> None:
    if tokenizer == "gpt2":
        request.getfixturevalue("gpt2_vocabulary")
    encoder = bpe if tokenizer == "bpe" else Tokenizer.from_tiktoken("gpt2")
    text = letters_and_numbers()
    words = encoder.encode_words(text)
    assert [token for word in words for token in word] == encoder.encode(text).tolist()
    assert len(words) > text.count(" ") * 0.99


@pytest.mark.parametrize("text", ["\ud800", "fine \udcff", "[MASK] \udfff\ud800"])
def test_a_lone_surrogate_is_a_user_error(bpe: Tokenizer, text: str) -> None:
    for encode in (bpe.encode, bpe.encode_words, bpe.encode_with_masks):
        with pytest.raises(
            UserError, match=r"a lone surrogate, half of a character \(U\+D[8CF][0F][0F] at character \d\)"
        ):
            encode(text)


def test_a_word_starts_with_its_space_and_ends_before_punctuation(bpe: Tokenizer) -> None:
    words = [bpe.decode(word) for word in bpe.encode_words("The lamp, unbelievably, didn't burn 12 hours.")]
    assert words == ["The", " lamp", ",", " unbelievably", ",", " didn", "'t", " burn", " 12", " hours", "."]


def test_special_tokens_in_a_text_are_plain_text(bpe: Tokenizer) -> None:
    text = "a <|endoftext|> and a [MASK]<|endoftext|>[MASK]"
    ids = bpe.encode(text)
    assert ids.max() < bpe.end_id
    assert bpe.decode(ids) == text


def test_invalid_bytes_decode_to_the_replacement_character(bpe: Tokenizer) -> None:
    assert bpe.decode([bpe.ranks[b"\xe4"], bpe.ranks[b"a"]]) == "\N{REPLACEMENT CHARACTER}a"


def test_a_mask_in_a_prompt_includes_the_space_before_it(bpe: Tokenizer) -> None:
    expected = [*bpe.encode("The"), bpe.mask_id, *bpe.encode(" was late."), bpe.mask_id]
    assert bpe.encode_with_masks("The [MASK] was late.[MASK]") == expected


def test_end_of_text_in_a_prompt_is_plain_text(bpe: Tokenizer) -> None:
    assert bpe.encode_with_masks("<|endoftext|>") == bpe.encode("<|endoftext|>").tolist()


def test_byte_characters_are_those_of_the_tokenizers_library() -> None:
    assert set(byte_characters()) == set(pre_tokenizers.ByteLevel.alphabet())
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for text in ("ÿ~!\x00 \n\x7f\xa0\xad", "日本"):
        [(characters, _)] = split.pre_tokenize_str(text)
        assert characters == "".join(byte_characters()[byte] for byte in text.encode())


def test_the_mask_token_of_gpt2_is_after_its_last_id(gpt2_vocabulary: None) -> None:
    gpt2 = Tokenizer.from_tiktoken("gpt2")
    assert (gpt2.name, gpt2.vocab_size, gpt2.end_id, gpt2.mask_id) == ("gpt2", 50258, 50256, 50257)


def test_gpt2_encodes_as_tiktoken_does(gpt2_vocabulary: None) -> None:
    gpt2, reference = Tokenizer.from_tiktoken("gpt2"), tiktoken.get_encoding("gpt2")
    for text in [SAMPLE, *HARD_TEXTS.values(), *random_texts()]:
        assert gpt2.encode(text).tolist() == reference.encode_ordinary(text)


def test_an_unknown_tokenizer_is_refused_with_a_list_of_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"no tokenizer 'gpt5'.*gpt2.*cl100k_base.*bpe"):
        Tokenizer.from_tiktoken("gpt5")


def check_saved(tokenizer: Tokenizer, folder: Path) -> None:
    """Check that a tokenizer is the same after saving and loading."""
    tokenizer.save(folder)
    loaded = Tokenizer.load(folder)
    assert (loaded.name, loaded.pattern) == (tokenizer.name, tokenizer.pattern)
    assert (loaded.ranks, loaded.special_tokens) == (tokenizer.ranks, tokenizer.special_tokens)
    for text in [SAMPLE, *HARD_TEXTS.values()]:
        assert loaded.encode(text).tolist() == tokenizer.encode(text).tolist()


def without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Make the test fail if it uses the network or a cached vocabulary."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "empty"))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(tiktoken, "get_encoding", refuse)


def test_training_saving_and_loading_need_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_network(monkeypatch, tmp_path)
    check_saved(Tokenizer.train_bpe([SAMPLE], 400), tmp_path / "tokenizer")


def test_a_saved_gpt2_tokenizer_needs_no_network(
    gpt2_vocabulary: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpt2 = Tokenizer.from_tiktoken("gpt2")
    without_network(monkeypatch, tmp_path)
    check_saved(gpt2, tmp_path / "tokenizer")


def test_ranks_are_saved_in_the_format_of_tiktoken(
    bpe: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")  # otherwise, tiktoken caches the file
    bpe.save(tmp_path)
    assert load_tiktoken_bpe(str(tmp_path / RANKS_FILE)) == bpe.ranks
    lines = (tmp_path / RANKS_FILE).read_text(encoding="ascii").splitlines()
    assert [line.split()[1] for line in lines] == [str(rank) for rank in range(298)]
    assert base64.b64decode(lines[0].split()[0]) == b"!"
    parts = json.loads((tmp_path / ENCODING_FILE).read_text(encoding="utf-8"))
    assert parts["special_tokens"] == {"<|endoftext|>": 298, "[MASK]": 299}


DAMAGES: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "no ranks": (RANKS_FILE, lambda content: b""),
    "ranks truncated between lines": (RANKS_FILE, lambda content: b"".join(content.splitlines(keepends=True)[:150])),
    "last rank missing": (RANKS_FILE, lambda content: b"".join(content.splitlines(keepends=True)[:-1])),
    "ranks truncated within a number": (RANKS_FILE, lambda content: content[: content.index(b" 155\n") + 2]),
    "ranks truncated within a token": (RANKS_FILE, lambda content: content[: content.index(b" 155\n") - 1]),
    "a duplicate rank": (RANKS_FILE, lambda content: content.replace(b" 5\n", b" 6\n")),
    "a negative rank": (RANKS_FILE, lambda content: content.replace(b" 5\n", b" -5\n")),
    "a duplicate token": (RANKS_FILE, lambda content: content.replace(b"IQ== 0\n", b"Ig== 0\n")),
    "a token that is not base64": (RANKS_FILE, lambda content: content.replace(b"IQ== 0\n", b"I?== 0\n")),
    "binary garbage": (RANKS_FILE, lambda content: bytes(range(256)) + content),
    "an empty description": (ENCODING_FILE, lambda content: b""),
    "a truncated description": (ENCODING_FILE, lambda content: content[: len(content) // 2]),
    "a description of something else": (ENCODING_FILE, lambda content: b"[1, 2]"),
    "an invalid pattern": (ENCODING_FILE, lambda content: content.replace(b"'(?:", b"'((?:")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_a_user_error(bpe: Tokenizer, tmp_path: Path, damage: str) -> None:
    bpe.save(tmp_path)
    name, change = DAMAGES[damage]
    before = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(change(before))
    assert (tmp_path / name).read_bytes() != before
    with pytest.raises(UserError, match="damaged") as caught:
        Tokenizer.load(tmp_path, advice="the advice")
    assert str(caught.value).endswith("): the advice")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (ENCODING_FILE, b"{}", "a value in encoding.json is missing or has the wrong type"),
        (ENCODING_FILE, b"[]", "a value in encoding.json is missing or has the wrong type"),
        (ENCODING_FILE, b"{\n  x", "it is not JSON at line 2, column 3"),
        (ENCODING_FILE, b"\xff", "it is not UTF-8 at byte 0"),
        (RANKS_FILE, b"IQ== 0", "the SHA-256 of ranks.tiktoken is not the one in encoding.json"),
    ],
)
def test_the_reason_of_a_damage_is_in_plain_words(
    bpe: Tokenizer, tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    bpe.save(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(f"{tmp_path}: the tokenizer is damaged ({reason}): restore a copy")):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("content", [b"rubbish\n", b"IQ== x\n", b"I 0\n"])
def test_ranks_in_another_format_are_a_value_error(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"ranks\.tiktoken is not in tiktoken's format"):
        parse_ranks(content)


@pytest.mark.parametrize("name", [RANKS_FILE, ENCODING_FILE])
def test_a_missing_file_is_a_user_error(bpe: Tokenizer, tmp_path: Path, name: str) -> None:
    bpe.save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"{name}: No such file"):
        Tokenizer.load(tmp_path)


def test_ids_without_text_are_special_or_gaps() -> None:
    ranks = {bytes([byte]): byte for byte in range(256)}
    tokenizer = Tokenizer.build("gaps", GPT2_PATTERN, ranks, {"<|endoftext|>": 258, "<|other|>": 259, "[MASK]": 262})
    assert tokenizer.ids_without_text == [256, 257, 258, 259, 260, 261, 262]


@pytest.mark.parametrize("special_tokens", [{"[MASK]": 299}, {"<|endoftext|>": 298}, []])
def test_a_tokenizer_without_its_special_tokens_is_damaged(
    bpe: Tokenizer, tmp_path: Path, special_tokens: object
) -> None:
    bpe.save(tmp_path)
    parts = json.loads((tmp_path / ENCODING_FILE).read_text())
    (tmp_path / ENCODING_FILE).write_text(json.dumps(parts | {"special_tokens": special_tokens}))
    with pytest.raises(UserError, match="is damaged"):
        Tokenizer.load(tmp_path)


@pytest.mark.usefixtures("kept_handlers")
def test_an_interrupt_ends_work_that_ignores_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore SIGINT
    begun, may_end, ended = threading.Event(), threading.Event(), threading.Event()
    main_thread = threading.get_ident()

    def work() -> None:
        begun.set()
        may_end.wait()
        ended.set()

    def interrupt() -> None:
        begun.wait()
        signal.pthread_kill(main_thread, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        run_interruptibly(work)
    assert not ended.is_set()
    may_end.set()


def byte_ranks(**changes: int | None) -> dict[bytes, int]:
    """Ranks of single bytes with changes; None removes a byte."""
    changed = {key.encode(): rank for key, rank in changes.items()}
    return {token: rank for token, rank in ({bytes([b]): b for b in range(256)} | changed).items() if rank is not None}


@pytest.mark.parametrize(
    ("ranks", "special_tokens"),
    [
        (byte_ranks(a=98), {}),  # the rank of b
        (byte_ranks(a=None), {}),
        (byte_ranks(a=-1), {}),
        (byte_ranks(a=10**30), {}),
        (byte_ranks(), {MASK: 256}),
        (byte_ranks(), {MASK: 97}),
        (byte_ranks(), {MASK: -1}),
        (byte_ranks(), {MASK: 2**31}),
        (byte_ranks(), {MASK: 10**30}),
        (byte_ranks(), {MASK: 257.0}),
        (byte_ranks(), {MASK: "257"}),
        (byte_ranks(), {"more": None}),
    ],
    ids=str,
)
def test_ids_that_would_crash_tiktoken_or_exhaust_memory_are_refused(
    tmp_path: Path, ranks: dict[bytes, int], special_tokens: dict[str, object]
) -> None:
    content = b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items())
    (tmp_path / RANKS_FILE).write_bytes(content)
    parts = {
        "name": "bytes",
        "pattern": GPT2_PATTERN,
        "special_tokens": {"<|endoftext|>": 256, MASK: 257} | special_tokens,
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    (tmp_path / ENCODING_FILE).write_text(json.dumps(parts))
    with pytest.raises(UserError, match="damaged"):
        Tokenizer.load(tmp_path)
