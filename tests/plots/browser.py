"""A headless browser, and a server that records the requests that it receives."""

import functools
import html
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

NAMES = ("chromium", "chromium-browser", "google-chrome")
LIGHT, DARK = "--blink-settings=preferredColorScheme=1", "--blink-settings=preferredColorScheme=0"


class Visit(NamedTuple):
    """The result of opening a page: its document, its console messages, and the requested paths."""

    document: str
    console: list[str]
    requests: list[str]


def find_browser() -> str | None:
    return next((path for path in map(shutil.which, NAMES) if path), None)


@contextmanager
def serving(folder: Path, requests: list[str]) -> Iterator[str]:
    """Serve a folder and yield its URL. The path of each request is appended to `requests`."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            requests.append(self.path)

        def log_error(self, *_: object) -> None:
            pass  # the request is recorded by log_message

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def visit(folder: Path, page: str, profile: Path, *flags: str) -> Visit:
    """Open a page of a folder in the browser and wait until it is loaded."""
    requests: list[str] = []
    browser = find_browser()
    assert browser
    with serving(folder, requests) as url:
        command = [
            *(browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--enable-logging=stderr"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *(f"--user-data-dir={profile}", "--virtual-time-budget=10000", "--dump-dom", *flags, f"{url}/{page}"),
        ]
        result = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert result.returncode == 0, result.stderr
    console = [line for line in result.stderr.splitlines() if "CONSOLE" in line]
    return Visit(result.stdout, console, requests)


OUTER_PAGE = """<!DOCTYPE html><meta charset="utf-8"><link rel="icon" href="data:,">
<iframe src="PAGE" style="width: WIDTHpx; height: 5000px; border: 0"></iframe><pre></pre>
<script>
document.querySelector("iframe").onload = event => {
  const page = event.target.contentDocument, root = page.documentElement;
  const measured = {
    width: root.scrollWidth,
    images: Array.from(page.images, image => [image.naturalWidth, image.naturalHeight, image.width, image.height]),
    cut: Array.from(page.querySelectorAll("*")).filter(
      element => element.scrollWidth > element.clientWidth + 1 && getComputedStyle(element).display != "inline"
    ).map(element => element.tagName + " " + element.className),
    colors: ["color", "backgroundColor"].map(key => getComputedStyle(page.body)[key]),
    text: page.body.innerText,
  };
  document.querySelector("pre").textContent = JSON.stringify(measured);
};
</script>"""


def measure(folder: Path, page: str, width: int, profile: Path, *flags: str) -> dict[str, Any]:
    """Measure a page in a frame of a width in pixels. The frame is in another page, because the page has no scripts."""
    outer = OUTER_PAGE.replace("PAGE", page).replace("WIDTH", str(width))
    (folder / "outer.html").write_text(outer, encoding="utf-8")
    document = visit(folder, "outer.html", profile, *flags).document
    found = re.search(r"<pre>(.*?)</pre>", document, re.DOTALL)
    assert found and found[1], document
    measured: dict[str, Any] = json.loads(html.unescape(found[1]))
    return measured
