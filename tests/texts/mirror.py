"""A local mirror of Project Gutenberg with responses set by each test."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

Response = Callable[[BaseHTTPRequestHandler], None]


def file_of(text: str, title: str = "A Title") -> str:
    """A text with the header and footer of Project Gutenberg."""
    return (
        f"\ufeffThe Project Gutenberg eBook of {title}\n    \nYou may copy it or give it away.\n\n"
        f"Title: {title}\n\nAuthor: Nobody\n\nLanguage: English\n\n\n"
        f"*** START OF THE PROJECT GUTENBERG EBOOK {title.upper()} ***\n\n\n\n{text}\n\n\n"
        f"*** END OF THE PROJECT GUTENBERG EBOOK {title.upper()} ***\n\n    \nUpdated editions replace this one.\n"
    ).replace("\n", "\r\n")


def page(body: str | bytes, status: int = 200, **headers: str) -> Response:
    """A response with a body; keyword arguments such as `Retry_After="1"` are headers."""
    content = body if isinstance(body, bytes) else body.encode()

    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in ({"Content_Length": str(len(content))} | headers).items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(content)

    return send


def truncated_page(body: str) -> Response:
    """A response whose connection closes in the middle of the body."""
    whole = body.encode()

    def send(handler: BaseHTTPRequestHandler) -> None:
        page(whole[: len(whole) // 2], Content_Length=str(len(whole)))(handler)
        handler.close_connection = True

    return send


def no_response(handler: BaseHTTPRequestHandler) -> None:
    """Close the connection without a response."""
    handler.close_connection = True


@dataclass
class Request:
    """A request to the mirror; the times are those of `time.monotonic`."""

    path: str
    user_agent: str
    start: float
    end: float = float("inf")


class Mirror:
    """A server that runs in its own threads during its `with` block.

    Attributes:
        responses: the responses for each book number, in order; the last one repeats. Other numbers give 404.
        requests: the requests, in order.
        closing: set when the `with` block ends.
    """

    def __init__(self) -> None:
        self.responses: dict[int, list[Response]] = defaultdict(lambda: [page("nothing here", 404)])
        self.requests: list[Request] = []
        self.closing = threading.Event()
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                request = Request(self.path, self.headers["User-Agent"], time.monotonic())
                mirror.requests.append(request)
                mirror.next_response(self.path)(self)
                request.end = time.monotonic()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def add(self, number: int, *responses: Response | str) -> None:
        """Set the responses for a book number; text stands for a page."""
        self.responses[number] = [page(each) if isinstance(each, str) else each for each in responses]

    def next_response(self, path: str) -> Response:
        """The next response for a path of Project Gutenberg's layout."""
        number = int(path.split("/")[-2])
        if path != f"/cache/epub/{number}/pg{number}.txt":
            return page("not the layout", 400)
        responses = self.responses[number]
        return responses.pop(0) if len(responses) > 1 else responses[0]

    def stalled_page(self, body: str) -> Response:
        """A response that stops in the middle of its body and keeps the connection open until the `with` block ends."""
        whole = body.encode()

        def send(handler: BaseHTTPRequestHandler) -> None:
            page(whole[: len(whole) // 2], Content_Length=str(len(whole)))(handler)
            self.closing.wait()
            handler.close_connection = True

        return send

    def silence(self, handler: BaseHTTPRequestHandler) -> None:
        """Send nothing and keep the connection open until the `with` block ends."""
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
