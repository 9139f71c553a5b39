"""The YAML files in configs/ are valid, and novels.yaml documents every key and its default."""

import dataclasses
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from mlm_dist.config import Config
from mlm_dist.config_help import leaf_types
from mlm_dist.config_reading import read_config
from tests.conftest import REPOSITORY, start

FILES = sorted((REPOSITORY / "configs").glob("*.yaml"))
NOVELS = REPOSITORY / "configs" / "novels.yaml"
DEBUG = REPOSITORY / "configs" / "debug.yaml"


def flatten(content: dict[str, object], prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in content.items():
        found |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_config_is_valid(file: Path):
    read_config(file)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_config_begins_with_a_comment_and_its_command(file: Path):
    head = file.read_text(encoding="utf-8").split("\n\n")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    assert f"--config configs/{file.name}" in head


def test_novels_has_every_key():
    assert flatten(yaml.safe_load(NOVELS.read_text(encoding="utf-8"))).keys() == leaf_types().keys()


def test_novels_has_the_defaults():
    assert read_config(NOVELS) == Config()


def test_novels_has_a_comment_on_every_key():
    values = [line for line in NOVELS.read_text(encoding="utf-8").splitlines() if re.match(r" *\w+: *[^ #]", line)]
    assert len(values) == len(flatten(dataclasses.asdict(Config())))
    for line in values:
        assert re.search(r" # \S+", line), line


def test_novels_has_the_published_settings():
    recipe = read_config(NOVELS)
    model, train = recipe.model, recipe.train
    assert model.vocab_size is None  # that of the corpus: 50258 with the gpt2 tokenizer
    assert (model.embedding_dim, model.heads, model.blocks, model.block_size) == (256, 8, 4, 64)
    assert (train.batch_size, train.max_iters) == (256, 5000)
    assert recipe.optim.lr == 1e-3
    assert recipe.masking.mask_prob == 0.15


def test_debug_needs_neither_network_nor_gpu():
    debug = read_config(DEBUG)
    assert debug.debug
    assert debug.precision == "fp32"
    assert (debug.data.path, debug.data.tokenizer) == ("sample", "bpe")


def test_the_documentation_of_the_keys_is_up_to_date(tmp_path: Path):
    for name in ("configuration.py", "configuration.md"):
        shutil.copy(REPOSITORY / "docs" / name, tmp_path)
    result = start([sys.executable, str(tmp_path / "configuration.py")])
    assert result.returncode == 0, result.stderr
    written = (tmp_path / "configuration.md").read_text(encoding="utf-8")
    assert written == (REPOSITORY / "docs" / "configuration.md").read_text(encoding="utf-8")
