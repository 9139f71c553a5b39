"""What `init_from` can name, and what is said if it names nothing."""

from pathlib import Path

import pytest

from mlm_dist.errors import UserError
from mlm_dist.source import Source, Step


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a run, a run whose name looks like a step, an exported model, and an empty folder."""
    for name in ("run", "run@7"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").touch()
        (tmp_path / name / "model.pth").touch()
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "config.json").touch()
    (tmp_path / "exported" / "model.safetensors").touch()
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("name", "run", "step"),
    [
        ("run", "run", None),
        ("run@20", "run", 20),
        ("run@best", "run", "best"),
        ("run@newest", "run", "newest"),
        ("run@7", "run@7", None),
        ("run@7@3", "run@7", 3),
    ],
)
def test_a_run_and_a_step_of_a_run_are_parsed(folder: Path, name: str, run: str, step: Step | None) -> None:
    assert Source.parse(f"{folder}/{name}") == Source(f"{folder}/{name}", folder / run, step)


def test_final_parameters_and_an_exported_model_are_parsed(folder: Path) -> None:
    final = Source.parse(f"{folder}/run/model.pth")
    assert final == Source(final.name, folder / "run", is_final=True)
    exported = Source.parse(f"{folder}/exported")
    assert exported == Source(exported.name, folder / "exported", is_exported=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("runs", "there is no such run; give a run directory, RUN@STEP"),
        ("runs@20", "there is no such run; give a run directory, RUN@STEP"),
        ("run@last", "last is not a step: give RUN@1000, RUN@best or RUN@newest"),
        ("run/config.yaml", "it is a file; give a run directory, its model.pth"),
        ("empty", "has neither the config.yaml of a run nor the config.json and model.safetensors of an exported"),
        ("exported@20", "has neither the config.yaml of a run"),
        ("x" * 5000, "there is no such run"),
        ("run\0", "there is no such run"),
    ],
)
def test_any_other_name_is_refused_with_the_reason(folder: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=f"init_from .*{message}"):
        Source.parse(f"{folder}/{name}")
