"""The inputs that `prepare` is measured on have the same text."""

import importlib.util
from pathlib import Path

import pytest

from mlm_dist.texts.document_list import find_documents
from tests.conftest import REPOSITORY

SPEC = importlib.util.spec_from_file_location("prepare_costs", REPOSITORY / "docs" / "prepare_costs.py")
assert SPEC is not None and SPEC.loader is not None
prepare_costs = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(prepare_costs)


@pytest.mark.parametrize("name", prepare_costs.INPUTS)
def test_each_input_has_this_many_megabytes(name: str, tmp_path: Path) -> None:
    documents = find_documents([prepare_costs.INPUTS[name](tmp_path, 0.05, 7)])
    assert documents.size == pytest.approx(50_000, rel=0.15)
    assert len(documents) == (1 if name.startswith("one") else pytest.approx(7, abs=1) if "files" in name else 50)


def test_time_and_memory_are_measured(gpt2_vocabulary: None, tmp_path: Path) -> None:
    path = prepare_costs.one_file(tmp_path, 0.05, 1)
    cost = prepare_costs.measure(path, tmp_path / "out", path)
    assert 0 < cost.seconds < 60 and 0 < cost.cpu_seconds < 60
    assert 50 < cost.megabytes < 1000
    assert 0 < cost.tiktoken_rate < 1000
