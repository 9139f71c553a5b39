"""Finding texts, and reading them in pieces that give the same tokens as the whole text."""

import functools
import itertools
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import tiktoken
import tiktoken_ext.openai_public  # type: ignore[import-untyped]
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from mlm_dist.data.preparation import SAMPLE_TEXT
from mlm_dist.data.splitting import hold_out
from mlm_dist.data.texts import Document, find_documents, read_pieces
from mlm_dist.data.tokenizer import GPT2_PATTERN, byte_characters
from mlm_dist.errors import UserError

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


def piece_bytes_for(text: str) -> int:
    """The smallest piece size for which no token of a text is split."""
    cuts = [0, *(match.start() for match in SAFE_CUT.finditer(text)), len(text)]
    return max(after - before for before, after in itertools.pairwise(cuts)) + 1


def document(path: Path, content: str | bytes, val_fraction: float = 0.0) -> Document:
    """Write a file and describe it."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    size = path.stat().st_size
    return Document(path.name, path, size, round(size * (1 - val_fraction)))


def read(document: Document, piece_bytes: int, encoding: str = "utf-8") -> str:
    return "".join(piece.text for piece in read_pieces(document, encoding, piece_bytes))


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


def check_tokens(document: Document, text: str, piece_bytes: int, encoding: tiktoken.Encoding) -> None:
    """Check that the pieces of a document, encoded separately, give the tokens of the whole text."""
    pieces = list(read_pieces(document, piece_bytes=piece_bytes))
    assert "".join(piece.text for piece in pieces) == text
    splits = [piece.split for piece in pieces]
    assert splits == sorted(splits)  # train, then val
    ids = [token for piece in pieces for token in encoding.encode_ordinary(piece.text)]
    assert ids == encoding.encode_ordinary(text), (text, piece_bytes, [piece.text for piece in pieces])


@pytest.mark.parametrize("text", HARD_TEXTS.values(), ids=HARD_TEXTS.keys())
def test_pieces_of_hard_texts_have_the_tokens_of_the_whole(
    text: str, encoding: tiktoken.Encoding, tmp_path: Path
) -> None:
    smallest = piece_bytes_for(text)
    for piece_bytes in (smallest, smallest + 1, smallest + 7, 3 * smallest, 1 << 18):
        for val_fraction in (0.0, 0.05, 0.5, 0.9, 1.0):
            check_tokens(document(tmp_path / "hard.txt", text, val_fraction), text, piece_bytes, encoding)


def test_pieces_of_random_texts_have_the_tokens_of_the_whole(encoding: tiktoken.Encoding, tmp_path: Path) -> None:
    rng = random.Random(2)
    for _ in range(150):
        text = random_text(rng, rng.randint(1, 200))
        text = text.removeprefix("\ufeff")
        file = document(tmp_path / "random.txt", text, rng.choice([0.0, 0.05, 0.3, 0.7, 1.0]))
        check_tokens(file, text, max(8, piece_bytes_for(text)), encoding)


def test_pieces_of_a_novel_have_the_tokens_of_the_whole(encoding: tiktoken.Encoding) -> None:
    [sample] = hold_out(find_documents([SAMPLE_TEXT]), 0.1)
    check_tokens(sample, SAMPLE_TEXT.read_text(encoding="utf-8"), 500, encoding)


@pytest.mark.parametrize("piece_bytes", [8, 64, 1000])
def test_pieces_are_bounded_and_complete_even_without_safe_cuts(tmp_path: Path, piece_bytes: int) -> None:
    for text in ("x" * 5000, " " * 5000, "文" * 5000, "👍" * 5000, "-" * 4999 + "a b", "a " * 2500):
        pieces = [piece.text for piece in read_pieces(document(tmp_path / "long.txt", text), piece_bytes=piece_bytes)]
        assert "".join(pieces) == text
        assert max(map(len, pieces)) <= 2 * piece_bytes


@pytest.mark.parametrize("text", HARD_TEXTS.values(), ids=HARD_TEXTS.keys())
def test_validation_text_starts_no_later_than_at_the_first_safe_cut_after_val_start(text: str, tmp_path: Path) -> None:
    cuts = [match.start() for match in SAFE_CUT.finditer(text)]
    for val_fraction in (0.1, 0.5, 0.9):
        file = document(tmp_path / "text.txt", text, val_fraction)
        allowed = [cut for cut in cuts if len(text[:cut].encode()) >= file.val_start]
        for piece_bytes in (piece_bytes_for(text), 1 << 18):
            train = "".join(p.text for p in read_pieces(file, piece_bytes=piece_bytes) if p.split == "train")
            assert file.val_start <= len(train.encode())
            assert len(train) <= min(allowed, default=len(text))


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\n\n", "\n\u3000"], ids=["plain", "windows", "blank", "indented"])
def test_the_end_is_validation_text_in_scripts_without_spaces(
    line_end: str, encoding: tiktoken.Encoding, tmp_path: Path
) -> None:
    # Such texts have Windows newlines, blank lines between paragraphs, or indented paragraphs.
    text = f"吾輩は猫である。名前はまだ無い。{line_end}" * 100
    file = document(tmp_path / "cat.txt", text, 0.5)
    val = "".join(p.text for p in read_pieces(file) if p.split == "val")
    assert 0.45 < len(val) / len(text) <= 0.5
    check_tokens(file, text, 200, encoding)


def test_a_document_can_be_in_one_split_only(tmp_path: Path) -> None:
    whole = document(tmp_path / "val.txt", "some validation words\n", val_fraction=1.0)
    assert {piece.split for piece in read_pieces(whole, piece_bytes=8)} == {"val"}
    none = document(tmp_path / "train.txt", "some training words\n", val_fraction=0.0)
    assert {piece.split for piece in read_pieces(none, piece_bytes=8)} == {"train"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize("piece_bytes", [8, 9, 11, 1000])
def test_characters_across_block_boundaries_are_decoded(tmp_path: Path, encoding: str, piece_bytes: int) -> None:
    text = "añ文👍 b" * 50
    for val_fraction in (0.0, 0.33, 0.5):
        file = document(tmp_path / "text.txt", text.encode(encoding), val_fraction)
        assert read(file, piece_bytes, encoding) == text


@pytest.mark.parametrize("val_start", range(6))
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path: Path, val_start: int, encoding: str) -> None:
    mark = "" if encoding == "utf-16" else "\ufeff"  # Python's utf-16 codec writes the mark itself
    path = tmp_path / "bom.txt"
    path.write_bytes(f"{mark}Hello \ufeff there".encode(encoding.removesuffix("-sig")))
    file = Document("bom.txt", path, path.stat().st_size, val_start)
    assert read(file, 8, encoding) == "Hello \ufeff there"


def test_half_a_surrogate_pair_is_not_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"odd\.txt: not utf-7 at byte 0 "):
        read(document(tmp_path / "odd.txt", b"fine +2D0- fine"), 100, "utf-7")


@pytest.mark.parametrize("piece_bytes", [8, 100, 1 << 18])
@pytest.mark.parametrize(
    ("content", "byte"),
    [
        (b"\xff", 0),
        (b"fine so far \xe9t\xe9", 12),
        ("ä文👍 ".encode() * 100 + b"\x80 more", 1000),
        ("文".encode() * 100 + b"\xe6\x96 cut in the middle", 300),
        (b"cut at the end " * 10 + "👍".encode()[:3], 150),
        (b"surrogate \xed\xa0\x80", 10),
    ],
)
def test_invalid_utf8_is_reported_with_its_byte_offset(
    tmp_path: Path, content: bytes, byte: int, piece_bytes: int
) -> None:
    for val_fraction in (0.0, 0.4):
        with pytest.raises(UserError, match=rf"odd\.txt: not utf-8 at byte {byte} "):
            read(document(tmp_path / "odd.txt", content, val_fraction), piece_bytes)


def test_a_file_in_another_encoding_can_be_read(tmp_path: Path) -> None:
    text = "fine so far été\n"
    assert read(document(tmp_path / "odd.txt", text.encode("latin-1")), 8, "latin-1") == text


@pytest.mark.parametrize("encoding", ["nonsense", "", "rot13", "hex", "base64", "undefined"])
def test_an_unknown_text_encoding_is_a_user_error(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(UserError, match=f"'{encoding}' is not a text encoding"):
        read(document(tmp_path / "text.txt", "some text"), 8, encoding)


def test_utf16_without_a_byte_order_mark_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"text\.txt: not utf-16"):
        read(document(tmp_path / "text.txt", "some text".encode("utf-16-le")), 8, "utf-16")


def test_a_file_that_disappears_is_a_user_error(tmp_path: Path) -> None:
    file = document(tmp_path / "gone.txt", "some text")
    file.path.unlink()
    with pytest.raises(UserError, match=r"gone\.txt: No such file"):
        read(file, 8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """texts/{a.txt, b.txt, b/c.txt, b/d/e.txt, notes.md}, 100 bytes each."""
    for name in ("b.txt", "a.txt", "b/d/e.txt", "b/c.txt", "notes.md"):
        path = tmp_path / "texts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"0123456789" * 10)
    return tmp_path / "texts"


def names(documents: list[Document]) -> list[str]:
    return [document.name for document in documents]


def test_the_txt_files_of_a_folder_are_found_in_a_fixed_order(folder: Path) -> None:
    assert names(find_documents([folder])) == ["a.txt", "b/c.txt", "b/d/e.txt", "b.txt"]


def test_given_files_may_have_any_name_and_keep_their_order(folder: Path) -> None:
    found = find_documents([folder / "notes.md", folder / "b", folder / "a.txt"])
    assert names(found) == ["notes.md", "c.txt", "d/e.txt", "a.txt"]


def test_a_file_given_twice_is_read_once(folder: Path) -> None:
    found = find_documents([folder / "a.txt", folder, folder / "b" / ".." / "a.txt"])
    assert names(found) == ["a.txt", "b/c.txt", "b/d/e.txt", "b.txt"]


def test_without_val_paths_there_is_no_validation_text(folder: Path) -> None:
    assert [(d.size, d.val_start) for d in find_documents([folder])] == [(100, 100)] * 4


def test_val_paths_are_validation_text_as_a_whole(folder: Path) -> None:
    found = find_documents([folder], [folder / "b"])
    assert {d.name: d.val_start for d in found} == {"a.txt": 100, "b/c.txt": 0, "b/d/e.txt": 0, "b.txt": 100}


def test_val_paths_need_not_be_among_the_other_paths(folder: Path) -> None:
    found = find_documents([folder / "b"], [folder / "a.txt"])
    assert {d.name: d.val_start for d in found} == {"c.txt": 100, "d/e.txt": 100, "a.txt": 0}


def test_an_empty_file_in_a_folder_is_skipped_with_a_warning(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "a.txt").write_bytes(b"")
    assert names(find_documents([folder])) == ["b/c.txt", "b/d/e.txt", "b.txt"]
    assert f"skipped {folder / 'a.txt'}: it is empty" in capsys.readouterr().err


def test_skipped_files_of_a_folder_are_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("b/more.md", "LICENSE", ".DS_Store", ".git/config", "b/page.html"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"text")
    find_documents([folder])
    message = f"mlm_dist: {folder}: skipped 4 files that are not *.txt (2 .md, 1 without a suffix, 1 .html)\n"
    assert capsys.readouterr().err == message
    find_documents([folder / "b" / "d"])
    assert capsys.readouterr().err == ""


def no_such_path(folder: Path) -> list[Path]:
    return [folder, folder / "missing.txt"]


def an_empty_file(folder: Path) -> list[Path]:
    (folder / "empty.txt").write_bytes(b"")
    return [folder, folder / "empty.txt"]


def a_folder_without_texts(folder: Path) -> list[Path]:
    (folder / "none").mkdir()
    (folder / "none" / "notes.md").write_bytes(b"text")
    return [folder / "none"]


def a_file_name_that_is_too_long(folder: Path) -> list[Path]:
    return [folder / ("x" * 300)]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (no_such_path, r"missing\.txt: there is no such file or folder"),
        (an_empty_file, r"empty\.txt: the file is empty"),
        (a_folder_without_texts, r"no text in .*none"),
        (a_file_name_that_is_too_long, r"xxx"),
    ],
)
def test_paths_without_text_are_a_user_error(folder: Path, paths: Callable[[Path], list[Path]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_documents(paths(folder))
