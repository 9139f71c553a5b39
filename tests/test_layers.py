"""Imports go only downward.

Verbs -> mlm_dist -> api -> finetuning -> huggingface, benchmarks -> plots -> inference -> training -> evaluation, run
-> model, data, distributed -> texts -> precision, config_reading, arguments -> config_help, exported_shape -> config,
exit_codes, files, foreign_names -> errors, fault_points, output.
"""

import ast
import graphlib
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, start

PACKAGE = REPOSITORY / "mlm_dist"
LAYERS = [
    {"callable_module", "errors", "fault_points", "output", "version"},
    {"config", "exit_codes", "files", "foreign_names"},
    {"config_help", "exported_shape"},
    {"source", "phases"},
    {"config_reading", "arguments", "precision"},
    {"texts"},
    {"data", "model", "distributed"},
    {"evaluation", "run"},
    {"training"},
    {"inference"},
    {"plots"},
    {"huggingface", "benchmarks"},
    {"finetuning"},
    {"api"},
    {"benchmark_arguments", "finetune_arguments", "prepare_arguments"},
    {""},  # mlm_dist itself
]
HEIGHT = {part: height for height, parts in enumerate(LAYERS) for part in parts}


def name_of(file: Path) -> str:
    parts = file.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(file): file for file in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in FILES.items()}


def imports(name: str) -> set[str]:
    """All modules that a module imports, also in functions; of mlm_dist, modules and not the names in them."""
    found: set[str] = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} line {node.lineno}: these tests do not follow relative imports"
            modules = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= modules & FILES.keys() or {str(node.module)}
    return found


def is_verb(name: str) -> bool:
    """Whether a module is run with `python -m`."""
    return any(isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in TREES[name].body)


def part_of(name: str) -> str:
    """`data` for mlm_dist.data.corpus, `errors` for mlm_dist.errors."""
    return [*name.split("."), ""][1]


IMPORTS_OF_PACKAGE = {name: {other for other in imports(name) if other.split(".")[0] == "mlm_dist"} for name in FILES}
VERBS = [name for name in FILES if is_verb(name)]
MODULES = [name for name in FILES if name not in VERBS]


def test_verbs_and_other_modules_are_found():
    assert {"mlm_dist.train", "mlm_dist.fill", "mlm_dist.prepare"} <= set(VERBS)
    assert {"mlm_dist.training.trainer", "mlm_dist.errors"} <= set(MODULES)
    assert IMPORTS_OF_PACKAGE["mlm_dist.precision"] == {"mlm_dist.errors"}


def test_every_module_has_a_layer():
    assert {part_of(name) for name in MODULES} == HEIGHT.keys()
    assert all(name.count(".") == 1 for name in VERBS)


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_only_downward(name):
    for other in IMPORTS_OF_PACKAGE[name]:
        assert other not in VERBS
        downward = HEIGHT[part_of(other)] < HEIGHT[part_of(name)]
        assert downward or part_of(other) == part_of(name), f"{name} imports {other}"


def test_no_two_modules_import_each_other():
    graphlib.TopologicalSorter(IMPORTS_OF_PACKAGE).prepare()


def test_importing_the_package_loads_neither_torch_nor_numpy():
    loaded = start([sys.executable, "-c", "import mlm_dist, sys; print(*sys.modules)"]).stdout.split()
    assert "mlm_dist" in loaded
    assert {"torch", "numpy", "yaml", "mlm_dist.inference"}.isdisjoint(loaded)


def test_the_model_does_not_access_files():
    for name in FILES:
        if part_of(name) == "model":
            assert {part_of(other) for other in IMPORTS_OF_PACKAGE[name]} <= {"model", "config", "errors"}
            assert imports(name).isdisjoint({"pathlib", "os", "io", "json", "shutil", "yaml"})


def test_data_does_not_import_the_model():
    for name in FILES:
        if part_of(name) == "data":
            assert {part_of(other) for other in IMPORTS_OF_PACKAGE[name]}.isdisjoint({"model", "training", "inference"})


def test_checkpoints_import_neither_model_nor_data():
    assert {part_of(other) for other in IMPORTS_OF_PACKAGE["mlm_dist.run.checkpoint"]} <= {
        "errors",
        "fault_points",
        "files",
        "output",
    }


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_imports_no_other_verb(name):
    assert IMPORTS_OF_PACKAGE[name].isdisjoint(VERBS)


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_is_short(name):
    assert len(FILES[name].read_text(encoding="utf-8").splitlines()) < 150


@pytest.mark.parametrize("name", FILES)
def test_no_module_has_a_catch_all_name(name):
    last = name.split(".")[-1]
    assert not any(word in last for word in ("util", "helper", "manager", "common", "misc"))
