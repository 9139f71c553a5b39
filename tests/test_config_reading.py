"""Reading a config from YAML and flags, `--help`, and a line that names every mistake."""

import dataclasses
import re
from pathlib import Path

import pytest

from mlm_dist import foreign_names
from mlm_dist.config import Config
from mlm_dist.config_help import describe_keys, leaf_types
from mlm_dist.config_reading import parse_config, read_config
from mlm_dist.errors import UserError


def parse(*arguments: object) -> Config:
    return parse_config([str(argument) for argument in arguments], verb="train")


def error_message(*arguments: object) -> str:
    with pytest.raises(UserError) as caught:
        parse(*arguments)
    return str(caught.value)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


# Valid configs


def test_no_arguments_give_the_defaults():
    assert parse() == Config()


def test_a_flag_overrides_a_key():
    assert parse("--optim.lr", "5e-4").optim.lr == 5e-4
    assert parse("--optim.lr=5e-4").optim.lr == 5e-4


def test_values_have_the_types_of_their_keys(file):
    file.write_text("seed: 7\noptim: {lr: 1}\nmodel: {tie_embeddings: false}\ntrain: {micro_batch_size: null}\n")
    config = parse("--config", file, "--debug", "true", "--model.dropout", "0", "--run_dir", "7")
    assert type(config.seed) is int
    assert type(config.optim.lr) is float
    assert config.model.tie_embeddings is False
    assert config.train.micro_batch_size is None
    assert config.debug is True
    assert type(config.model.dropout) is float
    assert config.run_dir == "7"


def test_flags_override_the_file_and_the_file_the_defaults(file):
    file.write_text("seed: 7\noptim:\n  lr: 2.0e-3\n  warmup_iters: 3\n")
    config = parse("--config", file, "--optim.lr", "5e-4")
    assert (config.seed, config.optim.lr, config.optim.warmup_iters) == (7, 5e-4, 3)
    assert config.optim.schedule == Config().optim.schedule


def test_a_later_file_overrides_keys_of_an_earlier_one(file, tmp_path):
    other = tmp_path / "other.yaml"
    file.write_text("seed: 7\nmodel:\n  heads: 4\n  blocks: 2\n")
    other.write_text("model:\n  heads: 2\n")
    config = parse(f"--config={file}", "--config", other)
    assert (config.seed, config.model.heads, config.model.blocks) == (7, 2, 2)


@pytest.mark.parametrize("written", ["1e-3", "1E-3", "1.0e-3", "0.001", ".001", "1e-03"])
def test_a_number_can_be_written_in_any_common_notation(written, file):
    file.write_text(f"optim:\n  lr: {written}\n")
    assert parse("--config", file).optim.lr == 1e-3
    assert parse("--optim.lr", written).optim.lr == 1e-3


def test_a_file_can_have_few_keys_and_a_byte_order_mark(file):
    file.write_bytes(b"\xef\xbb\xbf# my config\nseed: 7\n")
    assert parse("--config", file) == dataclasses.replace(Config(), seed=7)


@pytest.mark.parametrize("value", ["null", "[a]", "a: b", "{x}", "1e-3", "true", "ä ö", "no"])
def test_a_text_value_is_used_as_written(value):
    assert parse("--run_dir", value).run_dir == value


# --help and --print_config


def test_help_explains_every_key_with_its_docstring(capsys):
    with pytest.raises(SystemExit) as left:
        parse("--help")
    assert left.value.code == 0
    # Without white space, because argparse wraps lines; without the usage, which names the flags too.
    text = re.sub(r"\s", "", capsys.readouterr().out.partition("options:")[2])
    assert describe_keys().keys() == leaf_types().keys()
    for key, explanation in describe_keys().items():
        assert explanation
        first_words = "".join(explanation.split()[:6])
        flag_and_values = rf"--{re.escape(key)}([A-Z_]+|\{{[^}}]+\}})"
        assert re.search(flag_and_values + re.escape(first_words), text), key


def test_print_config_prints_yaml_of_the_same_config(capsys, file):
    arguments = ["--optim.lr", "5e-4", "--train.micro_batch_size", "32", "--run_dir", "läufe/1", "--debug", "true"]
    with pytest.raises(SystemExit) as left:
        parse(*arguments, "--print_config")
    assert left.value.code == 0
    file.write_text(capsys.readouterr().out, encoding="utf-8")
    assert read_config(file) == parse(*arguments)


# Mistakes on the command line


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--optim.lrr", "1"], ["--optim.lrr", "unknown key", "did you mean optim.lr?"]),
        (["--optim.warmup_iter", "1"], ["--optim.warmup_iter", "did you mean optim.warmup_iters?"]),
        (["--lr", "1"], ["--lr", "did you mean optim.lr?"]),
        (["--train.lr=1"], ["--train.lr", "did you mean optim.lr?"]),
        (["--sede", "1"], ["--sede", "did you mean seed?"]),
        (["--xyzzy", "1"], ["--xyzzy", "unknown key", "--help"]),
        (["--optim.l", "1"], ["--optim.l", "unknown key"]),
        (["--se", "1"], ["--se", "unknown key"]),
        (["--conf", "x.yaml"], ["--conf", "unknown key"]),
        (["--optim.lr.x", "1"], ["--optim.lr.x", "unknown key"]),
        (["--optim", "1"], ["--optim", "section", "optim.name"]),
        (["--model", "model.yaml"], ["--model", "section"]),
        (["--"], ["--"]),
        (["-x"], ["-x"]),
        (["novels"], ["novels"]),
        (["--seed", "3", "4"], ["4"]),
        (["--optim.lr"], ["--optim.lr", "value is missing"]),
        (["--optim.lr", "--seed", "3"], ["--optim.lr", "value is missing"]),
        (["--debug"], ["--debug", "value is missing"]),
        (["--optim.lr="], ["optim.lr", "a number"]),
        (["--config"], ["--config", "missing"]),
        (["--seed", "1.5"], ["seed", "1.5", "whole number"]),
        (["--seed", "many"], ["seed", "many", "whole number"]),
        (["--train.max_iters", "1e3"], ["train.max_iters", "whole number"]),
        (["--optim.lr", "fast"], ["optim.lr", "fast", "a number"]),
        (["--optim.lr", "true"], ["optim.lr", "a number"]),
        (["--optim.lr", "nan"], ["optim.lr", "nan"]),
        (["--optim.lr", "inf"], ["optim.lr", "inf"]),
        (["--debug", "maybe"], ["debug", "maybe", "true or false"]),
        (["--device", "gpu"], ["device", "gpu", "auto, cpu, cuda"]),
        (["--precision", "fp8"], ["precision", "fp8", "bf16"]),
        (["--optim.schedule", "Cosine"], ["optim.schedule", "Cosine", "cosine"]),
        (
            ["--train.micro_batch_size", "half"],
            ["train.micro_batch_size", "half", "whole number, at least 1, or null"],
        ),
        (["--print_config=everything"], ["--print_config: unknown key"]),
    ],
    ids=lambda value: " ".join(value) if value and str(value[0]).startswith("-") else "",
)
def test_a_mistake_on_the_command_line_is_named(arguments, parts):
    message = error_message(*arguments)
    assert all(word in message for word in parts), message


# Mistakes in a file


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("optim:\n  lrr: 1\n", ["optim.lrr", "unknown key", "did you mean optim.lr?"]),
        ("optim:\n  warmup_iter: 1\n", ["optim.warmup_iter", "did you mean optim.warmup_iters?"]),
        ("lr: 1\n", ["lr: unknown key", "did you mean optim.lr?"]),
        ("seeed: 3\n", ["seeed", "did you mean seed?"]),
        ("optimizer:\n  lr: 1\n", ["optimizer.lr", "did you mean optim.lr?"]),
        ("model:\n  model:\n    heads: 2\n", ["model.model.heads", "unknown key"]),
        ("1: 2\n", ["1: unknown key"]),
        ("config: other.yaml\n", ["config: unknown key"]),
        ("optim: 3\n", ["optim is a section"]),
        ("optim: [lr, 3]\n", ["optim is a section"]),
        ("optim:\n", ["optim is a section"]),
        ("data: data.yaml\n", ["data is a section"]),
        ("seed: {a: 1}\n", ["seed"]),
        ("a: [1\n", [" line 2: not YAML", "in the block that begins in line 1; a bracket or a quote is not closed"]),
        ("\tseed: 3\n", [" line 1: a tab; YAML is indented with spaces"]),
        ("optim:\n\tlr: 3\n", [" line 2: a tab; YAML is indented with spaces"]),
        ("seed: 3: 4\n", [" line 1: not YAML", "quote a value that has a colon"]),
        ("optim:\n lr: 1\n  schedule: wsd\n", [" line 3: not YAML", "indent the keys of a section alike"]),
        ("optim:\n    lr: 1\n  schedule: wsd\n", [" line 3: not YAML", "indent the keys of a section alike"]),
        ("run_dir: 'a\n", [" line 2: not YAML", "a quote is not closed"]),
        (
            "seed: 3\nrun_dir a\ndebug: true\n",
            [" line 3: not YAML", "write `key: value`, with a space after the colon"],
        ),
        ("seed = 3\n", ['with a space after the colon, and found "seed = 3"']),
        ("seed: 1\n---\nseed: 2\n", ["not YAML"]),
        ("seed: !!python/object/apply:os.getcwd []\n", ["not YAML"]),
        ("- 1\n", ["found [1]"]),
        ("just words\n", ['found "just words"']),
        ("", ["it contains no keys"]),
        ("seed: 1.5\n", ["seed", "1.5", "whole number"]),
        ("seed: true\n", ["seed", "whole number"]),
        ("optim:\n  lr: fast\n", ["optim.lr", "fast", "a number"]),
        ("optim:\n  lr: [1]\n", ["optim.lr", "a number"]),
        ("optim:\n  lr: true\n", ["optim.lr", "a number"]),
        ("debug: maybe\n", ["debug", "maybe", "true or false"]),
        ("debug: 1\n", ["debug", "true or false"]),
        ("device: gpu\n", ["device", "gpu", "auto, cpu, cuda"]),
        (
            "train:\n  micro_batch_size: half\n",
            ["train.micro_batch_size", "half", "whole number, at least 1, or null"],
        ),
        ("data:\n  path: 3\n", ["data.path", "3", "text"]),
        ("data:\n  path: [a, b]\n", ["data.path", "text"]),
        ("optim:\n  lr: 1.0\nseed: 1\noptim:\n  warmup_iters: 2\n", ["optim", "twice"]),
        ("optim:\n  lr: 1.0\n  lr: 2.0\n", [" line 3: not YAML: lr appears twice"]),
        ("learning_rate: 1.0\n", ["learning_rate: unknown key; did you mean optim.lr?"]),
        ("training:\n  max-steps: 10\n", ["training.max-steps: unknown key; did you mean train.max_iters?"]),
    ],
)
def test_a_mistake_in_a_file_and_the_file_are_named(content, parts, file):
    file.write_text(content)
    message = error_message("--config", file)
    assert all(word in message for word in [str(file), *parts]), message


def test_a_file_that_is_not_utf_8_is_named_with_the_byte(file):
    file.write_bytes("run_dir: läufe\n".encode("latin-1"))
    assert error_message("--config", file) == f"{file}: not UTF-8 at byte 10; save it as UTF-8"


def test_a_missing_file_is_named(file):
    assert error_message("--config", file).startswith(f"{file}: there is no such file; the configs that come")
    assert str(file) in error_message(f"--config={file}")


def test_a_folder_given_as_a_file_is_named(tmp_path):
    assert error_message("--config", tmp_path) == f"{tmp_path}: Is a directory"


def test_of_several_files_the_one_with_the_mistake_is_named(file, tmp_path):
    other = tmp_path / "other.yaml"
    file.write_text("seed: 7\n")
    other.write_text("sede: 7\n")
    assert str(other) in error_message("--config", file, "--config", other)
    assert str(other) in error_message("--config", other, "--config", file)


def test_a_value_out_of_bounds_in_a_file_is_refused(file):
    file.write_text("masking:\n  mask_prob: 1.5\n")
    assert "masking.mask_prob is 1.5" in error_message("--config", file)


@pytest.mark.parametrize("name", ["learning_rate", "learning-rate", "LEARNING_RATE", "optim.learning_rate", "lr"])
def test_the_name_of_a_key_in_other_trainers_is_translated(name: str) -> None:
    assert f"--{name}: unknown key; did you mean optim.lr?" in error_message(f"--{name}=3")


def test_a_key_of_other_trainers_without_an_equivalent_is_explained() -> None:
    assert "--num_train_epochs: unknown key; the length of a run is train.max_iters" in error_message(
        "--num_train_epochs=3"
    )
    assert "--resume: unknown key; the same command continues the run" in error_message("--resume=true")


def test_every_foreign_name_is_unique_and_belongs_to_an_existing_key() -> None:
    names = [name for names in foreign_names.ALIASES.values() for name in names] + list(foreign_names.HINTS)
    assert len(set(names)) == len(names)
    leaves = leaf_types().keys()
    assert foreign_names.ALIASES.keys() <= leaves
    assert all(not {leaf.split(".")[-1] for leaf in leaves} & {name} for name in names)


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("[" * 50_000, "nested too deeply"),
        ("a: &a [x, x]\nb: &b [*a, *a]\n", "line 2: not YAML: *a is an alias"),
        ("model: &m {blocks: 1}\ntrain: {<<: *m}\n", "*m is an alias"),
        ("a: &a [*a]\n", "*a is an alias"),
        ("debug: !!bool perhaps\n", "not YAML"),
        ("seed: !!timestamp now\n", "not YAML"),
        ("model: !!map [1]\n", "not YAML"),
        (f"seed: 0x{'f' * 5000}\n", "seed: a number of more than 64 bits"),
        (f"seed: {'9' * 5000}\n", "not YAML"),
        (f"masking: {{mask_prob: [0, 0x{'f' * 5000}]}}\n", "masking.mask_prob_range: a number of more than 64 bits"),
        ("#" * 100_000, "it is larger than 65.5 kB"),
    ],
    ids=range(11),
)
def test_a_file_that_would_exhaust_stack_memory_or_time_is_refused(content, parts, file):
    file.write_text(content)
    with pytest.raises(UserError) as caught:
        read_config(file)
    assert parts in str(caught.value)


@pytest.mark.timeout(30)
def test_a_mistake_in_the_heads_of_a_huge_model_is_reported_quickly():
    with pytest.raises(UserError, match=r"not a multiple of model\.heads"):
        parse_config(["--model.embedding_dim", str(2**61 - 1), "--model.heads", str(10**15)], "train")
