"""The typed config: its bounds, its shares for ranks, and its way to YAML and back."""

import dataclasses
import math
from pathlib import Path

import pytest
import yaml

from mlm_dist.config import Config, ModelConfig, TrainConfig, find_problems, positive_keys
from mlm_dist.config_reading import known_keys, parse_config, read_config
from mlm_dist.errors import UserError
from tests.conftest import flags

LEAVES = {key: kind for key, kind in known_keys().items() if not dataclasses.is_dataclass(kind)}
INTEGERS = [key for key, kind in LEAVES.items() if kind in (int, int | None)]
FLOATS = [key for key, kind in LEAVES.items() if kind is float]


def complaint(arguments: list[str]) -> str:
    with pytest.raises(UserError) as caught:
        parse_config(arguments, verb="train")
    return str(caught.value)


def config_with(key: str, value: object) -> Config:
    config = Config()
    section, _, name = key.rpartition(".")
    setattr(getattr(config, section) if section else config, name, value)
    return config


def yaml_of(key: str, value: str) -> str:
    section, _, name = key.rpartition(".")
    return f"{section}:\n  {name}: {value}\n" if section else f"{name}: {value}\nrun_dir: somewhere\n"


def test_the_defaults_have_no_problems():
    assert find_problems(Config()) == []


def test_sections_are_not_shared_between_configs():
    one, other = Config(), Config()
    one.optim.lr = 7.0
    assert other.optim.lr == 1e-3


def test_a_vocabulary_size_of_null_is_replaced_and_a_number_stays():
    config = Config()
    assert config.with_vocab_size(600).model == ModelConfig(vocab_size=600)
    assert config.model.vocab_size is None
    assert config.with_vocab_size(600).with_vocab_size(300).model.vocab_size == 600


def test_the_entries_of_a_vocabulary_are_not_known_as_long_as_its_size_is_null():
    assert ModelConfig(vocab_size=600).entries == 600
    with pytest.raises(ValueError, match=r"model\.vocab_size is null"):
        _ = ModelConfig().entries


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize("key", positive_keys(Config()))
def test_a_size_below_1_is_refused_by_name(key, value):
    assert find_problems(config_with(key, value)) == [f"{key} is {value}: it must be at least 1"]


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("key", FLOATS)
def test_a_float_may_be_neither_negative_nor_nan_nor_infinite(key, value):
    assert key in "".join(find_problems(config_with(key, value)))


@pytest.mark.parametrize("key", INTEGERS)
def test_a_whole_number_may_not_be_negative(key):
    assert key in "".join(find_problems(config_with(key, -1)))


@pytest.mark.parametrize("key", ["optim.lr", "train.max_iters"])
@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
def test_yamls_own_nan_and_infinity_are_refused(key, value, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(yaml_of(key, value))
    assert key in complaint(["--config", str(file)])
    assert key in complaint([f"--{key}={value}"])


@pytest.mark.parametrize("key", ["seed", "run_dir", "device", "debug", "data.path", "model.heads", "optim.lr"])
def test_null_is_refused_where_a_value_is_needed(key, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(yaml_of(key, "null"))
    assert key in complaint(["--config", str(file)])


@pytest.mark.parametrize("key", ["run_dir", "data.path"])
def test_an_empty_path_is_refused(key):
    # `--run_dir "$RUN"` with RUN unset would fill the current folder.
    assert key in complaint([f"--{key}="])


@pytest.mark.parametrize(
    ("key", "value", "bound"),
    [
        ("masking.mask_prob", 0.0, "between 0 and 1"),
        ("masking.mask_prob", 1.0, "between 0 and 1"),
        ("masking.mask_prob", 1.5, "between 0 and 1"),
        ("masking.mask_prob", -0.1, "between 0 and 1"),
        ("masking.mask_prob", {"from": 0.3}, "{from: A, to: B}, both between 0 and 1"),
        ("masking.mask_prob", {"from": 0.3, "to": 1.0}, "{from: A, to: B}, both between 0 and 1"),
        ("masking.mask_prob", {"from": 0.3, "to": 0.1, "by": 0.1}, "{from: A, to: B}, both between 0 and 1"),
        ("masking.mask_prob", [0.5], "[LOW, HIGH] with 0 <= LOW < HIGH <= 1"),
        ("masking.mask_prob", [0.5, 0.5], "[LOW, HIGH] with 0 <= LOW < HIGH <= 1"),
        ("masking.mask_prob", [0.5, 1.1], "[LOW, HIGH] with 0 <= LOW < HIGH <= 1"),
        ("masking.mask_prob", [-0.1, 0.5], "[LOW, HIGH] with 0 <= LOW < HIGH <= 1"),
        ("model.dropout", 1.0, "at least 0 and below 1"),
        ("model.dropout", -0.1, "at least 0 and below 1"),
        ("data.val_fraction", 1.0, "at least 0 and below 1"),
        ("data.val_fraction", -0.5, "at least 0 and below 1"),
        ("optim.lr", 0.0, "above 0"),
        ("optim.decay_fraction", 1.1, "between 0 and 1"),
        ("optim.weight_decay", -0.01, "0 or more"),
        ("optim.grad_clip", -1.0, "0 or more"),
        ("model.vocab_size", 2, "at least 3"),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_its_bound(key, value, bound):
    assert find_problems(config_with(key, value)) == [f"{key} is {value}: it must be {bound}"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("masking.mask_prob", 0.001),
        ("masking.mask_prob", 0.999),
        ("masking.mask_prob", [0.0, 1.0]),
        ("masking.mask_prob", {"from": 0.001, "to": 0.999}),
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
def test_a_value_at_its_bound_is_taken(key, value):
    assert find_problems(config_with(key, value)) == []


@pytest.mark.parametrize("value", [0.3, [0.0, 1.0], {"from": 0.3, "to": 0.15}], ids=str)
def test_the_mask_probability_is_a_number_a_range_or_a_course_in_a_file_and_on_the_command_line(value, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"masking": {"mask_prob": value}}))
    for arguments in (
        ["--config", str(file)],
        [f"--masking.mask_prob={yaml.safe_dump(value, default_flow_style=True)}"],
    ):
        config = parse_config(arguments, "train")
        assert config.masking.mask_prob == value
        file.write_text(config.to_yaml())
        assert parse_config(["--config", str(file)], "train") == config


@pytest.mark.parametrize("value", ["[a, 1]", "{from: a, to: b}", "{from: 0.1, to: [1]}", "much", "", "null", "true"])
def test_a_mask_probability_that_is_none_of_these_is_refused(value, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(f"masking:\n  mask_prob: {value}\n")
    for arguments in (["--config", str(file)], [f"--masking.mask_prob={value}"]):
        assert "masking.mask_prob: " in complaint(arguments)


def test_a_range_needs_tokens_that_are_really_hidden():
    message = complaint(["--masking.mask_prob=[0, 1]", "--masking.replacement=80/10/10"])
    assert message == "masking.mask_prob is a range: masking.replacement must be mask, for the weights count on it"


def test_a_seed_that_torch_cannot_take_is_refused():
    assert "seed" in complaint(["--seed=99999999999999999999999999"])


def test_the_embedding_has_to_be_divisible_by_the_heads():
    message = complaint(flags(model__embedding_dim=100, model__heads=8))
    assert message == "model.embedding_dim 100 is not a multiple of model.heads 8: 5 heads fit"


def test_the_batch_has_to_be_divisible_by_the_micro_batch():
    message = complaint(flags(train__batch_size=10, train__micro_batch_size=4))
    assert message == "train.batch_size 10 is not a multiple of train.micro_batch_size 4"


def test_all_problems_are_named_at_once():
    message = complaint(flags(model__heads=0, optim__lr=0, masking__mask_prob=2, seed=-4))
    for problem in ("model.heads is 0", "optim.lr is 0", "masking.mask_prob is 2", "seed is -4"):
        assert problem in message


def test_the_batch_is_shared_by_the_ranks():
    config = Config(train=TrainConfig(batch_size=24))
    assert [config.micro_batch_size(ranks) for ranks in (1, 2, 4)] == [24, 12, 6]
    config.train.micro_batch_size = 3
    assert [config.micro_batch_size(ranks) for ranks in (1, 2, 4)] == [3, 3, 3]
    for ranks in (1, 2, 4, 8):
        config.check_world_size(ranks)


@pytest.mark.parametrize(
    ("settings", "ranks", "words"),
    [
        ({"batch_size": 10}, 4, ["train.batch_size 10", "4 processes"]),
        ({"batch_size": 16, "micro_batch_size": 8}, 4, ["train.batch_size 16", "4 processes", "micro_batch_size 8"]),
    ],
)
def test_a_batch_that_the_ranks_cannot_share_is_refused(settings, ranks, words):
    with pytest.raises(UserError) as caught:
        Config(train=TrainConfig(**settings)).check_world_size(ranks)
    assert all(word in str(caught.value) for word in words)


def test_debug_is_for_one_process():
    Config(debug=True).check_world_size(1)
    with pytest.raises(UserError, match="debug: true is for one process, and 2 were started"):
        Config(debug=True).check_world_size(2)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        flags(optim__lr=1e-5, train__micro_batch_size=64, masking__replacement="80/10/10", model__tie_embeddings=False),
        flags(run_dir="läufe/null", data__path="1e-3", data__tokenizer="bpe", device="cpu", debug=True),
        flags(run_dir="# a: 'b' \"c\"", data__path="- {x}", data__encoding="no"),
    ],
    ids=["defaults", "numbers", "words that look like numbers", "characters that mean something to YAML"],
)
def test_a_config_survives_yaml(arguments, tmp_path):
    config = parse_config(arguments, verb="train")
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml(), encoding="utf-8")
    assert read_config(file) == config


def test_yaml_holds_every_key():
    content = yaml.safe_load(Config().to_yaml())
    written = {
        f"{name}.{key}" if isinstance(value, dict) else name
        for name, value in content.items()
        for key in (value if isinstance(value, dict) else [""])
    }
    assert written == set(LEAVES)


def test_a_run_directorys_config_that_is_damaged_is_named(tmp_path: Path):
    file = tmp_path / "config.yaml"
    file.write_text("model: [")
    with pytest.raises(UserError, match=str(file)):
        read_config(file)
