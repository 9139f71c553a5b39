"""Books of Project Gutenberg: downloaded politely, cached, and read without the licence around them.

Project Gutenberg asks programs to download slowly and to use mirrors:
https://www.gutenberg.org/policy/robot_access.html
"""

import io
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import requests
from requests.adapters import HTTPAdapter
from urllib3 import exceptions
from urllib3.response import BaseHTTPResponse
from urllib3.util import Retry

from mlm_dist.errors import UserError
from mlm_dist.files import cache_folder, read_bytes, replacing
from mlm_dist.output import print_error
from mlm_dist.texts.finding import TextFile

# In seconds.
PAUSE = 2.0  # between two downloads
TIMEOUT = 20.0  # for connecting, and for the next bytes
BACKOFF = 1.0  # before the second retry; it doubles with each retry
LONGEST_WAIT = 120.0  # that a server may request

RETRIES = 4
TEMPORARY_ERRORS = [429, 500, 502, 503, 504]

# The title in a marker may continue on the next line. In older texts, a line with the title precedes the END marker.
START = re.compile(r"^\*\*\* *START OF TH(?:E|IS) PROJECT GUTENBERG(?:.|\n(?!\n))*?\*\*\*[ \t]*$", re.M | re.I)
END = re.compile(
    r"^(?:End of (?:the |this )?Project Gutenberg.*\n(?:.+\n)*?\s*)?\*\*\* *END OF TH(?:E|IS) PROJECT GUTENBERG",
    re.M | re.I,
)
TITLE = re.compile(r"^Title:(.*(?:\n(?![A-Z][\w ]*:).*\S.*)*)", re.M)

FAILURE_REASONS: list[tuple[type[Exception], str]] = [
    (exceptions.NameResolutionError, "the name of the server cannot be resolved: is there a network connection?"),
    (exceptions.NewConnectionError, "the server does not accept connections"),
    (exceptions.TimeoutError, "the server is too slow"),
    (exceptions.ProtocolError, "the connection was interrupted"),
    (exceptions.ProxyError, "the proxy does not accept connections"),
]


class Contents(NamedTuple):
    """Title and text of a file of Project Gutenberg. The title is empty if the header has none."""

    title: str
    text: str


@dataclass(frozen=True)
class Book(TextFile):
    """A file of Project Gutenberg. Only its text, without the licence, is the document."""

    def open(self) -> BinaryIO:
        """Open the text as UTF-8."""
        return io.BytesIO(read_book(self.path).text.encode())


def fetch_books(numbers: list[int], mirror: str, user_agent: str) -> list[TextFile]:
    """Return the books with these numbers, one document each. Books that are not cached are downloaded one by one.

    The cache is the folder `gutenberg` in `cache_folder()`. It holds the files as downloaded.

    Args:
        numbers: as in https://www.gutenberg.org/ebooks/NUMBER. Duplicates count once.
        mirror: base URL of Project Gutenberg or of a mirror, with cache/epub/N/pgN.txt below it.
        user_agent: the User-Agent header of the requests.

    Raises:
        UserError: a book is not available, or is not plain text with Project Gutenberg's markers. Books before it stay
            in the cache.
    """
    paths = {number: cache_folder() / "gutenberg" / f"pg{number}.txt" for number in numbers}
    missing = [number for number, path in paths.items() if not path.exists()]
    with polite_session(user_agent) as session:
        for number in missing:
            if number != missing[0]:
                time.sleep(PAUSE)
            title = fetch_book(session, mirror, number, paths[number])
            print_error(f"downloaded {number}: {title}")
    return [book_at(path) for path in paths.values()]


def polite_session(user_agent: str) -> requests.Session:
    """A session that sends this user agent and retries temporary failures with exponential backoff."""
    retry = PoliteRetry(
        RETRIES,
        backoff_factor=BACKOFF,
        status_forcelist=TEMPORARY_ERRORS,
        allowed_methods=["GET"],
        raise_on_status=False,
    )
    session = requests.Session()
    session.headers["User-Agent"] = user_agent
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    return session


class PoliteRetry(Retry):
    """Waits before a retry as long as the server requests, up to `LONGEST_WAIT`."""

    def sleep_for_retry(self, response: BaseHTTPResponse) -> bool:
        """Wait as long as the server requests; return whether it requested a wait.

        Raises:
            requests.exceptions.RetryError: it requests a wait longer than `LONGEST_WAIT`.
        """
        seconds = self.get_retry_after(response) or 0
        if seconds > LONGEST_WAIT:
            raise requests.exceptions.RetryError(f"the server requests a wait of {seconds:.0f} s")
        return super().sleep_for_retry(response)


def fetch_book(session: requests.Session, mirror: str, number: int, path: Path) -> str:
    """Download a book to `path`, atomically, and return its title.

    Raises:
        UserError: the book is not available, is not a text of Project Gutenberg, or cannot be written.
    """
    url = f"{mirror.rstrip('/')}/cache/epub/{number}/pg{number}.txt"
    book = f"Project Gutenberg book {number}: {url}"
    try:
        response = download(session, url)
        if response.status_code == requests.codes.not_found:
            raise UserError(f"{book} does not exist: check the number, or choose another mirror with --mirror")
        response.raise_for_status()
    except requests.RequestException as error:
        raise UserError(
            f"{book} could not be downloaded ({failure_reason(error)}): run the same command again later, or choose "
            f"another mirror with --mirror; the books downloaded so far are cached"
        ) from error
    try:
        title, _ = extract(response.content)
    except ValueError as error:
        raise UserError(f"{book} {error}: remove the number, or choose another mirror with --mirror") from error
    save(response.content, path)
    return title or path.stem


def download(session: requests.Session, url: str) -> requests.Response:
    """Get a response with its complete body. The session retries requests; this function retries interrupted bodies."""
    for attempt in range(RETRIES):
        try:
            return session.get(url, timeout=TIMEOUT)
        except requests.exceptions.ChunkedEncodingError:
            time.sleep(BACKOFF * 2**attempt)
    return session.get(url, timeout=TIMEOUT)


def failure_reason(error: requests.RequestException) -> str:
    """Why a request failed."""
    if isinstance(error, requests.HTTPError):
        return f"{error.response.status_code} {error.response.reason}"
    cause = error.args[0] if error.args else error
    cause = getattr(cause, "reason", cause)  # of a MaxRetryError: why the last retry failed
    return next((reason for kind, reason in FAILURE_REASONS if isinstance(cause, kind)), str(cause))


def save(content: bytes, path: Path) -> None:
    """Write a file atomically.

    Raises:
        UserError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, shared=True) as file:
            file.write(content)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error


def book_at(path: Path) -> Book:
    """A cached book as a document, named by its title."""
    title, text = read_book(path)
    return Book(title or path.stem, path, len(text.encode()))


def read_book(path: Path) -> Contents:
    """Read a cached book.

    Raises:
        UserError: it cannot be read, or is damaged.
    """
    try:
        return extract(read_bytes(path))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} {error}: delete it to download the book again") from error


def extract(content: bytes) -> Contents:
    """Extract title and text of a file of Project Gutenberg, without header, footer, byte order mark and CRs.

    Raises:
        ValueError: it is not such a text. The message is a predicate, to follow the file name.
    """
    try:
        whole = content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 at byte {error.start}") from error
    if whole.lstrip().startswith("<"):
        raise ValueError("is an HTML page, not plain text")
    if not (start := START.search(whole)):
        raise ValueError("has no line '*** START OF THE PROJECT GUTENBERG EBOOK'")
    if not (end := END.search(whole, start.end())):
        raise ValueError("has no line '*** END OF THE PROJECT GUTENBERG EBOOK'")
    text = whole[start.end() : end.start()].strip()
    if not text:
        raise ValueError("has no text between the licence's header and footer")
    title = TITLE.search(whole, 0, start.start())
    return Contents(" ".join(title[1].split()) if title else "", text + "\n")
