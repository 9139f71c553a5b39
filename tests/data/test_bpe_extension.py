"""An extended tokenizer continues the training of its base, and keeps every id of it."""

import dataclasses
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiktoken.load import load_tiktoken_bpe

from mlm_dist.data import bpe_extension
from mlm_dist.data.bpe_extension import extend_bpe
from mlm_dist.data.preparation import SAMPLE_TEXT
from mlm_dist.data.tokenizer import END_OF_TEXT, GPT2_PATTERN, MASK, RANKS_FILE, Tokenizer
from mlm_dist.errors import UserError
from tests.data.test_tokenizer import RUNS, check_saved
from tests.texts.test_pieces import HARD_TEXTS, pattern_of, ranks_across_words

SAMPLE = SAMPLE_TEXT.read_text(encoding="utf-8")
TEXTS = [SAMPLE[: len(SAMPLE) // 2], RUNS, *HARD_TEXTS.values()]


@pytest.fixture(scope="module")
def base() -> Tokenizer:
    return Tokenizer.train_bpe(TEXTS, 500)


@pytest.fixture(scope="module")
def extended(base: Tokenizer) -> Tokenizer:
    return extend_bpe(base, TEXTS, 300)


@pytest.mark.parametrize(("size", "count"), [(258, 400), (300, 1), (700, 700)])
def test_an_extension_learns_what_longer_training_learns(size: int, count: int) -> None:
    shorter, longer = (Tokenizer.train_bpe(TEXTS, vocab_size) for vocab_size in (size, size + count))
    assert list(extend_bpe(shorter, TEXTS, count).ranks) == list(longer.ranks)


def test_old_tokens_keep_their_ids_and_new_ones_come_after_the_last(base: Tokenizer, extended: Tokenizer) -> None:
    assert (extended.name, extended.vocab_size, extended.added_tokens) == ("bpe+300", 800, 300)
    assert (extended.end_id, extended.mask_id) == (base.end_id, base.mask_id) == (498, 499)
    assert list(extended.ranks.values()) == [*range(498), *range(500, 800)]
    assert list(extended.ranks.items())[:498] == list(base.ranks.items())
    assert extended.ids_without_text == [498, 499]


def test_a_text_is_encoded_with_the_learned_tokens(base: Tokenizer, extended: Tokenizer) -> None:
    used = {token for text in TEXTS for token in extended.encode(text).tolist()}
    assert len(used & set(range(500, 800))) > 200  # the others are parts of later ones
    for text in [*TEXTS, SAMPLE]:
        ids = extended.encode(text).tolist()
        assert extended.decode(ids) == text
        pieces = extended.pieces_of_new(base)
        assert [piece for token in ids for piece in pieces.get(token, [token])] == base.encode(text).tolist()
    assert extended.encode_with_masks("a [MASK]")[-1] == base.mask_id


def test_every_new_token_is_two_tokens_before_it(base: Tokenizer, extended: Tokenizer) -> None:
    pieces = extended.pieces_of_new(base)
    assert pieces.keys() == set(range(500, 800))
    spelled = {(token,): token for token in base.ranks.values()} | {tuple(ids): new for new, ids in pieces.items()}
    for new, ids in pieces.items():
        pairs = [(spelled.get(tuple(ids[:cut])), spelled.get(tuple(ids[cut:]))) for cut in range(1, len(ids))]
        assert any(left is not None and right is not None and max(left, right) < new for left, right in pairs)


def test_saving_and_loading_keep_an_extended_tokenizer(
    extended: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")  # otherwise, tiktoken caches the file
    check_saved(extended, tmp_path)
    assert load_tiktoken_bpe(str(tmp_path / RANKS_FILE)) == extended.ranks


def test_an_extension_can_be_extended(base: Tokenizer, extended: Tokenizer) -> None:
    again = extend_bpe(extended, TEXTS, 50)
    assert (again.name, again.vocab_size, again.added_tokens) == ("bpe+300+50", 850, 350)
    assert again.ranks == extend_bpe(base, TEXTS, 350).ranks
    assert again.extends(extended) and again.extends(base)


def test_an_extension_is_deterministic(base: Tokenizer, extended: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpe_extension, "CACHED_WORDS", 2)
    assert extend_bpe(base, iter(TEXTS), 300).fingerprint == extended.fingerprint


@pytest.mark.usefixtures("kept_handlers")
def test_an_interrupt_ends_the_learning_at_once(base: Tokenizer) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore SIGINT
    main_thread, may_end, ended = threading.get_ident(), threading.Event(), threading.Event()

    def texts() -> Iterator[str]:
        yield SAMPLE
        signal.pthread_kill(main_thread, signal.SIGINT)
        may_end.wait(20)
        ended.set()

    with pytest.raises(KeyboardInterrupt):
        extend_bpe(base, texts(), 1)
    assert not ended.is_set()
    may_end.set()


def test_short_texts_give_fewer_tokens(base: Tokenizer) -> None:
    fewer = extend_bpe(base, ["qxqx qxqx"], 100)
    assert [token for token in fewer.ranks if token not in base.ranks] == [b"qx", b"qxqx", b" qxqx"]
    assert extend_bpe(base, [], 100).fingerprint == base.fingerprint


@pytest.mark.parametrize("name", ["gpt2", "cl100k_base", "o200k_base"])
def test_tokens_of_any_pattern_and_ids_with_gaps_can_be_extended(name: str) -> None:
    special_tokens = {END_OF_TEXT: 3001, "<|other|>": 3007, MASK: 3010}
    base = Tokenizer.build(name, pattern_of(name), ranks_across_words(), special_tokens)
    extended = extend_bpe(base, [SAMPLE], 100)
    assert set(extended.pieces_of_new(base)) == set(range(3011, 3111))
    assert len(extended.encode(SAMPLE)) < len(base.encode(SAMPLE))


def test_a_token_that_the_base_has_but_never_merges_is_not_added_again() -> None:
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"xyz": 256}
    base = Tokenizer.build("odd", GPT2_PATTERN, ranks, {END_OF_TEXT: 257, MASK: 258})
    extended = extend_bpe(base, ["xyzw"], 5)
    assert extended.ranks[b"xyz"] == 256
    assert extended.encode("xyzw").tolist() == [extended.ranks[b"xyzw"]]


@pytest.mark.parametrize("count", [0, -1, 1048077, 10**30])
def test_a_count_out_of_bounds_is_refused(base: Tokenizer, count: int) -> None:
    with pytest.raises(UserError, match=rf"^--add_tokens is {count}: it must be from 1 to 1048076$"):
        extend_bpe(base, TEXTS, count)


def test_only_the_same_ids_with_more_tokens_are_an_extension(base: Tokenizer, extended: Tokenizer) -> None:
    assert base.extends(base) and extended.extends(base) and not base.extends(extended)
    swapped = extended.ranks | {b"a": base.ranks[b"b"], b"b": base.ranks[b"a"]}
    others = [
        Tokenizer.build("swapped", base.pattern, swapped, base.special_tokens),
        Tokenizer.train_bpe(TEXTS, 800),  # has all tokens of the base, but other ids for the special ones
        Tokenizer.train_bpe([SAMPLE], 500),
        Tokenizer.build("other", r"\s+|\S+", extended.ranks, extended.special_tokens),
        Tokenizer.build("other", base.pattern, extended.ranks, extended.special_tokens | {"<|other|>": 900}),
    ]
    for other in others:
        assert not other.extends(base)
        with pytest.raises(ValueError, match="does not extend"):
            other.pieces_of_new(base)
    renamed = dataclasses.replace(base, name="another name")
    assert renamed.extends(base)


def test_the_tokens_of_gpt2_can_be_extended(gpt2_vocabulary: None) -> None:
    gpt2 = Tokenizer.from_tiktoken("gpt2")
    extended = extend_bpe(gpt2, [SAMPLE], 20)
    assert list(extended.pieces_of_new(gpt2)) == list(range(50258, 50278))
    assert extended.extends(gpt2)
    ids = extended.encode(SAMPLE)
    assert len(ids) < len(gpt2.encode(SAMPLE)) and extended.decode(ids) == SAMPLE
