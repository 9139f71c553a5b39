import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mlm_dist.run.metrics import MetricsFile, drop_later_events, read_events
from mlm_dist.run.run_dir import RunDir
from tests.run.conftest import record


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Limit the size of files. A write beyond the limit is cut off there."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_an_incomplete_last_line_is_removed(folder: RunDir) -> None:
    record(folder, 0, 3)
    complete = folder.metrics.read_bytes()
    folder.metrics.write_bytes(complete + b'{"step": 4, "lo')
    drop_later_events(folder.metrics, 5)
    assert folder.metrics.read_bytes() == complete


def test_lines_that_could_not_be_written_are_kept_and_written_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "lines"
    file = MetricsFile(path)
    file.add("train", {"step": 1})
    with file_size_limit(20):
        file.add("train", {"step": 2})
        file.add("train", {"step": 3})
        assert path.read_text() == '{"step": 1}\n{"step":'
    assert len(capsys.readouterr().err.splitlines()) == 1
    file.close()
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'


@pytest.mark.usefixtures("capsys")  # so that stderr is not a file
def test_closing_raises_if_lines_could_not_be_written(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "lines")
    with file_size_limit(3):
        file.add("train", {"step": 1})
        with pytest.raises(OSError, match="File too large"):
            file.close()


def test_lines_that_are_not_events_are_skipped_with_a_warning(
    folder: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.metrics.write_bytes(b'{"step": 1}\n{"ste\n[2]\n{}\n\xff\n{"step": 3}\n{"step": 4')
    assert read_events(folder.metrics) == [{"step": 1}, {"step": 3}]
    message = f"mlm_dist: {folder.metrics} line 2 and 3 others are skipped: they are not events\n"
    assert capsys.readouterr().err == message
    folder.metrics.write_bytes(b'{"step": 1}\n{"ste\n{"step": 3}\n')
    assert read_events(folder.metrics) == [{"step": 1}, {"step": 3}]
    assert capsys.readouterr().err == f"mlm_dist: {folder.metrics} line 2 is skipped: it is not an event\n"


@pytest.mark.parametrize(
    "event",
    [
        '"x"',
        "null",
        "1.5",
        "true",
        "[1]",
        '1, "loss": "high"',
        '1, "loss": 1e999',
        '1, "lr": NaN',
        f'1, "tokens": {10**50}',
    ],
)
def test_an_event_with_an_invalid_value_is_skipped(
    folder: RunDir, capsys: pytest.CaptureFixture[str], event: str
) -> None:
    folder.metrics.write_text(f'{{"step": {event}}}\n{"[" * 100_000}\n{"9" * 5000}\n{{"step": 2, "loss": null}}\n')
    assert read_events(folder.metrics) == [{"step": 2, "loss": None}]
    assert "line 1 and 2 others are skipped" in capsys.readouterr().err
