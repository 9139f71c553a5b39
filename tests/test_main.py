"""`mlm-dist COMMAND` and `python -m mlm_dist COMMAND`."""

import sys
from pathlib import Path

import pytest

from mlm_dist.__main__ import COMMANDS, main
from mlm_dist.version import __version__
from tests.conftest import REPOSITORY, start, verb

MODULE = [sys.executable, "-m", "mlm_dist"]


def test_every_verb_is_a_command() -> None:
    verbs = {
        file.stem
        for file in (REPOSITORY / "mlm_dist").glob("*.py")
        if '"__main__":' in file.read_text(encoding="utf-8") and file.stem != "__main__"
    }
    assert set(COMMANDS) == verbs


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_lists_the_commands(arguments: list[str]) -> None:
    result = start([*MODULE, *arguments])
    assert result.returncode == 0, result.stderr
    assert all(f"  {name} " in result.stdout for name in COMMANDS)


def test_a_command_prints_and_exits_like_its_module(run_dir: Path) -> None:
    arguments = ["--run", str(run_dir), "--device", "cpu", "The [MASK]."]
    result, expected = start([*MODULE, "fill", *arguments]), verb("fill", *arguments)
    assert (result.returncode, result.stdout, result.stderr) == (0, expected.stdout, "")
    misspelled = start([*MODULE, "fill", "--rum", str(run_dir)])
    assert misspelled.returncode == 2
    assert len(misspelled.stderr.splitlines()) == 1


def test_an_unknown_command_is_refused_with_the_nearest_one() -> None:
    result = start([*MODULE, "trian"])
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "mlm_dist: error: trian: unknown command; did you mean train?\n"


def test_the_console_script_prints_the_same_help() -> None:
    script = Path(sys.executable).with_name("mlm-dist")
    if not script.exists():
        pytest.skip("the package is not installed in this environment")
    assert start([str(script), "--help"]).stdout == start([*MODULE, "--help"]).stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_the_command_by_the_name_that_was_called(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/mlm-dist", name, "--help"])
    with pytest.raises(SystemExit):
        main()
    shown = capsys.readouterr().out
    assert f"usage: mlm-dist {name} " in shown
    assert "python -m" not in shown.replace("`python -m mlm_dist.prepare`", "")
    assert f"usage: python -m mlm_dist.{name} " in verb(name, "--help").stdout


def test_version() -> None:
    result = start([*MODULE, "--version"])
    assert (result.returncode, result.stdout) == (0, f"mlm_dist {__version__}\n")
