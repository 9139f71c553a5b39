"""The same texts give the same corpus in every encoding and format, and a file that is broken is named."""

import io
import itertools
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from mlm_dist.data.preparation import SAMPLE_TEXT, prepare_corpus
from mlm_dist.data.splitting import hold_out
from mlm_dist.errors import UserError
from mlm_dist.texts.document_list import find_documents
from mlm_dist.texts.finding import find_files
from mlm_dist.texts.pieces import Piece
from mlm_dist.texts.reading import Reading, read_documents
from mlm_dist.texts.records import BrokenRecords


@pytest.fixture(params=[8, 9, 11, 1000, 1 << 18])
def block_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The size of the blocks in which files are read."""
    monkeypatch.setattr("mlm_dist.texts.reading.BLOCK_BYTES", request.param)
    return int(request.param)


def texts_of(path: Path, **options: Any) -> list[str]:
    """The texts of the documents of a file."""
    documents = find_documents([path], reading=Reading(**options))
    pieces = list(documents.pieces())
    return ["".join(p.text for _, p in group) for _, group in itertools.groupby(pieces, key=lambda p: p.document)]


def text_of(path: Path, content: str | bytes, **options: Any) -> str:
    """The text of a file with this content."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    [text] = texts_of(path, **options)
    return text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-32", "utf-8-sig"])
def test_characters_across_block_boundaries_are_decoded(tmp_path: Path, encoding: str, block_bytes: int) -> None:
    text = "añ文👍 b" * 50
    assert text_of(tmp_path / "text.txt", text.encode(encoding), encoding=encoding) == text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path: Path, encoding: str, block_bytes: int) -> None:
    mark = "" if encoding == "utf-16" else "\ufeff"  # Python's utf-16 codec writes the mark itself
    content = f"{mark}Hello \ufeff there".encode(encoding.removesuffix("-sig"))
    assert text_of(tmp_path / "bom.txt", content, encoding=encoding) == "Hello \ufeff there"


def test_half_a_surrogate_pair_is_not_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"odd\.txt: not utf-7 at byte 0 "):
        text_of(tmp_path / "odd.txt", b"fine +2D0- fine", encoding="utf-7")


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
    tmp_path: Path, content: bytes, byte: int, block_bytes: int
) -> None:
    with pytest.raises(UserError, match=rf"odd\.txt: not utf-8 at byte {byte} "):
        text_of(tmp_path / "odd.txt", content)


def test_a_file_in_another_encoding_can_be_read(tmp_path: Path) -> None:
    text = "fine so far été\n"
    assert text_of(tmp_path / "odd.txt", text.encode("latin-1"), encoding="latin-1") == text


@pytest.mark.parametrize("encoding", ["nonsense", "", "rot13", "hex", "base64", "undefined"])
def test_an_unknown_text_encoding_is_a_user_error(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(UserError, match=f"'{encoding}' is not a text encoding"):
        text_of(tmp_path / "text.txt", "some text", encoding=encoding)


def test_utf16_without_a_byte_order_mark_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"text\.txt: not utf-16"):
        text_of(tmp_path / "text.txt", "some text".encode("utf-16-le"), encoding="utf-16")


def test_a_file_that_disappears_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "gone.txt").write_text("some text", encoding="utf-8")
    documents = find_documents([tmp_path])
    (tmp_path / "gone.txt").unlink()
    with pytest.raises(UserError, match=r"gone\.txt: No such file"):
        list(documents.pieces())


# One is long enough to lose its end to the validation split.
NOVEL = SAMPLE_TEXT.read_text(encoding="utf-8")
TEXTS = [
    *NOVEL.split("\n\n")[:60],
    NOVEL,
    'A "quote", a\ttab and\r\na line: né 👍',
    "a <|endoftext|> b",
    " ",
    "\n",
    "end\n",
]
FORMATS = ["jsonl", "ndjson", "csv", "tsv", "parquet", "arrow"]


def write(texts: list[str], path: Path) -> Path:
    """Write texts as other programs do: pandas, pyarrow, and the commands gzip and zstd."""
    plain = path.with_suffix("") if path.suffix in (".gz", ".zst") else path
    frame = pd.DataFrame({"id": range(len(texts)), "text": texts})
    match plain.suffix:
        case ".jsonl":
            frame.to_json(plain, orient="records", lines=True)  # with escapes
        case ".ndjson":
            frame.to_json(plain, orient="records", lines=True, force_ascii=False)
        case ".csv" | ".tsv":
            frame.to_csv(plain, sep="," if plain.suffix == ".csv" else "\t", index=False)
        case ".parquet":
            frame.to_parquet(plain, row_group_size=7)
        case ".arrow":
            with pa.OSFile(str(plain), "wb") as file, pa.ipc.new_stream(file, pa.Schema.from_pandas(frame)) as writer:
                writer.write_table(pa.Table.from_pandas(frame), max_chunksize=7)
        case ".txt":
            plain.write_bytes(texts[0].encode())
    if plain != path:
        command = "gzip" if path.suffix == ".gz" else "zstd"
        if not shutil.which(command):
            pytest.skip(f"needs {command}")
        subprocess.run([command, "-q", str(plain)], check=True)
        plain.unlink(missing_ok=True)  # zstd keeps it
    return path


def digests(paths: list[Path], out: Path, **options: Any) -> dict[str, str]:
    """The digests of the tokens of a corpus of these paths."""
    documents = hold_out(find_documents(paths, reading=Reading(**options)), 0.1)
    sha256 = prepare_corpus(documents, out, "bpe", vocab_size=300).sha256
    return {split: sha256[split] for split in ("train", "val")}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The digests of a corpus of the texts, a file for each."""
    folder = tmp_path_factory.mktemp("expected")
    (folder / "texts").mkdir()
    for index, text in enumerate(TEXTS):
        write([text], folder / "texts" / f"{index:04}.txt")
    return digests([folder / "texts"], folder / "out")


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("suffix", FORMATS)
def test_the_same_texts_give_the_same_corpus_in_every_format(
    suffix: str, compression: str, expected: dict[str, str], tmp_path: Path
) -> None:
    path = write(TEXTS, tmp_path / f"texts.{suffix}{compression}")
    assert digests([path], tmp_path / "out") == expected
    names = (tmp_path / "out" / "documents.names").read_text(encoding="utf-8").splitlines()
    assert names[0] == f"texts.{suffix}{compression}:{2 if suffix in ('csv', 'tsv') else 1}"


@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_compressed_plain_texts_give_the_same_corpus(
    compression: str, expected: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "texts").mkdir()
    for index, text in enumerate(TEXTS):
        suffix = compression if index % 9 == 0 else ""
        write([text], tmp_path / "texts" / f"{index:04}.txt{suffix}")
    assert digests([tmp_path / "texts"], tmp_path / "out") == expected


def test_a_folder_and_a_pattern_may_have_several_formats(expected: dict[str, str], tmp_path: Path) -> None:
    for index, suffix in enumerate(FORMATS):
        folder = tmp_path / "texts" / str(index)
        folder.mkdir(parents=True)
        part = slice(len(TEXTS) * index // len(FORMATS), len(TEXTS) * (index + 1) // len(FORMATS))
        write(TEXTS[part], folder / f"part.{suffix}")
    assert digests([tmp_path / "texts"], tmp_path / "folder") == expected
    assert digests([tmp_path / "texts" / "**" / "*.*"], tmp_path / "pattern") == expected


@pytest.mark.parametrize("suffix", ["jsonl", "tsv", "csv.gz", "parquet", "arrow.zst", "jsonl.gz"])
def test_standard_input_may_have_any_format(
    suffix: str, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with write(TEXTS, tmp_path / f"texts.{suffix}").open("rb") as file:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(file))
        assert digests([Path("-")], tmp_path / "out") == expected


def test_each_line_of_a_plain_text_may_be_a_document(tmp_path: Path, block_bytes: int) -> None:
    long = "a long line " * 100
    (tmp_path / "lines.txt").write_bytes(f"one\r\n\n  \ntwo\n{long}\n three\r\n\r\nfour".encode())
    assert texts_of(tmp_path / "lines.txt", split="line") == ["one", "two", long, " three", "four"]
    documents = find_documents([tmp_path], reading=Reading(split="line"))
    assert list(documents.names()) == [f"lines.txt:{line}" for line in (1, 4, 5, 6, 8)]


def test_records_without_text_are_no_documents(tmp_path: Path) -> None:
    for suffix in ("jsonl", "csv", "parquet"):
        path = write(["one", "", "two"], tmp_path / f"a.{suffix}")
        assert texts_of(path) == ["one", "two"]
    (tmp_path / "null.jsonl").write_text('{"text": null}\n\n{"text": "one"}\n', encoding="utf-8")
    assert texts_of(tmp_path / "null.jsonl") == ["one"]
    pd.DataFrame({"text": ["one", None]}).to_parquet(tmp_path / "null.parquet")
    assert texts_of(tmp_path / "null.parquet") == ["one"]


def test_a_folder_that_datasets_saved_is_read_and_its_validation_split_held_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Written by `DatasetDict.save_to_disk` of datasets 5.2.
    saved = Path(__file__).with_name("saved_by_datasets")
    texts = [f"Saved text number {number}, with a é and a line\nbreak." for number in range(6)]
    documents = find_documents([saved])
    assert [piece for _, piece in documents.pieces()] == [
        *(Piece("train", text, is_last=True) for text in texts),
        *(Piece("val", text, is_last=True) for text in texts[:2]),
    ]
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mlm_dist: {saved / 'test'}: left out, because it is the test split of a DatasetDict")
    assert texts_of(saved / "test") == texts[2:3]


def test_a_file_that_changes_while_it_is_read_is_a_user_error(tmp_path: Path) -> None:
    for changed in (["one"], ["one", "two", "three"]):
        documents = find_documents([write(["one", "two"], tmp_path / "a.jsonl")])
        write(changed, tmp_path / "a.jsonl")
        with pytest.raises(UserError, match=r"a\.jsonl: it has changed while it was read"):
            list(documents.pieces())


@pytest.mark.parametrize("suffix", ["txt", "jsonl.gz", "csv.zst"])
def test_progress_is_counted_in_bytes_of_the_compressed_file(suffix: str, tmp_path: Path) -> None:
    [file] = find_files([write([NOVEL], tmp_path / f"a.{suffix}")])
    sizes: list[int] = []
    for _, parts in read_documents(file, Reading(), BrokenRecords(), sizes.append):
        assert "".join(parts) == NOVEL
    assert sum(sizes) == file.size


DAMAGED = {
    "cut.jsonl.gz": "the file is damaged or cut off",
    "cut.txt.gz": "the file is damaged or cut off",
    "cut.jsonl.zst": "the file is damaged or cut off (Truncated compressed stream)",
    "plain.txt.gz": "the file is damaged or cut off (Not a gzipped file",
    "plain.txt.zst": "the file is damaged or cut off (ZSTD",
    "cut.parquet": "not Parquet, or damaged",
    "plain.parquet": "not Parquet, or damaged",
    "plain.arrow": "not Arrow, or damaged",
    "cut.arrow": "the file is damaged or cut off",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name.startswith("cut"):
        content = write([NOVEL], path).read_bytes()
        path.write_bytes(content[: len(content) * 2 // 3])
    else:
        path.write_text(NOVEL, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        find_documents([path])
    assert str(caught.value).startswith(f"{path}: ")
    assert DAMAGED[name] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "txt.zst"])
def test_a_missing_pyarrow_is_a_hint(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write([NOVEL], tmp_path / f"a.{suffix}")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=rf"a\.{suffix}: to read \w+, run `pip install 'mlm_dist\[formats\]'`"):
        find_documents([path])
