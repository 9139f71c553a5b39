"""A real browser without a window, and a server that notes what is asked of it."""

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
    """What became of a page: its document, what it wrote on the console, and the paths that were asked for."""

    document: str
    console: list[str]
    requests: list[str]


def find_browser() -> str | None:
    return next((path for path in map(shutil.which, NAMES) if path), None)


@contextmanager
def serving(folder: Path, requests: list[str]) -> Iterator[str]:
    """Serve a folder, and note in `requests` the path of each request; gives the address."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            requests.append(self.path)

        def log_error(self, *_: object) -> None:
            pass  # the request is noted all the same

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def visit(folder: Path, page: str, profile: Path, *flags: str) -> Visit:
    """Open a page of a folder in the browser until it is loaded."""
    requests: list[str] = []
    browser = find_browser()
    assert browser
    with serving(folder, requests) as address:
        command = [
            *(browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--enable-logging=stderr"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *(f"--user-data-dir={profile}", "--virtual-time-budget=10000", "--dump-dom", *flags, f"{address}/{page}"),
        ]
        result = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert result.returncode == 0, result.stderr
    console = [line for line in result.stderr.splitlines() if "CONSOLE" in line]
    return Visit(result.stdout, console, requests)


MEASURING = """<!DOCTYPE html><meta charset="utf-8"><link rel="icon" href="data:,">
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
    """What a page measures in a window so many pixels wide: a frame in another page, since its own has no scripts."""
    around = MEASURING.replace("PAGE", page).replace("WIDTH", str(width))
    (folder / "around.html").write_text(around, encoding="utf-8")
    document = visit(folder, "around.html", profile, *flags).document
    found = re.search(r"<pre>(.*?)</pre>", document, re.DOTALL)
    assert found and found[1], document
    measured: dict[str, Any] = json.loads(html.unescape(found[1]))
    return measured
