"""The shape of an exported model is read from its config.json, and what an `Encoder` cannot be is refused."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlm_dist.config import ModelConfig
from mlm_dist.data.corpus import Corpus
from mlm_dist.errors import UserError
from mlm_dist.exported_shape import FIXED, read_exported_shape
from mlm_dist.huggingface.megatron_bert import describe_model
from mlm_dist.model.encoder import LAYER_NORM_EPS
from tests.conftest import start

SHAPE = ModelConfig(vocab_size=300, block_size=16, embedding_dim=24, heads=3, blocks=2)


@pytest.fixture
def content(corpus: Corpus) -> dict[str, Any]:
    """The content of a config.json."""
    return describe_model(SHAPE, corpus.tokenizer)


def read(content: object, folder: Path) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    return read_exported_shape(folder)


@pytest.mark.parametrize(
    "shape",
    [SHAPE, replace(SHAPE, dropout=0.25), replace(SHAPE, tie_embeddings=False), replace(SHAPE, heads=8, blocks=7)],
)
def test_the_shape_of_an_export_is_read(shape: ModelConfig, corpus: Corpus, tmp_path: Path) -> None:
    assert read(describe_model(shape, corpus.tokenizer), tmp_path) == shape


def test_the_layer_norms_have_the_epsilon_of_the_encoder() -> None:
    assert FIXED["layer_norm_eps"] == LAYER_NORM_EPS


def test_tied_embeddings_are_the_default_of_transformers(content: dict[str, Any], tmp_path: Path) -> None:
    del content["tie_word_embeddings"]
    assert read(content, tmp_path).tie_embeddings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, "model_type is 'bert', which has post-LayerNorm: only models that `export`"),
        ({"model_type": "modernbert"}, "model_type is 'modernbert', which has gated feed-forward layers"),
        ({"model_type": "t5"}, "model_type is 't5': only models that `export` wrote can be read"),
        ({"model_type": None}, "model_type is None: only models"),
        ({"model_type": ["bert"]}, "model_type is ['bert']: only models"),
        ({"hidden_act": "relu2"}, "hidden_act is 'relu2': an export has 'relu' or 'gelu'"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps is 1e-05: a model of mlm_dist has 1e-12"),
        ({"intermediate_size": 72}, "intermediate_size is 72: a model of mlm_dist has 96"),
        ({"is_decoder": True}, "is_decoder is True: a model of mlm_dist has False"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key': a model of"),
        ({"hidden_size": "24"}, "hidden_size is '24': Input should be a valid integer"),
        ({"hidden_size": 24.5}, "hidden_size is 24.5: Input should be a valid integer"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0: Input should be greater than 0"),
        ({"num_attention_heads": 5}, "model.embedding_dim 24 is not a multiple of model.heads 5: 4 heads fit"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob is 1.0: Input should be less than 1"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes': Input should be a valid boolean"),
        ({"num_hidden_layers": ["x" * 100] * 1000}, "num_hidden_layers is ['xxx"),
    ],
)
def test_a_model_that_an_encoder_cannot_be_is_refused(
    change: dict[str, object], message: str, content: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(UserError) as raised:
        read(content | change, tmp_path)
    (line,) = str(raised.value).splitlines()
    assert line.startswith(f"{tmp_path / 'config.json'}: {message}")
    assert len(line) < 300 + len(str(tmp_path))


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "hidden_act", "layer_norm_eps", "model_type"])
def test_a_missing_key_is_refused(key: str, content: dict[str, Any], tmp_path: Path) -> None:
    del content[key]
    with pytest.raises(UserError, match=key):
        read(content, tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not JSON at line 1"), ("[1]", "it is not a JSON object"), ("", "not JSON"), (b"\xff", "not UTF-8")],
)
def test_a_damaged_config_json_is_refused(text: str | bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=rf"config\.json: .*{message}"):
        read_exported_shape(tmp_path)


def test_a_missing_config_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json: No such file or directory"):
        read_exported_shape(tmp_path)


def test_reading_a_shape_loads_neither_torch_nor_numpy(content: dict[str, Any], tmp_path: Path) -> None:
    read(content, tmp_path)
    script = (
        "import sys; from pathlib import Path; from mlm_dist.exported_shape import read_exported_shape as read; "
        "print(read(Path(sys.argv[1])).blocks, {'torch', 'numpy', 'safetensors', 'tokenizers'} & sys.modules.keys())"
    )
    result = start([sys.executable, "-c", script, str(tmp_path)])
    assert result.stdout == "2 set()\n", result.stderr
