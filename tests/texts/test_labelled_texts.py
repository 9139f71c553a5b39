from pathlib import Path

import pytest

from mlm_dist.errors import UserError
from mlm_dist.texts.labelled_texts import LabelFormat, read_labelled

PAIRS = LabelFormat("first", "second", "relation", "utf-8")


def write(path: Path, content: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(content.encode(encoding))
    return path


def read(path: Path, label_format: LabelFormat | None = None) -> list[tuple[str, ...]]:
    """The texts and the label of each example."""
    return [(*texts, label) for texts, label, _ in read_labelled(path, label_format or LabelFormat())]


@pytest.mark.parametrize("name", ["a.txt", "stsa.binary.train", "TREC"])
def test_lines_begin_with_their_label(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name, "\ufeff0 What is an atom ?\r\n\n  good   It  works . \nbad\tNo.\n")
    assert read(file) == [("What is an atom ?", "0"), ("It  works .", "good"), ("No.", "bad")]
    assert [example.place for example in read_labelled(file, LabelFormat())][:2] == [f"{file} line 1", f"{file} line 3"]


def test_a_tab_after_each_label_is_no_table(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", "".join(f"{index % 2}\tText {index}.\n" for index in range(30)))
    assert read(file)[:2] == [("Text 0.", "0"), ("Text 1.", "1")]


def test_one_text_or_two_are_read_from_records_and_tables(tmp_path: Path) -> None:
    expected = [("A, b.", "B\nc.", "1"), ("Zoë", "x", "0.5")]
    records = '{"first": "A, b.", "second": "B\\nc.", "relation": 1}\n\n{"first":"Zoë","second":"x","relation":0.5}'
    assert read(write(tmp_path / "a.jsonl", records), PAIRS) == expected
    assert (
        read(write(tmp_path / "a.csv", 'relation,id,second,first\n1,x,"B\nc.","A, b."\n0.5,y,x,Zoë\n'), PAIRS)
        == expected
    )
    assert (
        read(write(tmp_path / "a.tsv", 'relation\tsecond\tfirst\n1\t"B\nc."\tA, b.\n0.5\tx\tZoë\n'), PAIRS) == expected
    )
    assert read(tmp_path / "a.csv", LabelFormat("id", None, "relation")) == [("x", "1"), ("y", "0.5")]


def test_an_encoding_can_be_named(tmp_path: Path) -> None:
    file = write(tmp_path / "a", "1 crème brûlée\n", "latin-1")
    assert read(file, LabelFormat(encoding="latin-1")) == [("crème brûlée", "1")]
    with pytest.raises(UserError, match=r"a: not utf-8 at byte 4: name its encoding, such as --encoding latin-1"):
        read(file)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "1 A.\n2\n", r"a.txt line 2: its text: it is empty"),
        ("a.txt", "\n", r"a.txt: it has no labelled text"),
        ("a.jsonl", '{"text": "A."}', r"a.jsonl line 1: there is no 'label' among its fields text: --text_key"),
        ("a.jsonl", '{"text": 5, "label": 1}', r"a.jsonl line 1: 'text' is a number, not text"),
        ("a.jsonl", '{"text": "A", "label": [1]}', r"a.jsonl line 1: its label is a list, not text or a number"),
        (
            "a.jsonl",
            '{"text": "A", "label": true}',
            r"a.jsonl line 1: its label is a truth value, not text or a number",
        ),
        ("a.jsonl", '{"text": "A", "label": null}', r"a.jsonl line 1: its label is null, not text or a number"),
        ("a.jsonl", '{"text": "\\ud800", "label": 1}', r"a.jsonl line 1: its text: the text has half of a character"),
        ("a.jsonl", "[1]", r"a.jsonl line 1: a record must be an object, not a list"),
        ("a.jsonl", "{", r"a.jsonl line 1: it is not JSON at column 2"),
        ("a.csv", "text,label\nA\n", r"a.csv line 2: it has 1 fields instead of 2"),
        ("a.csv", "text,label\nA, \n", r"a.csv line 2: its label is empty"),
        ("a.csv", 'text,label\n"A,1\n', r"a.csv line 2: not a row of a table"),
        ("a.csv", "a,b\n", r"a.csv: there is no 'text' among its fields a, b: --text_key"),
        ("a.txt.gz", "1 A.", r"a.txt.gz: labelled texts are read from JSON Lines, CSV, TSV and lines"),
        ("a", '{"text": "A", "label": 1}\n{"text": "B", "label": 0}\n', r"the format is JSON Lines, but its name says"),
        ("a.txt", "label,text\n1,A\n", r"a.txt: the format is CSV, but its name says plain text: rename it to \*.csv"),
        ("a", "id,x,y\n" + "1,A b,c\n" * 20, r"the format is CSV, but its name says plain text"),
        ("a", "text\tlabel\nA b\t1\n", r"the format is TSV, but its name says plain text: rename it to \*.tsv"),
        ("a.json", "{}", r"a.json: the format is JSON, which is not read"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_line(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read(write(tmp_path / name, content))


def test_two_texts_are_not_read_from_lines(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one text: give two"):
        read(write(tmp_path / "a.txt", "1 A."), LabelFormat(pair_key="other"))
