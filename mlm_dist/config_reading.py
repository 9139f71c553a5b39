"""Reading a config: YAML files, then flags. Every user error is one line."""

import argparse
import dataclasses
import difflib
import functools
import itertools
import re
import typing
from pathlib import Path
from typing import Any, Literal, TypeGuard

import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from mlm_dist import foreign_names
from mlm_dist.config import Config, MaskProb, find_problems
from mlm_dist.errors import UserError
from mlm_dist.files import read_text

set_parsing_settings(docstring_parse_attribute_docstrings=True)

LARGEST_CONFIG = 1 << 16  # bytes; the YAML parser takes seconds per megabyte
LARGEST_NUMBER = 1 << 64

# Part of the YAML parser's message -> the usual cause and what to do.
YAML_HINTS = {
    "mapping values are not allowed here": "; indent the keys of a section alike, and quote a value that has a colon",
    "could not find expected ':'": "; write `key: value`, with a space after the colon",
    "<stream end>": "; a bracket or a quote is not closed",
    "unexpected end of stream": "; a quote is not closed",
    "<block mapping start>": "; indent the keys of a section alike",
    "expected <block end>": "; indent the keys of a section alike",
}


def parse_config(arguments: list[str], verb: str) -> Config:
    """Build the config from a verb's command line.

    Args:
        arguments: the command line without the program's name: `--config FILE` and `--section.key VALUE` flags.
        verb: the verb's name, for `--help`.

    Raises:
        UserError: a key is unknown (the message has the nearest known one), a value has the wrong type or is out of
            range, or a config file is missing or is not YAML.
        SystemExit: with code 0, after `--help` and `--print_config`.
    """
    parser = ArgumentParser(
        prog=f"python -m mlm_dist.{verb}",
        description=f"Example: python -m mlm_dist.{verb} --config configs/novels.yaml --optim.lr 5e-4",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="YAML file; flags after it override its keys.")
    parser.add_class_arguments(Config, as_group=False)
    for action in parser._actions:
        # jsonargparse also takes a file for a section. `check_flags` refuses that, so --help does not list it.
        if action.dest in section_keys():
            action.help = argparse.SUPPRESS
        # jsonargparse also has `--key+`, which appends to a list: a second way to do the same.
        action.option_strings = [flag for flag in action.option_strings if not flag.endswith("+")]
    for path in config_files(arguments):
        check_file(path, parser)
    check_flags(arguments)
    try:
        config = parser.instantiate(parser.parse_args(arguments))
    except (ArgumentError, OverflowError) as error:
        raise UserError(in_plain_words(error)) from error
    # jsonargparse returns a namespace with the fields of `Config`, whose sections are already instantiated.
    config = Config(**{item.name: config[item.name] for item in dataclasses.fields(Config)})
    for key, value in flatten(dataclasses.asdict(config)):
        check_value(key, value, where="--")
    if problems := find_problems(config):
        raise UserError("; ".join(problems))
    return config


def read_config(path: Path) -> Config:
    """Read the `config.yaml` of a run directory."""
    return parse_config(["--config", str(path)], verb="train")


@functools.cache
def known_keys(section: type = Config, prefix: str = "") -> dict[str, Any]:
    """All dotted keys with their types. The type of a section is its dataclass."""
    keys: dict[str, Any] = {}
    for name, kind in typing.get_type_hints(section).items():
        keys[prefix + name] = kind
        if dataclasses.is_dataclass(kind):
            keys |= known_keys(typing.cast(type, kind), f"{prefix}{name}.")
    return keys


def config_files(arguments: list[str]) -> list[Path]:
    """The files given with `--config` on a command line."""
    named = [value for flag, value in itertools.pairwise([*arguments, ""]) if flag == "--config"]
    if "" in named:
        raise UserError("--config: a file is missing after it")
    return [
        Path(name) for name in named + [a.removeprefix("--config=") for a in arguments if a.startswith("--config=")]
    ]


def check_file(path: Path, parser: ArgumentParser) -> None:
    """Raise `UserError`, with the name of the file, if it is not a valid config file."""
    try:
        content = yaml.load(read_text(path, largest=LARGEST_CONFIG), Loader=OnceLoader)
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--config {path}: not UTF-8 at byte {error.start}") from error
    except yaml.MarkedYAMLError as error:
        raise UserError(f"--config {path}{explain_yaml(error)}") from error
    except RecursionError as error:
        raise UserError(f"--config {path}: it is nested too deeply; a config has sections with keys in them") from error
    except Exception as error:  # from a date such as 2026-02-31, or a tag such as !!bool on another value
        raise UserError(f"--config {path}: not YAML: {error}") from error
    if content is None:
        raise UserError(f"--config {path}: it holds no key")
    if not is_mapping(content):
        found = "a list" if isinstance(content, list) else f"'{str(content)[:40]}'"
        raise UserError(
            f"--config {path}: expected `key: value` lines, with a space after the colon, and found {found}"
        )
    for key, value in flatten(content):
        check_key(key, where=f"{path}: ")
        check_value(key, value, where=f"{path}: ")
    for key in section_keys():
        if key in content and not is_mapping(content[key]):
            raise UserError(f"{path}: {key} is a section: put its keys under it, indented")
    try:
        parser.parse_path(str(path))
    except (ArgumentError, OverflowError) as error:
        raise UserError(f"{path}: {in_plain_words(error)}") from error


def explain_yaml(error: yaml.MarkedYAMLError) -> str:
    """Line and reason of a YAML error, to be appended to the file's name in a message."""
    line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
    if "'\\t'" in str(error.problem):
        return f"{line}: a tab; YAML is indented with spaces"
    begun = f", in what begins in line {error.context_mark.line + 1}" if error.context_mark else ""
    hint = next((hint for part, hint in YAML_HINTS.items() if part in str(error.problem)), "")
    return f"{line}: not YAML: {error.problem}{begun}{hint}"


class OnceLoader(yaml.SafeLoader):
    """Reads YAML like `yaml.safe_load`, but refuses aliases, and duplicate keys, of which `safe_load` keeps one."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Build the next node.

        Raises:
            yaml.YAMLError: it is an alias. A few lines of nested aliases can expand to more than any memory holds.
        """
        if self.check_event(yaml.AliasEvent):
            alias: yaml.AliasEvent = self.get_event()  # type: ignore[no-untyped-call]
            problem = f"*{alias.anchor} stands for what is written elsewhere: write that out"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=typing.cast(yaml.Mark, alias.start_mark))
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a dict from a mapping node.

        Raises:
            yaml.YAMLError: it has the same key twice.
        """
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key.value, str) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} stands there twice", problem_mark=key.start_mark)
            seen |= {key.value} if isinstance(key.value, str) else set()
        return super().construct_mapping(node, deep)


def check_flags(arguments: list[str]) -> None:
    """Raise `UserError` for a flag that is not a key of the config."""
    for flag in arguments:
        key = flag.removeprefix("--").split("=")[0]
        if flag.startswith("--") and key not in ("config", "help", "print_config"):
            check_key(key, where="--")


def check_key(key: str, where: str) -> None:
    """Raise `UserError`, with the nearest known key, if a key is unknown; also if it is a section."""
    keys = known_keys()
    leaves = [known for known in keys if known not in section_keys()]
    if key in leaves:
        return
    if key in keys:
        raise UserError(f"{where}{key} is a section: give one of its keys, such as {key}.{leaf_of(key, leaves)}")
    last_name = key.rsplit(".", maxsplit=1)[-1]
    by_last_name = [known for known in leaves if known.split(".")[-1] == last_name.replace("-", "_")]
    foreign = None if by_last_name else foreign_names.explain(last_name)
    near = by_last_name or difflib.get_close_matches(key, leaves, n=1, cutoff=0.5)
    hint = foreign or (f"did you mean {near[0]}?" if near else "see --help for the keys there are")
    raise UserError(f"{where}{key}: unknown key; {hint}")


def check_value(key: str, value: object, where: str) -> None:
    """Raise `UserError` if a key that needs a value has none, or if a whole number has more than 64 bits."""
    if value is None and type(None) not in typing.get_args(known_keys()[key]):
        raise UserError(f"{where}{key}: it has no value")
    parts = [*value.values()] if isinstance(value, dict) else value if isinstance(value, list) else [value]
    if any(isinstance(part, int) and abs(part) >= LARGEST_NUMBER for part in parts):
        raise UserError(f"{where}{key}: a number of more than 64 bits")


def leaf_of(section: str, leaves: list[str]) -> str:
    """The first key of a section, without the section's name."""
    return next(leaf for leaf in leaves if leaf.startswith(f"{section}.")).split(".")[1]


def flatten(content: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """The dotted keys of nested mappings, with their values. A section that is not a mapping is skipped."""
    pairs: list[tuple[str, Any]] = []
    sections, leaves = section_keys(), known_keys().keys() - section_keys()
    for name, value in content.items():
        key = f"{prefix}{name}"
        if is_mapping(value) and key not in leaves:
            pairs += flatten(value, f"{key}.")
        elif key not in sections:
            pairs.append((key, value))
    return pairs


@functools.cache
def section_keys() -> set[str]:
    """The keys of sections, which contain other keys."""
    return {key for key, kind in known_keys().items() if dataclasses.is_dataclass(kind)}


def is_mapping(value: object) -> TypeGuard[dict[str, Any]]:
    """Whether a YAML value is a mapping."""
    return isinstance(value, dict)


def in_plain_words(error: Exception) -> str:
    """A parser's error as one line: the key, the given value and what was expected."""
    text = str(error)
    named = re.search(r'Parser key "([\w.]+)":|argument --([\w.]+):', text)
    value = re.search(r"(?:Got value|Given value|restriction|literal for int\(\) with base 10): ?(.*)", text)
    key = named and (named[1] or named[2])
    kind = known_keys().get(key or "")
    if not key or kind is None:
        return " ".join(text.split())
    if "expected one argument" in text:
        return f"--{key}: a value is missing after it"
    given = f"'{value[1]}' is not" if value else "expected"
    return f"{key}: {given} {describe_type(kind)}"


def describe_type(kind: Any) -> str:
    """The type of a config field, in words."""
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(typing.get_args(kind))
    if kind == MaskProb:
        return "a number, a course {from: A, to: B} or a range [LOW, HIGH]"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return words[kind] if kind in words else f"{words[typing.get_args(kind)[0]]} or null"
