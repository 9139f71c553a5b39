"""An exported tokenizer is read back with the same fingerprint, and others are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from mlm_dist.data.preparation import SAMPLE_TEXT
from mlm_dist.data.tokenizer import END_OF_TEXT, MASK, Tokenizer
from mlm_dist.data.tokenizer_json import find_merges, read_exported_tokenizer, to_library
from mlm_dist.errors import UserError
from mlm_dist.huggingface.tokenizer_file import describe_tokenizer
from tests.data.test_tokenizer import RUNS
from tests.texts.test_pieces import pattern_of, ranks_across_words

SAMPLE = SAMPLE_TEXT.read_text(encoding="utf-8")
BYTES = {bytes([byte]): byte for byte in range(256)}
SPECIAL = {END_OF_TEXT: 3001, "<|other|>": 3007, MASK: 3010}  # with gaps between the ids


def with_tokens_across_words(name: str) -> Tokenizer:
    """A tokenizer with the pattern of one of tiktoken's encodings, in which no token is spelled like a special one."""
    ranks = {token: rank for token, rank in ranks_across_words().items() if token not in {s.encode() for s in SPECIAL}}
    return Tokenizer.build(name, pattern_of(name), ranks, SPECIAL)


def write(tokenizer: Tokenizer, folder: Path) -> Path:
    """Write the two files of an exported tokenizer."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(to_library(tokenizer).to_str(), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(describe_tokenizer(tokenizer, 64)), encoding="utf-8")
    return folder


def change_json(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small exported tokenizer."""
    return write(Tokenizer.train_bpe([SAMPLE], 300), tmp_path / "exported")


def check_refused(folder: Path, message: str) -> None:
    with pytest.raises(UserError) as raised:
        read_exported_tokenizer(folder)
    (line,) = str(raised.value).splitlines()
    assert message in line
    assert line.startswith(str(folder))


@pytest.mark.parametrize("name", ["gpt2", "r50k_base", "p50k_edit", "cl100k_base", "o200k_base", "bpe"])
def test_a_tokenizer_is_read_back(name: str, tmp_path: Path) -> None:
    tokenizer = with_tokens_across_words(name)
    found = read_exported_tokenizer(write(tokenizer, tmp_path / "exported"))
    assert found.fingerprint == tokenizer.fingerprint
    assert (found.name, found.special_tokens) == (name, SPECIAL)


@pytest.mark.parametrize("vocab_size", [258, 300, 2000])
def test_a_trained_vocabulary_is_read_back(vocab_size: int, tmp_path: Path) -> None:
    tokenizer = Tokenizer.train_bpe([SAMPLE, RUNS], vocab_size)
    assert read_exported_tokenizer(write(tokenizer, tmp_path)).fingerprint == tokenizer.fingerprint


@pytest.mark.slow
def test_gpt2s_vocabulary_is_read_back(gpt2_vocabulary: None, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_tiktoken("gpt2")
    found = read_exported_tokenizer(write(tokenizer, tmp_path))
    assert (found.name, found.fingerprint) == ("gpt2", tokenizer.fingerprint)


def test_an_export_of_an_earlier_version_has_the_same_ids(tmp_path: Path) -> None:
    tokenizer = with_tokens_across_words("cl100k_base")
    folder = write(tokenizer, tmp_path)
    change_json(folder / "tokenizer_config.json", lambda c: (c.pop("tiktoken_name"), c.pop("tiktoken_pattern")))
    found = read_exported_tokenizer(folder)
    assert found.name == "exported"
    assert found.fingerprint != tokenizer.fingerprint  # its pattern has lost a possessive count
    for text in (SAMPLE, RUNS, "1 22 333 4444 1234567890"):
        assert found.encode(text).tolist() == tokenizer.encode(text).tolist()


def test_padding_truncation_and_added_special_tokens_are_accepted(folder: Path) -> None:
    file = folder / "tokenizer.json"
    saved = tokenizers.Tokenizer.from_file(str(file))
    saved.enable_padding(pad_token=END_OF_TEXT)
    saved.enable_truncation(16)
    saved.add_special_tokens(["[CLS]"])
    saved.save(str(file))
    assert read_exported_tokenizer(folder).special_tokens == {END_OF_TEXT: 298, MASK: 299, "[CLS]": 300}


def add_token(content: dict[str, Any]) -> None:
    content["added_tokens"].append({**content["added_tokens"][0], "content": "lamp", "id": 300, "special": False})


def without_mask(content: dict[str, Any]) -> None:
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != MASK]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["model"]["merges"].reverse(), "its merges, or other settings of its model"),
        (lambda c: c["model"]["merges"].pop(), "its merges, or other settings of its model"),
        (lambda c: c["model"].update(ignore_merges=False), "its merges, or other settings of its model"),
        (lambda c: c.update(normalizer={"type": "Lowercase"}), "its normalizer is another one"),
        (lambda c: c["pre_tokenizer"]["pretokenizers"].reverse(), "its pre_tokenizer is"),
        (
            lambda c: c["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
            "its pre_tokenizer is",
        ),
        (lambda c: c["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=r"\w+"), "its pre_tokenizer is"),
        (lambda c: c.update(pre_tokenizer=None), "its pre_tokenizer is another one"),
        (add_token, "it has added tokens that are not special"),
        (without_mask, "[MASK] is missing"),
        (lambda c: c["model"].update(type="Strange"), "this is not a tokenizer that `export` wrote"),
    ],
)
def test_a_tokenizer_of_another_kind_is_refused(
    change: Callable[[dict[str, Any]], object], message: str, folder: Path
) -> None:
    change_json(folder / "tokenizer.json", change)
    check_refused(folder, message)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tiktoken_pattern", r"\s+|\S+", "its pre_tokenizer is another one"),
        ("tiktoken_pattern", "(", "this is not a tokenizer"),
        ("tiktoken_pattern", ["x"], "a value in it is missing"),
        ("tiktoken_name", 5, "its name in tokenizer_config.json is not a string"),
    ],
)
def test_a_changed_pattern_or_name_is_refused(key: str, value: object, message: str, folder: Path) -> None:
    change_json(folder / "tokenizer_config.json", lambda c: c.update({key: value}))
    check_refused(folder, message)


def test_wordpiece_is_refused(folder: Path) -> None:
    trained = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.pre_tokenizer = pre_tokenizers.Whitespace()
    trained.train_from_iterator([SAMPLE], trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]", MASK]))
    trained.save(str(folder / "tokenizer.json"))
    check_refused(folder, "its model is WordPiece, not BPE")


def test_a_bpe_of_characters_is_refused(folder: Path) -> None:
    trained = tokenizers.Tokenizer(models.BPE())
    trained.train_from_iterator(["日本語 text"], trainers.BpeTrainer(special_tokens=[END_OF_TEXT, MASK]))
    trained.save(str(folder / "tokenizer.json"))
    check_refused(folder, "its tokens are not bytes")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "a list", "not UTF-8", "a folder"])
def test_a_missing_or_damaged_file_is_refused(name: str, damage: str, folder: Path) -> None:
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    if damage == "a folder":
        (folder / name).mkdir()
    elif damage != "missing":
        damaged = {"truncated": content[: len(content) // 2], "a list": b"[]", "not UTF-8": b"\xff" + content}[damage]
        (folder / name).write_bytes(damaged)
    message = (
        "save the tokenizer in the folder of the model" if damage in ("missing", "a folder") else "not a tokenizer"
    )
    check_refused(folder, message)


def test_merges_are_ordered_by_the_rank_of_their_result() -> None:
    ranks = BYTES | {b"bc": 256, b"ab": 257, b"abc": 258, b"bcd": 259}
    assert list(find_merges(ranks)) == [(b"b", b"c"), (b"a", b"b"), (b"a", b"bc"), (b"ab", b"c"), (b"bc", b"d")]
