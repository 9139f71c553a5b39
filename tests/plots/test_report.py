"""The report of a run, also in a real browser if one is installed."""

import base64
import dataclasses
import json
import math
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from mlm_dist import load
from mlm_dist.config_reading import read_config
from mlm_dist.inference.model import TrainedModel
from mlm_dist.plots.probes import MAX_TITLE_LENGTH, save_probes
from mlm_dist.plots.report import format_amount, format_duration, losses_at_round_steps, percent, write_report
from mlm_dist.plots.results import describe_results, read_results
from mlm_dist.plots.sentences import Sentence, fill_sentences
from mlm_dist.plots.style import shortened
from mlm_dist.run.history import History, read_history
from mlm_dist.run.metrics import read_events
from mlm_dist.run.origin import Origin
from tests.plots.browser import DARK, LIGHT, find_browser, measure, visit
from tests.plots.measured import probe_at, write_task

pytestmark = pytest.mark.slow

NASTY = "Tom & <b>\"Jerry\"</b> 'n' 😀 שלום {{ 7 * 7 }}"
SENTENCE = "<i>&amp;[MASK]😀"
PANELS = 2  # charts of the learning curves: all pairs, and one phenomenon

needs_browser = pytest.mark.skipif(find_browser() is None, reason="needs chromium, chromium-browser or google-chrome")


class Page(HTMLParser):
    """The elements of a page, each with its text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[list[str]] = []
        self.elements: list[list[str]] = []
        self.urls: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.urls += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        self.elements.append([tag, ""])
        if tag not in ("meta", "link", "img", "wbr"):
            self.open.append(self.elements[-1])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element[1] += data

    def texts(self, tag: str) -> list[str]:
        return [text for name, text in self.elements if name == tag]


@pytest.fixture(scope="module")
def nasty_run(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run, with a name and a config that must be escaped."""
    run = tmp_path_factory.mktemp("runs") / NASTY.replace("/", "")
    shutil.copytree(run_dir, run)
    config = read_config(run / "config.yaml")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=NASTY))
    (run / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    return run


@pytest.fixture(scope="module")
def folder(nasty_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that contains the report of the nasty run."""
    folder, results = tmp_path_factory.mktemp("page"), tmp_path_factory.mktemp("results") / NASTY.replace("/", "")
    save_probes(nasty_run / "plots", [probe_at(10, 0.25, NASTY), probe_at(30, 0.75, NASTY)])
    write_task(results, NASTY)
    sentences = fill_sentences(load(nasty_run, "cpu"), [SENTENCE])
    shown = describe_results(read_results(nasty_run, [results]), lambda: "digest", 30)
    write_report(nasty_run, history_of(nasty_run), sentences, "", folder / "report.html", shown)
    return folder


@pytest.fixture(scope="module")
def source(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(source: str) -> Page:
    return Page(source)


def history_of(run: Path) -> History:
    return read_history(run / "metrics.jsonl", run.name)


def expected_values(run: Path) -> list[str]:
    """The values that the report must show, computed from the metrics of the run."""
    events = read_events(run / "metrics.jsonl")
    training = [event for event in events if "loss" in event][-1]
    evaluation = [event for event in events if "val_loss" in event][-1]
    return [
        "30",
        format_amount(30 * 16 * 16),
        f"{evaluation['val_loss']:.3f}",
        f"{evaluation['val_accuracy']:.1%}",
        f"{math.exp(evaluation['val_loss']):,.0f}",
        f"{training['seconds']:.3g} s",
        format_amount(training["tokens"] / training["seconds"]),
    ]


def test_the_page_shows_the_metrics_of_the_run(nasty_run: Path, source: str) -> None:
    assert re.findall(r'class="value">(.*?)<', source) == expected_values(nasty_run)


def test_texts_are_escaped(nasty_run: Path, page: Page) -> None:
    assert page.texts("h1") == page.texts("title") == [nasty_run.name]
    assert "<i>&amp;MASK😀" in [text.strip() for text in page.texts("div")]
    assert "".join(page.texts("pre")) == (nasty_run / "config.yaml").read_text(encoding="utf-8")
    assert NASTY in "".join(page.texts("pre"))
    assert not {"b", "i", "script"} & {tag for tag, _ in page.elements}


def test_the_page_is_self_contained(source: str, page: Page) -> None:
    assert all(url.startswith("data:") for url in page.urls)
    assert "data:," in page.urls  # an empty icon; without it, a browser with a window requests one
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in source
    assert not re.search(r"https?://|url\(|@import|<script|\bon\w+=", source)


def test_the_curves_are_self_contained_svgs(page: Page) -> None:
    head = "data:image/svg+xml;base64,"
    svgs = [base64.b64decode(text.removeprefix(head)) for text in page.urls if text.startswith(head)]
    assert len(svgs) == 6 + PANELS
    for svg in svgs:
        texts = [
            "".join(text.itertext()) for text in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
        ]
        assert {"step", "tokens", "training time (s)"} & set(texts)
        outside = svg.replace(b'"http://www.w3.org/2000/svg"', b"").replace(b'"http://www.w3.org/1999/xlink"', b"")
        assert b"http" not in outside
        assert b"#222222" not in svg.split(b"</style>", 1)[1]  # text has the reader's colour


def test_the_page_shows_the_predictions_of_the_model(model: TrainedModel, page: Page) -> None:
    (candidates,) = model.fill(SENTENCE, 5).masks
    assert page.texts("span") == [f"{100 * candidate.probability:.1f} %" for candidate in candidates]
    assert len(page.texts("code")) == 5


def test_the_page_shows_the_machine(nasty_run: Path, page: Page) -> None:
    machine = json.loads((nasty_run / "machine.json").read_text(encoding="utf-8"))
    assert dict(zip(page.texts("dt"), page.texts("dd"), strict=True)) == {key: str(machine[key]) for key in machine}


@pytest.mark.parametrize("content", [None, "", "{", "[]"])
def test_a_page_without_machine_and_config_marks_them_as_not_recorded(
    run_dir: Path, tmp_path: Path, content: str | None
) -> None:
    shutil.copy(run_dir / "metrics.jsonl", tmp_path)
    if content is not None:
        (tmp_path / "machine.json").write_text(content)
    write_report(tmp_path, history_of(tmp_path), [], "there is <no> model", tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.texts("p").count("not recorded") == 2
    assert "there is <no> model" in page.texts("p")


@pytest.mark.parametrize(
    ("files", "state"),
    [
        ({"DONE": ""}, "finished"),
        ({"DONE": "1200\n"}, "finished, with the parameters of step 1,200"),
        ({"STOPPED": "SIG<TERM>\n"}, "stopped by SIG<TERM>"),
        ({}, "not finished"),
    ],
)
def test_the_page_shows_whether_the_run_is_finished(
    run_dir: Path, tmp_path: Path, files: dict[str, str], state: str
) -> None:
    shutil.copy(run_dir / "metrics.jsonl", tmp_path)
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    write_report(tmp_path, history_of(tmp_path), [], "", tmp_path / "report.html")
    assert f"A run of mlm_dist, {state}" in Page((tmp_path / "report.html").read_text(encoding="utf-8")).texts("p")


def without_spaces(text: str) -> str:
    return re.sub(r"\s", "", text)


def rows_of(page: Page) -> list[str]:
    return [without_spaces(text) for text in page.texts("tr")]


def test_the_page_shows_the_accuracies_on_minimal_pairs_of_the_last_step(page: Page, source: str) -> None:
    rows = rows_of(page)
    assert "allpairs1,00075.0[65.0,85.0]37.5[0.0,75.0]" in rows
    assert f"{without_spaces(NASTY)}1,00075.0[65.0,85.0]37.5[0.0,75.0]" in rows
    assert "One token masked at a time" in page.texts("h3")
    assert "Step 30, one of 2 checkpoints. Source:" in source
    assert page.texts("h3")[-3:-1] == ["all pairs", shortened(NASTY, MAX_TITLE_LENGTH)]  # their learning curves


def test_the_page_compares_the_trained_encoder_on_a_labelled_task(page: Page) -> None:
    rows = rows_of(page)
    assert page.texts("h3")[-1] == NASTY.replace("/", "")
    assert any(row.startswith("trainedencoder275.0[") for row in rows)
    assert any(row.startswith("trained−untrained+25.0[") for row in rows)
    assert any(row.startswith(without_spaces(NASTY)) for row in rows)
    assert any(
        text.startswith("trained against untrained, accuracy: +25.0, standard error ") for text in page.texts("p")
    )


def test_a_page_without_results_has_no_section_for_them(run_dir: Path, tmp_path: Path) -> None:
    write_report(run_dir, history_of(run_dir), [], "", tmp_path / "report.html")
    assert Page((tmp_path / "report.html").read_text(encoding="utf-8")).texts("h2") == [
        "Curves",
        "Losses",
        "Filled sentences",
        "Config",
        "Machine",
    ]


def write_metrics(folder: Path, *events: dict[str, Any]) -> History:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return history_of(folder)


def test_the_table_lists_evaluations_at_round_steps(tmp_path: Path) -> None:
    steps = [{"step": step, "loss": 8 - step / 1000, "tokens": 64 * step} for step in range(10, 4451, 10)]
    evaluations = [
        {"step": step, "val_loss": 9 - step / 1000, "val_accuracy": step / 1e4} for step in range(0, 4451, 50)
    ]
    rows = losses_at_round_steps(write_metrics(tmp_path, *steps, *evaluations))
    assert [row[0] for row in rows] == ["0", *(f"{step:,}" for step in range(500, 4001, 500)), "4,450"]
    assert rows[0] == ["0", "0", "–", "9.000", "0.0%", "8,103"]
    assert rows[4] == ["2,000", "128.0 k", "6.000", "7.000", "20.0%", "1,097"]


def test_the_page_shows_what_was_forgotten_where_it_was_measured(tmp_path: Path) -> None:
    events = [
        {"step": step, "val_loss": 5.0, "val_accuracy": 0.1, "val_loss/old": 4 + step / 80} for step in (0, 20, 40)
    ]
    write_report(tmp_path, write_metrics(tmp_path, *events), [], "", tmp_path / "report.html")
    assert "forgotten" not in (tmp_path / "report.html").read_text(encoding="utf-8")
    Origin("runs/source", 1000, "digest", {"old": ["/corpora/old", "digest"]}).write(tmp_path / "origin.json")
    (tmp_path / "DONE").write_text("20\n")
    write_report(tmp_path, history_of(tmp_path), [], "", tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    (card,) = re.findall(r"<h3>forgotten</h3>\s*<div .*?>(.*?)</div>\s*<div .*?>(.*?)</div>", text)
    assert card == ("+0.250", "nats per token of old, step 0 to 20")
    assert "<th><bdi>on old</bdi></th>" in text
    assert [row[-1] for row in losses_at_round_steps(history_of(tmp_path))] == ["4.000", "4.250", "4.500"]


def test_the_table_of_a_run_without_evaluations_lists_training_losses(tmp_path: Path) -> None:
    steps = [{"step": step, "loss": None if step == 20 else 7.5} for step in range(1, 31)]
    rows = losses_at_round_steps(write_metrics(tmp_path, *steps))
    assert [row[0] for row in rows] == ["1", "5", "10", "15", "20", "25", "30"]
    assert rows[1] == ["5", "–", "7.500", "–", "–", "–"]
    assert rows[4][2] == "–"


@pytest.mark.parametrize(
    "event",
    [{"step": 0, "val_loss": 10.8, "val_accuracy": 0.0}, {"step": 1, "loss": None}, {"step": 9, "val_loss": 5000.0}],
)
def test_a_run_that_has_just_started_has_a_page(tmp_path: Path, event: dict[str, Any]) -> None:
    write_report(tmp_path, write_metrics(tmp_path, event), [], "", tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "nan" not in text.split("</style>")[1].lower().split("<img")[0]


@pytest.mark.parametrize(
    ("format_value", "value", "expected"),
    [
        (percent, 0.755, "75.5"),
        (percent, -0.0001, "0.0"),
        (format_amount, 446, "446"),
        (format_amount, 7_208_960, "7.2 M"),
        (format_amount, math.nan, "–"),
        (format_duration, 69.4, "69.4 s"),
        (format_duration, 1573, "26.2 min"),
        (format_duration, 12_000, "3.33 h"),
        (format_duration, math.nan, "–"),
    ],
)
def test_amounts_and_durations_have_few_digits(
    format_value: Callable[[float], str], value: float, expected: str
) -> None:
    assert format_value(value) == expected


@needs_browser
def test_the_browser_reports_errors_and_requests(tmp_path: Path) -> None:
    body = '<p style="color: red">text</p><img src="missing.png"><script>console.error("broken")</script>'
    (tmp_path / "bad.html").write_text(body)
    bad = visit(tmp_path, "bad.html", tmp_path / "profile")
    assert any("broken" in line for line in bad.console)
    assert "/missing.png" in bad.requests


@needs_browser
def test_a_browser_opens_the_page_without_an_error_or_a_request(nasty_run: Path, folder: Path, tmp_path: Path) -> None:
    seen = visit(folder, "report.html", tmp_path / "profile")
    assert not seen.console
    assert seen.requests == ["/report.html"]
    for value in expected_values(nasty_run):
        assert f">{value}<" in seen.document


@needs_browser
@pytest.mark.parametrize("width", [360, 1280])
def test_plots_are_rendered_and_nothing_is_cut_off_on_a_phone_and_on_a_screen(
    nasty_run: Path, folder: Path, tmp_path: Path, width: int
) -> None:
    measured = measure(folder, "report.html", width, tmp_path / "profile")
    assert measured["width"] <= width
    assert not measured["cut"]
    assert len(measured["images"]) == 6 + PANELS
    for natural_width, natural_height, shown_width, shown_height in measured["images"]:
        assert natural_width > 280
        assert natural_height > 200
        assert shown_width > 260
        assert shown_width / shown_height == pytest.approx(natural_width / natural_height, rel=0.02)
    for text in (nasty_run.name, NASTY, "<i>&amp;MASK😀", *expected_values(nasty_run), "+25.0", "Minimal pairs"):
        assert text in measured["text"]


@needs_browser
def test_text_is_readable_in_dark_and_in_light_mode(folder: Path, tmp_path: Path) -> None:
    for flag, is_dark in ((LIGHT, False), (DARK, True)):
        ink, paper = map(luminance, measure(folder, "report.html", 1280, tmp_path / flag[-1], flag)["colors"])
        assert (paper < ink) == is_dark
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) > 7  # the contrast of WCAG 2.1, level AAA


def luminance(color: str) -> float:
    """The relative luminance of `rgb(r, g, b)` (WCAG 2.1)."""
    channels = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


PAYLOADS = [
    "<script>document.title='run'</script>",
    '"><img src=x onerror="document.title=\'run\'">',
    "</pre></script><script src=/evil.js></script>",
    "<svg onload=alert(1)>",
    "\x1b[2J\u202e\x00\x9b",
]


@needs_browser
def test_a_browser_executes_no_text_from_a_run_directory(run_dir: Path, tmp_path: Path) -> None:
    run, page = tmp_path / PAYLOADS[0].replace("/", "\\"), tmp_path / "page"
    shutil.copytree(run_dir, run)
    page.mkdir()
    nasty = " ".join(PAYLOADS)
    (run / "DONE").unlink()
    (run / "STOPPED").write_text(nasty)
    (run / "config.yaml").write_text(f"data:\n  path: {nasty}\n")
    (run / "machine.json").write_text(json.dumps({nasty: nasty, "list": [nasty]}))
    sentence = Sentence([nasty, nasty], [[(nasty, 50.0)]])
    history = dataclasses.replace(history_of(run), name=nasty)
    curves = [probe_at(step, 0.5, *PAYLOADS) for step in (10, 20)]
    save_probes(run / "plots", curves)
    write_task(tmp_path / nasty[:100].replace("/", ""), "<script>alert(1)</script>")
    results = describe_results(read_results(run, [tmp_path / nasty[:100].replace("/", "")]), lambda: "digest", 20)
    write_report(run, history, [sentence], nasty, page / "report.html", results)
    seen = visit(page, "report.html", tmp_path / "profile")
    assert seen.requests == ["/report.html"]
    assert not seen.console
    elements = Page(seen.document)
    assert not {"script", "svg"} & {tag for tag, _ in elements.elements}
    assert len([tag for tag, _ in elements.elements if tag == "img"]) == 6 + 1 + len(PAYLOADS)
    text = measure(page, "report.html", 1280, tmp_path / "other profile")["text"]
    for payload in PAYLOADS[:-1]:
        assert text.count(payload) >= 8
    assert elements.texts("title") != ["run"]
