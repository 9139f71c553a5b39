"""The typed config: its bounds, the split of the batch over ranks, and the conversion to YAML and back."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from mlm_dist.config import Config, MaskingConfig, ModelConfig, TrainConfig
from mlm_dist.config_help import describe_type, leaf_types
from mlm_dist.config_reading import parse_config, read_config
from mlm_dist.errors import UserError
from tests.conftest import flags

INTEGERS = [key for key, kind in leaf_types().items() if describe_type(kind).startswith("a whole number")]
FLOATS = [key for key, kind in leaf_types().items() if describe_type(kind).startswith("a number")]
POSITIVE = [key for key in INTEGERS if describe_type(leaf_types()[key]).startswith("a whole number, at least 1")]


def error_message(arguments: list[str]) -> str:
    with pytest.raises(UserError) as caught:
        parse_config(arguments, verb="train")
    return str(caught.value)


def error_message_of(key: str, value: object) -> str:
    return error_message([f"--{key}={yaml.safe_dump(value, default_flow_style=True).removesuffix('...')}"])


def yaml_of(key: str, value: str) -> str:
    section, _, name = key.rpartition(".")
    return f"{section}:\n  {name}: {value}\n" if section else f"{name}: {value}\nrun_dir: somewhere\n"


def test_the_defaults_are_valid():
    assert parse_config([], verb="train") == Config()


def test_patience_without_evaluations_is_refused():
    patience = ["--train.patience=3"]
    assert error_message([*patience, "--train.eval_interval=0"]).startswith("train.patience counts evaluations")
    assert parse_config(patience, verb="train").train.patience == 3


def test_sections_are_not_shared_between_configs():
    one, other = Config(), Config()
    one.optim.lr = 7.0
    assert other.optim.lr == 1e-3


def test_a_vocabulary_size_of_null_is_replaced_and_a_number_is_kept():
    config = Config()
    assert config.with_vocab_size(600).model == ModelConfig(vocab_size=600)
    assert config.model.vocab_size is None
    assert config.with_vocab_size(600).with_vocab_size(300).model.vocab_size == 600


def test_entries_raises_while_the_vocabulary_size_is_null():
    assert ModelConfig(vocab_size=600).entries == 600
    with pytest.raises(ValueError, match=r"model\.vocab_size is null"):
        _ = ModelConfig().entries


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize("key", POSITIVE)
def test_a_size_below_1_is_refused_by_name(key, value):
    assert error_message_of(key, value).startswith(f"--{key} is {value}: it must be a whole number, at least 1")


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("key", FLOATS)
def test_a_float_that_is_negative_or_not_finite_is_refused(key, value):
    assert f"--{key} is " in error_message_of(key, value)


@pytest.mark.parametrize("key", INTEGERS)
def test_a_negative_integer_is_refused(key):
    assert f"--{key} is -1: it must be a whole number" in error_message_of(key, -1)


@pytest.mark.parametrize("key", ["optim.lr", "train.max_iters"])
@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
def test_nan_and_infinity_in_yaml_notation_are_refused(key, value, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(yaml_of(key, value))
    assert key in error_message(["--config", str(file)])
    assert key in error_message([f"--{key}={value}"])


@pytest.mark.parametrize("key", ["seed", "run_dir", "device", "debug", "data.path", "model.heads", "optim.lr"])
def test_null_is_refused_where_a_value_is_needed(key, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(yaml_of(key, "null"))
    assert key in error_message(["--config", str(file)])


@pytest.mark.parametrize("key", ["run_dir", "data.path"])
def test_an_empty_path_is_refused(key):
    # `--run_dir "$RUN"` with RUN unset would fill the current folder.
    assert key in error_message([f"--{key}="])


@pytest.mark.parametrize(
    ("key", "value", "bound"),
    [
        ("masking.mask_prob", 0.0, "a number, above 0 and below 1"),
        ("masking.mask_prob", 1.0, "a number, above 0 and below 1"),
        ("masking.mask_prob", 1.5, "a number, above 0 and below 1"),
        ("masking.mask_prob", -0.1, "a number, above 0 and below 1"),
        ("masking.mask_prob_end", 1.0, "a number, above 0 and below 1, or null"),
        ("masking.mask_prob_range", [0.5], "a list of 2 values, each a number, at least 0 and"),
        ("masking.mask_prob_range", [0.5, 1.1], "a list of 2 values, each a number, at least 0 and"),
        (
            "masking.mask_prob_range",
            [-0.1, 0.5],
            "a list of 2 values, each a number, at least 0 and",
        ),
        ("model.dropout", 1.0, "a number, at least 0 and below 1"),
        ("model.dropout", -0.1, "a number, at least 0 and below 1"),
        ("data.val_fraction", 1.0, "a number, at least 0 and below 1"),
        ("data.val_fraction", -0.5, "a number, at least 0 and below 1"),
        ("optim.lr", 0.0, "a number, above 0"),
        ("optim.decay_fraction", 1.1, "a number, at least 0 and at most 1"),
        ("optim.weight_decay", -0.01, "a number, at least 0"),
        ("optim.grad_clip", -1.0, "a number, at least 0"),
        ("model.vocab_size", 2, "a whole number, at least 3, or null"),
        ("model.logit_softcap", 0.0, "a number, above 0, or null"),
        ("model.embedding_std", 0.0, "a number, above 0"),
        ("model.output_std", -0.1, "a number, at least 0"),
        ("model.query_key_std", 0.0, "a number, above 0"),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_its_bound(key, value, bound):
    assert error_message_of(key, value).startswith(f"--{key} is {value}: it must be {bound}")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("masking.mask_prob", 0.001),
        ("masking.mask_prob", 0.999),
        ("masking.mask_prob_range", [0.0, 1.0]),
        ("masking.mask_prob_end", 0.999),
        ("model.dropout", 0.0),
        ("data.val_fraction", 0.0),
        ("optim.weight_decay", 0.0),
        ("optim.warmup_iters", 0),
        ("optim.grad_clip", 0.0),
        ("optim.decay_fraction", 1.0),
        ("train.eval_interval", 0),
        ("train.max_iters", 1),
        ("seed", 0),
    ],
)
def test_a_value_at_its_bound_is_accepted(key, value):
    parse_config([f"--{key}={value}"], verb="train")


@pytest.mark.parametrize(
    ("previous", "current"),
    [
        ("[0, 1]", MaskingConfig(mask_prob_range=[0.0, 1.0])),
        ("{from: 0.3, to: 0.15}", MaskingConfig(mask_prob=0.3, mask_prob_end=0.15)),
    ],
)
def test_the_mask_rates_of_earlier_versions_are_still_read(previous, current, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(f"masking:\n  mask_prob: {previous}\n")
    for arguments in (["--config", str(file)], [f"--masking.mask_prob={previous}"]):
        config = parse_config(arguments, "train")
        assert config.masking == current
        written = tmp_path / "written.yaml"
        written.write_text(config.to_yaml())
        assert read_config(written) == config


@pytest.mark.parametrize(
    "value", ["[a, 1]", "{from: a, to: b}", "{from: 0.1}", "{from: 0.1, to: [1]}", "much", "", "null", "true"]
)
def test_any_other_mask_rate_is_refused(value, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(f"masking:\n  mask_prob: {value}\n")
    for arguments in (["--config", str(file)], [f"--masking.mask_prob={value}"]):
        assert "masking.mask_prob" in error_message(arguments)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"masking__replacement": "80/10/10"},
            "masking.mask_prob_range needs masking.replacement mask",
        ),
        ({"masking__mask_prob_end": 0.1}, "masking.mask_prob_end and masking.mask_prob_range cannot be combined"),
        ({"masking__mask_prob_range": "[0.5, 0.5]"}, "masking.mask_prob_range is [0.5, 0.5]: LOW must be below HIGH"),
    ],
)
def test_an_invalid_range_of_mask_rates_is_refused(settings, message):
    assert error_message(flags(**{"masking__mask_prob_range": "[0, 1]"} | settings)).startswith(message)


def test_a_seed_too_large_for_torch_is_refused():
    assert "seed" in error_message(["--seed=99999999999999999999999999"])


def test_the_embedding_dimension_must_be_a_multiple_of_the_heads():
    message = error_message(flags(model__embedding_dim=100, model__heads=8))
    assert message == "model.embedding_dim 100 is not a multiple of model.heads 8: 5 heads fit"


def test_rotated_heads_must_have_an_even_number_of_channels():
    message = error_message(["--model.positions=rope", "--model.embedding_dim=24", "--model.heads=8"])
    assert (
        "model.positions rope needs an even number of channels per head, but model.embedding_dim 24 / model" in message
    )


def test_a_tied_output_layer_has_no_initial_values_of_its_own():
    message = error_message(["--model.output_std=0.0"])
    assert "model.output_std needs model.tie_embeddings false" in message
    parse_config(["--model.output_std=0.0", "--model.tie_embeddings=false"], verb="train")


def test_the_batch_size_must_be_a_multiple_of_the_micro_batch_size():
    message = error_message(flags(train__batch_size=10, train__micro_batch_size=4))
    assert message == "train.batch_size 10 is not a multiple of train.micro_batch_size 4"


def test_all_wrong_values_are_reported_together():
    message = error_message(flags(model__heads=0, optim__lr=0, masking__mask_prob=2, seed=-4))
    lines = [line.partition(":")[0] for line in message.split("\n")]
    assert lines == ["--model.heads is 0", "--masking.mask_prob is 2", "--optim.lr is 0", "--seed is -4"]


def test_mistakes_in_files_flags_keys_and_combinations_are_reported_together(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("train:\n  max_iters: many\n  warmup: 3\n")
    lines = error_message(["--config", str(file), *flags(model__heads=7, optim__lr=0, optim__name="sgd", lr=1)]).split(
        "\n"
    )
    assert sorted(lines) == [
        "--lr: unknown key; did you mean optim.lr?",
        "--optim.lr is 0: it must be a number, above 0",
        '--optim.name is "sgd": it must be one of adamw, muon, normuon',
        f'{file}: train.max_iters is "many": it must be a whole number, at least 1',
        f"{file}: train.warmup: unknown key; did you mean optim.warmup_iters?",
        "model.embedding_dim 256 is not a multiple of model.heads 7: 4 heads fit",
    ]


def test_a_wrong_value_is_refused_in_python():
    with pytest.raises(ValidationError):
        TrainConfig(batch_size=0)
    misspelled: dict[str, Any] = {"batch_sise": 3}
    with pytest.raises(ValidationError):
        TrainConfig(**misspelled)


def test_the_batch_is_split_evenly_over_the_ranks():
    config = Config(train=TrainConfig(batch_size=24))
    assert [config.micro_batch_size(ranks) for ranks in (1, 2, 4)] == [24, 12, 6]
    config.train.micro_batch_size = 3
    assert [config.micro_batch_size(ranks) for ranks in (1, 2, 4)] == [3, 3, 3]
    for ranks in (1, 2, 4, 8):
        config.check_world_size(ranks)


@pytest.mark.parametrize(
    ("settings", "ranks", "parts"),
    [
        ({"batch_size": 10}, 4, ["train.batch_size 10", "4 processes"]),
        ({"batch_size": 16, "micro_batch_size": 8}, 4, ["train.batch_size 16", "4 processes", "micro_batch_size 8"]),
    ],
)
def test_a_batch_that_cannot_be_split_evenly_is_refused(settings, ranks, parts):
    with pytest.raises(UserError) as caught:
        Config(train=TrainConfig(**settings)).check_world_size(ranks)
    assert all(word in str(caught.value) for word in parts)


def test_debug_with_two_processes_is_refused():
    Config(debug=True).check_world_size(1)
    with pytest.raises(UserError, match="debug: true is for one process, but 2 were started"):
        Config(debug=True).check_world_size(2)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        flags(optim__lr=1e-5, train__micro_batch_size=64, masking__replacement="80/10/10", model__tie_embeddings=False),
        flags(run_dir="läufe/null", data__path="1e-3", data__tokenizer="bpe", device="cpu", debug=True),
        flags(run_dir="# a: 'b' \"c\"", data__path="- {x}", data__encoding="no"),
    ],
    ids=["defaults", "numbers", "strings that look like other types", "special characters of YAML"],
)
def test_a_config_written_as_yaml_is_read_back_unchanged(arguments, tmp_path):
    config = parse_config(arguments, verb="train")
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml(), encoding="utf-8")
    assert read_config(file) == config


def test_the_yaml_has_every_key():
    content = yaml.safe_load(Config().to_yaml())
    written = {
        f"{name}.{key}" if isinstance(value, dict) else name
        for name, value in content.items()
        for key in (value if isinstance(value, dict) else [""])
    }
    assert written == leaf_types().keys()


def test_a_damaged_config_of_a_run_directory_is_named(tmp_path: Path):
    file = tmp_path / "config.yaml"
    file.write_text("model: [")
    with pytest.raises(UserError, match=str(file)):
        read_config(file)


@pytest.mark.parametrize("given", ["[tensorboard, wandb]", "tensorboard,wandb", "tensorboard, wandb"])
def test_trackers_are_a_list_or_names_with_commas_between_them(given: str) -> None:
    assert parse_config(["--report_to", given], verb="train").report_to == ["tensorboard", "wandb"]
