"""Books of Project Gutenberg are downloaded from a mirror and cached, here from a local server."""

import itertools
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mlm_dist.data.corpus import Corpus
from mlm_dist.data.preparation import prepare_corpus
from mlm_dist.data.splitting import hold_out
from mlm_dist.errors import UserError
from mlm_dist.texts import gutenberg
from mlm_dist.texts.document_list import list_documents
from mlm_dist.texts.finding import TextFile
from mlm_dist.texts.gutenberg import extract, fetch_books
from mlm_dist.texts.reading import Reading
from tests.texts.mirror import Mirror, Response, file_of, no_response, page, truncated_page

WHALE = "Call me whatever you like.\n\nThere was a whale, and it was white.\n"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache. Waits between requests are short."""
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


def fetch(mirror: Mirror, *numbers: int) -> list[TextFile]:
    return fetch_books(list(numbers), mirror.url, "tests/1.0")


def read(book: TextFile) -> str:
    return "".join(piece.text for _, piece in list_documents([book], Reading()).pieces())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def test_a_book_is_its_text_named_by_its_title(mirror: Mirror) -> None:
    mirror.add(7, file_of(WHALE, "The White Whale"))
    [book] = fetch(mirror, 7)
    assert (book.name, read(book)) == ("The White Whale", WHALE)
    assert book.size == len(WHALE.encode())


def test_the_ends_of_books_are_validation_text(mirror: Mirror, tmp_path: Path) -> None:
    texts = ["".join(f"Line {line} of a café.\n" for line in range(300)), WHALE * 100]
    for number, text in enumerate(texts, start=1):
        mirror.add(number, file_of(text, f"Book {number}"))
    prepare_corpus(hold_out(list_documents(fetch(mirror, 2, 1), Reading()), 0.25), tmp_path / "out", "bpe", 300)
    corpus = Corpus.open(tmp_path / "out")
    assert [document.name for document in corpus.documents()] == ["Book 2", "Book 1"]
    for document, text in zip(corpus.documents(), reversed(texts), strict=True):
        tokens = (corpus.train[document.train], corpus.val[document.val])
        train, val = (corpus.tokenizer.decode(np.asarray(part)).removesuffix("<|endoftext|>") for part in tokens)
        assert train + val == text
        assert 0.2 < len(val) / len(text) < 0.3


# The lines around the text of older files. The first and the last line are the markers.
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
def test_header_and_footer_are_removed(lines: list[str], newline: str) -> None:
    start, *ends = lines
    whole = "\n".join(["Title: The Whale", "", "Of the licence.", "", start, "", "", WHALE, "", *ends, "", "It ends."])
    assert extract(whole.replace("\n", newline).encode()) == ("The Whale", WHALE)


def test_a_line_in_the_text_that_looks_like_a_footer_is_kept() -> None:
    text = (
        "End of the Project Gutenberg's hopes, he thought.\n\n***\n\nTitle: A Lie\n\n"
        "* * *\n\nThe *** END OF THE PROJECT GUTENBERG EBOOK, she said, was far.\n"
    )
    assert extract(file_of(text).encode()) == ("A Title", text)


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
def test_the_title_comes_from_the_header(header: str, title: str) -> None:
    markers = [f"*** {edge} OF THE PROJECT GUTENBERG EBOOK X ***" for edge in ("START", "END")]
    text = f"Title: not in the header\n\n{WHALE}"
    assert extract("\n".join([header, "", markers[0], text, markers[1]]).encode()) == (title, text)


def test_a_book_without_a_title_is_named_by_its_number(mirror: Mirror, capsys: pytest.CaptureFixture[str]) -> None:
    mirror.add(7, file_of(WHALE).replace("Title:", "Titel:"))
    assert fetch(mirror, 7)[0].name == "pg7"
    assert capsys.readouterr().err == "mlm_dist: downloaded 7: pg7\n"


def test_a_number_given_twice_is_one_document(mirror: Mirror) -> None:
    mirror.add(7, file_of(WHALE, "Seven"))
    mirror.add(8, file_of(WHALE, "Eight"))
    assert [book.name for book in fetch(mirror, 8, 7, 8)] == ["Eight", "Seven"]
    assert len(mirror.requests) == 2


def test_a_cached_book_is_neither_requested_nor_reported(
    mirror: Mirror, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mirror.add(7, file_of(WHALE, "Seven"))
    mirror.add(8, file_of(WHALE, "Eight"))
    first = fetch(mirror, 7)
    assert capsys.readouterr().err == "mlm_dist: downloaded 7: Seven\n"
    assert fetch(mirror, 7) == first
    assert capsys.readouterr().err == ""
    assert [book.name for book in fetch(mirror, 7, 8)] == ["Seven", "Eight"]
    assert capsys.readouterr().err == "mlm_dist: downloaded 8: Eight\n"
    assert len(mirror.requests) == 2
    assert names(cache) == ["pg7.txt", "pg8.txt"]


def test_books_are_requested_one_at_a_time_with_a_pause(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gutenberg, "PAUSE", 0.2)
    for number in (1, 2, 3):
        mirror.add(number, file_of(WHALE))
    fetch(mirror, 1, 2, 3)
    assert [request.path for request in mirror.requests] == [f"/cache/epub/{n}/pg{n}.txt" for n in (1, 2, 3)]
    assert {request.user_agent for request in mirror.requests} == {"tests/1.0"}
    for before, after in itertools.pairwise(mirror.requests):
        assert after.start - before.end >= 0.19


def test_the_url_of_a_mirror_may_end_with_a_slash(mirror: Mirror) -> None:
    with pytest.raises(UserError, match=f"book 7: {mirror.url}/cache/epub/7/pg7.txt does not exist"):
        fetch_books([7], f"{mirror.url}/", "tests/1.0")


def test_redirects_are_followed(mirror: Mirror) -> None:
    mirror.add(7, page("", 302, Location="/cache/epub/8/pg8.txt"))
    mirror.add(8, file_of(WHALE, "Elsewhere"))
    assert [book.name for book in fetch(mirror, 7)] == ["Elsewhere"]


@pytest.mark.parametrize(
    "failure",
    [page("busy", 503), page("slowly", 429), page("oh", 500), no_response, truncated_page(file_of(WHALE))],
    ids=["503", "429", "500", "no response", "truncated"],
)
def test_a_temporary_failure_is_retried(mirror: Mirror, cache: Path, failure: Response) -> None:
    mirror.add(7, failure, failure, file_of(WHALE))
    assert read(fetch(mirror, 7)[0]) == WHALE
    assert len(mirror.requests) == 3
    assert names(cache) == ["pg7.txt"]


def test_a_retry_waits_as_long_as_the_server_requests(mirror: Mirror) -> None:
    mirror.add(7, page("busy", 503, Retry_After="1"), file_of(WHALE))
    assert read(fetch(mirror, 7)[0]) == WHALE
    before, after = mirror.requests
    assert 1 <= after.start - before.end < 2


@pytest.mark.parametrize("failure", [page("busy", 503), truncated_page(file_of(WHALE))], ids=["503", "truncated"])
def test_each_retry_waits_longer(mirror: Mirror, failure: Response, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gutenberg, "BACKOFF", 0.05)
    mirror.add(7, failure)
    with pytest.raises(UserError):
        fetch(mirror, 7)
    gaps = [after.start - before.end for before, after in itertools.pairwise(mirror.requests)]
    assert len(gaps) == gutenberg.RETRIES
    assert all(gap >= least for gap, least in zip(gaps[1:], [0.095, 0.195, 0.395], strict=True))


def check_failure(mirror: Mirror, cache: Path, *words: str) -> None:
    """Check that book 7 fails with a message that contains `words`, and that book 6 stays cached."""
    mirror.add(6, file_of(WHALE, "Six"))
    with pytest.raises(UserError) as caught:
        fetch(mirror, 6, 7)
    message = str(caught.value)
    assert "\n" not in message
    for word in (f"book 7: {mirror.url}/cache/epub/7/pg7.txt ", "--mirror", *words):
        assert word in message
    assert names(cache) == ["pg6.txt"]
    requests = len(mirror.requests)
    assert [book.name for book in fetch(mirror, 6)] == ["Six"]
    assert len(mirror.requests) == requests


@pytest.mark.parametrize(
    ("response", "requests", "words"),
    [
        (page("", 404), 1, "does not exist: check the number"),
        (page("", 403), 1, "403 Forbidden"),
        (page("", 503), 5, "503 Service Unavailable"),
        (page("", 503, Retry_After="3600"), 1, "the server requests a wait of 3600 s"),
        (page("", 302, Location="/cache/epub/7/pg7.txt"), 31, "30 redirects"),
        (no_response, 5, "the connection was interrupted"),
        (truncated_page(file_of(WHALE)), 5, "the connection was interrupted"),
        (page("\ufeff<!DOCTYPE html>\n<pre>\n" + file_of(WHALE)[1:]), 1, "is an HTML page"),
        (page(WHALE), 1, "no line '*** START OF"),
        (page(file_of(WHALE).split("*** END")[0]), 1, "no line '*** END OF"),
        (page(file_of(" \n\n")), 1, "no text between"),
        (page(""), 1, "no line '*** START OF"),
        (page(file_of("Déjà vu").encode("utf-8-sig").replace("é".encode(), b"\xe9")), 1, "is not UTF-8 at byte "),
    ],
)
def test_a_failed_download_is_a_one_line_error(
    mirror: Mirror, cache: Path, response: Response, requests: int, words: str
) -> None:
    mirror.add(7, response)
    check_failure(mirror, cache, words)
    assert len(mirror.requests) - 1 == requests


def test_a_server_that_does_not_respond_is_too_slow(mirror: Mirror, cache: Path) -> None:
    mirror.add(7, mirror.silence)
    check_failure(mirror, cache, "the server is too slow")


def test_a_server_that_stops_in_the_middle_of_a_book_is_too_slow(mirror: Mirror, cache: Path) -> None:
    mirror.add(7, mirror.stalled_page(file_of(WHALE)))
    check_failure(mirror, cache, "the server is too slow")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("gutenberg.example/books", "No scheme supplied"),
        ("ftp://gutenberg.example", "No connection adapters were found"),
        ("http://", "No host supplied"),
        ("http://gutenberg.invalid", r"is there a network connection\?"),
    ],
)
def test_an_invalid_mirror_is_a_one_line_error(cache: Path, url: str, words: str) -> None:
    with pytest.raises(UserError, match=f"book 7: .*could not be downloaded .*{words}"):
        fetch_books([7], url, "tests/1.0")
    assert names(cache) == []


def test_an_unreachable_server_is_a_one_line_error(cache: Path) -> None:
    with socket.socket() as taken:  # bound but not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(UserError, match=r"book 7: .* \(the server does not accept connections\)"):
            fetch_books([7], f"http://127.0.0.1:{taken.getsockname()[1]}", "tests/1.0")
    assert names(cache) == []


def test_an_unreachable_proxy_is_a_one_line_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"the proxy does not accept connections"):
        fetch_books([7], "http://gutenberg.example", "tests/1.0")


def test_a_cache_that_cannot_be_written_is_a_one_line_error(mirror: Mirror, cache: Path) -> None:
    mirror.add(7, file_of(WHALE))
    cache.parent.parent.write_text("a file instead of the folder", encoding="utf-8")
    with pytest.raises(UserError, match=r"pg7\.txt: cannot be written: "):
        fetch(mirror, 7)


def test_a_damaged_book_in_the_cache_is_named(mirror: Mirror, cache: Path) -> None:
    mirror.add(7, file_of(WHALE))
    fetch(mirror, 7)
    (cache / "pg7.txt").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=r"pg7\.txt has no line .*: delete it"):
        fetch(mirror, 7)
