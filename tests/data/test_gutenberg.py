"""Books of Project Gutenberg, from a server on this machine."""

import itertools
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlm_dist.data import gutenberg
from mlm_dist.data.corpus import Corpus
from mlm_dist.data.gutenberg import cut_out, fetch_books
from mlm_dist.data.preparation import prepare_corpus
from mlm_dist.data.splitting import hold_out
from mlm_dist.data.texts import Document, read_pieces
from mlm_dist.errors import UserError
from tests.data.mirror import Answer, Mirror, cut_page, file_of, no_answer, page

WHALE = "Call me whatever you like.\n\nThere was a whale, and it was white.\n"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and hardly any waiting."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name, seconds in {"PAUSE": 0.0, "BACKOFF": 0.0, "TIMEOUT": 0.2}.items():
        monkeypatch.setattr(gutenberg, name, seconds)
    return tmp_path / "cache" / "mlm_dist" / "gutenberg"


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    with Mirror() as running:
        yield running


def fetch(mirror: Mirror, *numbers: int) -> list[Document]:
    return fetch_books(list(numbers), mirror.url, "tests/1.0")


def read(document: Document) -> str:
    return "".join(piece.text for piece in read_pieces(document))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def test_a_book_is_its_text_under_its_title(mirror: Mirror) -> None:
    mirror.add(7, file_of(WHALE, "The White Whale"))
    [book] = fetch(mirror, 7)
    assert (book.name, read(book)) == ("The White Whale", WHALE)
    assert book.size == len(WHALE.encode())


def test_the_ends_of_books_are_held_out(mirror: Mirror, tmp_path: Path) -> None:
    texts = ["".join(f"Line {line} of a café.\n" for line in range(300)), WHALE * 100]
    for number, text in enumerate(texts, start=1):
        mirror.add(number, file_of(text, f"Book {number}"))
    prepare_corpus(hold_out(fetch(mirror, 2, 1), 0.25), tmp_path / "out", "bpe", 300)
    corpus = Corpus.open(tmp_path / "out")
    assert [document["name"] for document in corpus.manifest.documents] == ["Book 2", "Book 1"]
    for document, text in zip(corpus.manifest.documents, reversed(texts), strict=True):
        tokens = (corpus.train[slice(*document["train"])], corpus.val[slice(*document["val"])])
        train, val = (corpus.tokenizer.decode(part).removesuffix("<|endoftext|>") for part in tokens)
        assert train + val == text
        assert 0.2 < len(val) / len(text) < 0.3


# What an older file has around its text. The first and the last of these lines are the markers.
OLDER_FILES = [
    ["***START OF THE PROJECT GUTENBERG EBOOK THE WHALE***", "***END OF THE PROJECT GUTENBERG EBOOK THE WHALE***"],
    [
        "*** START OF THIS PROJECT GUTENBERG EBOOK THE WHALE ***",
        "*** END OF THIS PROJECT GUTENBERG EBOOK THE WHALE ***",
    ],
    ["***START OF THIS PROJECT GUTENBERG EBOOK THE WHALE***", "***END OF THIS PROJECT GUTENBERG EBOOK THE WHALE***"],
    ["*** Start of the Project Gutenberg eBook The Whale ***", "*** End of the Project Gutenberg eBook The Whale ***"],
    [
        "*** START OF THE PROJECT GUTENBERG EBOOK THE WHALE,\nBEING A LONG TITLE ***",
        "*** END OF THE PROJECT GUTENBERG EBOOK THE WHALE,\nBEING A LONG TITLE ***",
    ],
    [
        "*** START OF THIS PROJECT GUTENBERG EBOOK THE WHALE ***",
        "End of the Project Gutenberg EBook of The Whale, by Nobody\n",
        "*** END OF THIS PROJECT GUTENBERG EBOOK THE WHALE ***",
    ],
    [
        "*** START OF THIS PROJECT GUTENBERG EBOOK THE WHALE ***",
        "End of Project Gutenberg's The Whale, of which there is\nmuch to say, by Nobody\n\n",
        "*** END OF THIS PROJECT GUTENBERG EBOOK THE WHALE ***",
    ],
    [
        "*** START OF THIS PROJECT GUTENBERG EBOOK THE WHALE ***",
        "End of the Project Gutenberg Etext of The Whale",
        "*** END OF THIS PROJECT GUTENBERG EBOOK THE WHALE ***",
    ],
]


@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("lines", OLDER_FILES, ids=lambda lines: lines[-2][:50])
def test_header_and_footer_are_cut_off(lines: list[str], newline: str) -> None:
    start, *ends = lines
    whole = "\n".join(["Title: The Whale", "", "Of the licence.", "", start, "", "", WHALE, "", *ends, "", "It ends."])
    assert cut_out(whole.replace("\n", newline).encode()) == ("The Whale", WHALE)


def test_what_looks_like_a_footer_in_the_text_is_text() -> None:
    text = (
        "End of the Project Gutenberg's hopes, he thought.\n\n***\n\nTitle: A Lie\n\n"
        "* * *\n\nThe *** END OF THE PROJECT GUTENBERG EBOOK, she said, was far.\n"
    )
    assert cut_out(file_of(text).encode()) == ("A Title", text)


@pytest.mark.parametrize(
    ("header", "title"),
    [
        ("Title: Moby\n       or: The Whale\n\nAuthor: X", "Moby or: The Whale"),
        ("Title: A Title That Is\ntoo long for a line\nAuthor: X", "A Title That Is too long for a line"),
        ("Title: Œuvres\r\n\r\nAuthor: X", "Œuvres"),
        ("Title:   \n\nAuthor: X", ""),
        ("Author: X", ""),
    ],
)
def test_the_title_is_the_headers(header: str, title: str) -> None:
    markers = [f"*** {edge} OF THE PROJECT GUTENBERG EBOOK X ***" for edge in ("START", "END")]
    text = f"Title: not that of the header\n\n{WHALE}"
    assert cut_out("\n".join([header, "", markers[0], text, markers[1]]).encode()) == (title, text)


def test_a_book_without_a_title_is_named_by_its_number(mirror: Mirror, capsys: pytest.CaptureFixture[str]) -> None:
    mirror.add(7, file_of(WHALE).replace("Title:", "Titel:"))
    assert fetch(mirror, 7)[0].name == "pg7"
    assert capsys.readouterr().err == "mlm_dist: fetched 7: pg7\n"


def test_a_number_given_twice_is_one_document(mirror: Mirror) -> None:
    mirror.add(7, file_of(WHALE, "Seven"))
    mirror.add(8, file_of(WHALE, "Eight"))
    assert [book.name for book in fetch(mirror, 8, 7, 8)] == ["Eight", "Seven"]
    assert len(mirror.requests) == 2


def test_what_is_cached_is_not_asked_for_and_not_spoken_of(
    mirror: Mirror, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mirror.add(7, file_of(WHALE, "Seven"))
    mirror.add(8, file_of(WHALE, "Eight"))
    first = fetch(mirror, 7)
    assert capsys.readouterr().err == "mlm_dist: fetched 7: Seven\n"
    assert fetch(mirror, 7) == first
    assert capsys.readouterr().err == ""
    assert [book.name for book in fetch(mirror, 7, 8)] == ["Seven", "Eight"]
    assert capsys.readouterr().err == "mlm_dist: fetched 8: Eight\n"
    assert len(mirror.requests) == 2
    assert names(cache) == ["pg7.txt", "pg8.txt"]


def test_books_are_asked_for_one_at_a_time_with_a_pause(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gutenberg, "PAUSE", 0.2)
    for number in (1, 2, 3):
        mirror.add(number, file_of(WHALE))
    fetch(mirror, 1, 2, 3)
    assert [request.path for request in mirror.requests] == [f"/cache/epub/{n}/pg{n}.txt" for n in (1, 2, 3)]
    assert {request.user_agent for request in mirror.requests} == {"tests/1.0"}
    for before, after in itertools.pairwise(mirror.requests):
        assert after.start - before.end >= 0.19


def test_a_slash_after_the_mirrors_address_does_no_harm(mirror: Mirror) -> None:
    with pytest.raises(UserError, match=f"number 7: {mirror.url}/cache/epub/7/pg7.txt does not exist"):
        fetch_books([7], f"{mirror.url}/", "tests/1.0")


def test_redirects_are_followed(mirror: Mirror) -> None:
    mirror.add(7, page("", 302, Location="/cache/epub/8/pg8.txt"))
    mirror.add(8, file_of(WHALE, "Elsewhere"))
    assert [book.name for book in fetch(mirror, 7)] == ["Elsewhere"]


@pytest.mark.parametrize(
    "trouble",
    [page("busy", 503), page("slowly", 429), page("oh", 500), no_answer, cut_page(file_of(WHALE))],
    ids=["503", "429", "500", "no answer", "cut"],
)
def test_a_passing_trouble_passes(mirror: Mirror, cache: Path, trouble: Answer) -> None:
    mirror.add(7, trouble, trouble, file_of(WHALE))
    assert read(fetch(mirror, 7)[0]) == WHALE
    assert len(mirror.requests) == 3
    assert names(cache) == ["pg7.txt"]


def test_the_server_says_when_to_ask_again(mirror: Mirror) -> None:
    mirror.add(7, page("busy", 503, Retry_After="1"), file_of(WHALE))
    assert read(fetch(mirror, 7)[0]) == WHALE
    before, after = mirror.requests
    assert 1 <= after.start - before.end < 2


@pytest.mark.parametrize("trouble", [page("busy", 503), cut_page(file_of(WHALE))], ids=["503", "cut"])
def test_each_repetition_waits_longer(mirror: Mirror, trouble: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gutenberg, "BACKOFF", 0.05)
    mirror.add(7, trouble)
    with pytest.raises(UserError):
        fetch(mirror, 7)
    gaps = [after.start - before.end for before, after in itertools.pairwise(mirror.requests)]
    assert len(gaps) == gutenberg.RETRIES
    assert all(gap >= least for gap, least in zip(gaps[1:], [0.095, 0.195, 0.395], strict=True))


def check_failure(mirror: Mirror, cache: Path, *words: str) -> None:
    """Check that book 7 is refused in words, after book 6 was fetched, and that the cache has book 6 alone."""
    mirror.add(6, file_of(WHALE, "Six"))
    with pytest.raises(UserError) as caught:
        fetch(mirror, 6, 7)
    message = str(caught.value)
    assert "\n" not in message
    for word in (f"number 7: {mirror.url}/cache/epub/7/pg7.txt ", "--mirror", *words):
        assert word in message
    assert names(cache) == ["pg6.txt"]
    asked = len(mirror.requests)
    assert [book.name for book in fetch(mirror, 6)] == ["Six"]
    assert len(mirror.requests) == asked


@pytest.mark.parametrize(
    ("answer", "requests", "words"),
    [
        (page("", 404), 1, "does not exist: check the number"),
        (page("", 403), 1, "403 Forbidden"),
        (page("", 503), 5, "503 Service Unavailable"),
        (page("", 503, Retry_After="3600"), 1, "the server asks to wait 3600 s"),
        (page("", 302, Location="/cache/epub/7/pg7.txt"), 31, "30 redirects"),
        (no_answer, 5, "the connection broke off"),
        (cut_page(file_of(WHALE)), 5, "the connection broke off"),
        (page("\ufeff<!DOCTYPE html>\n<pre>\n" + file_of(WHALE)[1:]), 1, "is an HTML page"),
        (page(WHALE), 1, "no line '*** START OF"),
        (page(file_of(WHALE).split("*** END")[0]), 1, "no line '*** END OF"),
        (page(file_of(" \n\n")), 1, "no text between"),
        (page(""), 1, "no line '*** START OF"),
        (page(file_of("Déjà vu").encode("utf-8-sig").replace("é".encode(), b"\xe9")), 1, "is not UTF-8 at byte "),
    ],
)
def test_what_cannot_be_had_is_one_line(mirror: Mirror, cache: Path, answer: Answer, requests: int, words: str) -> None:
    mirror.add(7, answer)
    check_failure(mirror, cache, words)
    assert len(mirror.requests) - 1 == requests


def test_a_server_that_does_not_answer_is_too_slow(mirror: Mirror, cache: Path) -> None:
    mirror.add(7, mirror.silence)
    check_failure(mirror, cache, "the server is too slow")


def test_a_server_that_stops_in_the_middle_is_too_slow(mirror: Mirror, cache: Path) -> None:
    mirror.add(7, mirror.stalled_page(file_of(WHALE)))
    check_failure(mirror, cache, "the server is too slow")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("gutenberg.example/books", "No scheme supplied"),
        ("ftp://gutenberg.example", "No connection adapters were found"),
        ("http://", "No host supplied"),
        ("http://gutenberg.invalid", "is there a network?"),
    ],
)
def test_a_mirror_that_is_none_is_one_line(cache: Path, address: str, words: str) -> None:
    with pytest.raises(UserError, match=f"number 7: .*could not be fetched .*{words}"):
        fetch_books([7], address, "tests/1.0")
    assert names(cache) == []


def test_a_server_that_is_not_there_is_one_line(cache: Path) -> None:
    with socket.socket() as taken:  # bound and not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(UserError, match=r"number 7: .* \(the server takes no connection\)"):
            fetch_books([7], f"http://127.0.0.1:{taken.getsockname()[1]}", "tests/1.0")
    assert names(cache) == []


def test_a_proxy_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"the proxy takes no connection"):
        fetch_books([7], "http://gutenberg.example", "tests/1.0")


def test_a_cache_that_cannot_be_written_is_one_line(mirror: Mirror, cache: Path) -> None:
    mirror.add(7, file_of(WHALE))
    cache.parent.parent.write_text("a file where the folder belongs", encoding="utf-8")
    with pytest.raises(UserError, match=r"pg7\.txt: cannot be written: "):
        fetch(mirror, 7)


def test_a_book_that_was_damaged_in_the_cache_is_named(mirror: Mirror, cache: Path) -> None:
    mirror.add(7, file_of(WHALE))
    fetch(mirror, 7)
    (cache / "pg7.txt").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=r"pg7\.txt has no line .*: delete it"):
        fetch(mirror, 7)
