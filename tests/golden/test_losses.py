"""The losses of a run are those recorded in `tests/golden/*.json`."""

import json
from pathlib import Path

import pytest

from tests.golden.losses import FOLDER, STEPS, fingerprint, measure


@pytest.mark.usefixtures("gpt2_vocabulary")
@pytest.mark.parametrize("name", ["debug", pytest.param("novels", marks=pytest.mark.slow)])
def test_a_run_has_the_recorded_losses(name: str, tmp_path: Path) -> None:
    expected = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    same_machine = expected.pop("fingerprint") == fingerprint()
    found = measure(name, tmp_path / "run")
    assert len(found["loss"]) == STEPS
    assert len(found["val_loss"]) == 3
    assert found["digest"] == expected["digest"]  # of the rows and masks: integers, equal on every machine
    for key, values in expected.items():
        if key == "digest":
            continue
        # Other processors and other versions of torch round differently.
        tolerance = 0.0 if same_machine else 0.1 if key == "val_accuracy" else 1e-3
        assert found[key] == pytest.approx(values, rel=tolerance, abs=0.0), key
