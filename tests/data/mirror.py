"""A mirror of Project Gutenberg on this machine, which answers as each test wants it to."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

Answer = Callable[[BaseHTTPRequestHandler], None]


def file_of(text: str, title: str = "A Title") -> str:
    """A text with header and footer, as Project Gutenberg sends it."""
    return (
        f"\ufeffThe Project Gutenberg eBook of {title}\n    \nYou may copy it or give it away.\n\n"
        f"Title: {title}\n\nAuthor: Nobody\n\nLanguage: English\n\n\n"
        f"*** START OF THE PROJECT GUTENBERG EBOOK {title.upper()} ***\n\n\n\n{text}\n\n\n"
        f"*** END OF THE PROJECT GUTENBERG EBOOK {title.upper()} ***\n\n    \nUpdated editions replace this one.\n"
    ).replace("\n", "\r\n")


def page(body: str | bytes, status: int = 200, **headers: str) -> Answer:
    """An answer with a body; `Retry_After="1"` stands for a header."""
    content = body if isinstance(body, bytes) else body.encode()

    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in ({"Content_Length": str(len(content))} | headers).items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(content)

    return send


def cut_page(body: str) -> Answer:
    """An answer that breaks off in the middle of its body."""
    whole = body.encode()

    def send(handler: BaseHTTPRequestHandler) -> None:
        page(whole[: len(whole) // 2], Content_Length=str(len(whole)))(handler)
        handler.close_connection = True

    return send


def no_answer(handler: BaseHTTPRequestHandler) -> None:
    """The connection is closed without a word."""
    handler.close_connection = True


@dataclass
class Request:
    """A request that the mirror had, from when to when by `time.monotonic`."""

    path: str
    user_agent: str
    start: float
    end: float = float("inf")


class Mirror:
    """A server in threads of its own, while its `with` block lasts.

    Attributes:
        answers: to each book's number what is answered, one after the other, the last one for good; 404 to all others.
        requests: what was asked, in this order.
        closing: set when the block ends.
    """

    def __init__(self) -> None:
        self.answers: dict[int, list[Answer]] = defaultdict(lambda: [page("nothing here", 404)])
        self.requests: list[Request] = []
        self.closing = threading.Event()
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                request = Request(self.path, self.headers["User-Agent"], time.monotonic())
                mirror.requests.append(request)
                mirror.answer_to(self.path)(self)
                request.end = time.monotonic()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def add(self, number: int, *answers: Answer | str) -> None:
        """Have a book, or something else, under a number."""
        self.answers[number] = [page(answer) if isinstance(answer, str) else answer for answer in answers]

    def answer_to(self, path: str) -> Answer:
        """The next answer for a path of Project Gutenberg's layout."""
        number = int(path.split("/")[-2])
        if path != f"/cache/epub/{number}/pg{number}.txt":
            return page("not the layout", 400)
        answers = self.answers[number]
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def stalled_page(self, body: str) -> Answer:
        """An answer that stops in the middle of its body, with the connection open, until the block ends."""
        whole = body.encode()

        def send(handler: BaseHTTPRequestHandler) -> None:
            page(whole[: len(whole) // 2], Content_Length=str(len(whole)))(handler)
            self.closing.wait()
            handler.close_connection = True

        return send

    def silence(self, handler: BaseHTTPRequestHandler) -> None:
        """No answer, with the connection open, until the block ends."""
        self.closing.wait()
        handler.close_connection = True

    def __enter__(self) -> "Mirror":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()
