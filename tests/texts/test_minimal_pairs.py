import json
from pathlib import Path

import pytest

from mlm_dist.errors import UserError
from mlm_dist.texts.minimal_pairs import MinimalPair, PairFormat, read_pairs

PASSIVE = {"sentence_good": "It was seen.", "sentence_bad": "It was slept.", "linguistics_term": "argument_structure"}
RAISING = {"sentence_good": "It seems so.", "sentence_bad": "It tries so.", "UID": "raising_1"}


def write_lines(path: Path, *lines: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_pairs_are_read_from_records_and_a_phenomenon_is_their_field_or_their_file(tmp_path: Path) -> None:
    write_lines(tmp_path / "passive_1.jsonl", json.dumps(PASSIVE), "", json.dumps(RAISING))
    assert read_pairs([tmp_path], PairFormat()) == [
        MinimalPair("It was seen.", "It was slept.", "passive_1", "argument_structure"),
        MinimalPair("It seems so.", "It tries so.", "passive_1", "passive_1"),
    ]


def test_the_fields_of_records_can_be_named(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", '{"ok": "A", "ko": "B", "UID": "c", "linguistics_term": "d"}')
    pair_format = PairFormat(good_key="ok", bad_key="ko", phenomenon_key="UID")
    assert read_pairs([file], pair_format) == [MinimalPair("A", "B", "a", "c")]


@pytest.mark.parametrize(("good_line", "good"), [("first", ["A b .", "C d ."]), ("second", ["b A .", "d C ."])])
def test_pairs_are_read_from_alternating_lines(tmp_path: Path, good_line: str, good: list[str]) -> None:
    file = write_lines(tmp_path / "npi.txt", "A b .", "b A .", "C d .", "d C .")
    pairs = read_pairs([file], PairFormat(good_line=good_line))  # type: ignore[arg-type]
    assert [pair.good for pair in pairs] == good
    assert {pair.good for pair in pairs} | {pair.bad for pair in pairs} == {"A b .", "b A .", "C d .", "d C ."}
    assert {(pair.file, pair.phenomenon) for pair in pairs} == {("npi", "npi")}


def test_files_of_the_same_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    files = [write_lines(tmp_path / folder / "a.jsonl", json.dumps(PASSIVE)) for folder in ("one", "two")]
    assert [pair.file for pair in read_pairs(files, PairFormat())] == list(map(str, files))


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        (
            "a.jsonl",
            ['{"good": "A", "bad": "B"}'],
            "line 1: there is no 'sentence_good' among its fields good, bad: --go",
        ),
        ("a.jsonl", [json.dumps(PASSIVE), '{"sentence_good": "A"}'], "line 2: there is no 'sentence_bad' among its"),
        ("a.jsonl", [json.dumps(PASSIVE), "", "{broken"], "line 3: it is not JSON at column 2"),
        ("a.jsonl", ["[1, 2]"], "line 1: a record must be an object, not a list"),
        ("a.jsonl", [json.dumps(PASSIVE | {"sentence_bad": 3})], "line 1: 'sentence_bad' is a number, not text"),
        ("a.jsonl", [json.dumps(PASSIVE | {"sentence_bad": " "})], "line 1: the other sentence of a pair: it is empty"),
        (
            "a.jsonl",
            [json.dumps(PASSIVE | {"sentence_good": ""})],
            "line 1: the acceptable sentence of a pair: it is em",
        ),
        (
            "a.jsonl",
            ['{"sentence_good": "\\ud800", "sentence_bad": "B"}'],
            "line 1: the acceptable sentence of a pair: the",
        ),
        ("a.txt", ["A", "B", "C"], "line 3: a pair has two lines, but this is an odd number of lines"),
        ("a.txt", ["A", "B", "", "D"], "line 3: the acceptable sentence of a pair: it is empty"),
        ("a.csv", ["sentence_good,sentence_bad", "A,B"], "minimal pairs are read from files in JSON Lines"),
        ("a.txt.gz", ["A"], "minimal pairs are read from files in JSON Lines"),
    ],
)
def test_a_mistake_is_one_line_with_its_file_and_line(
    tmp_path: Path, name: str, lines: list[str], message: str
) -> None:
    file = write_lines(tmp_path / name, *lines)
    with pytest.raises(UserError) as raised:
        read_pairs([file], PairFormat(good_line="first"))
    assert str(raised.value).startswith(f"{file}")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_texts_are_refused_unless_it_is_known_which_line_is_acceptable(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"a\.txt: which line of a pair is the acceptable one\? say it with --good_line"
    ):
        read_pairs([write_lines(tmp_path / "a.txt", "A", "B")], PairFormat())


def test_a_phenomenon_that_is_asked_for_must_be_there(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", json.dumps(RAISING), json.dumps(PASSIVE))
    with pytest.raises(UserError, match="line 2: there is no 'UID' among its fields sentence_good"):
        read_pairs([file], PairFormat(phenomenon_key="UID"))
