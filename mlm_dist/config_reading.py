"""Reading a config from YAML files and flags. All mistakes are reported at once, one line each."""

import dataclasses
import re
import typing
from collections.abc import Iterator, Mapping
from importlib import resources
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeGuard, TypeVar

import pydantic
import yaml

from mlm_dist.config import Config
from mlm_dist.config_help import (
    LARGEST_NUMBER,
    alternatives,
    describe_type,
    explain_key,
    help_parser,
    is_text,
    key_types,
    leaf_types,
    show,
)
from mlm_dist.errors import UserError
from mlm_dist.exported_shape import read_exported_shape
from mlm_dist.files import read_text
from mlm_dist.source import CONFIG, SHARED, Source, has_checkpoints

T = TypeVar("T")

LARGEST_CONFIG = 1 << 16  # bytes; the YAML parser takes seconds per megabyte
FLAG = "--"
CONFIGS = resources.files("mlm_dist") / "configs"

# The keys that a run takes from the source of its parameters.
SHAPE = {f"model.{key}" for key in (*SHARED, "block_size")}
INHERITED = {*SHAPE, "data.tokenizer"}

# Part of the YAML parser's message -> the usual cause and what to do.
YAML_HINTS = {
    "mapping values are not allowed here": "; indent the keys of a section alike, and quote a value that has a colon",
    "could not find expected ':'": "; write `key: value`, with a space after the colon",
    "<stream end>": "; a bracket or a quote is not closed",
    "unexpected end of stream": "; a quote is not closed",
    "<block mapping start>": "; indent the keys of a section alike",
    "expected <block end>": "; indent the keys of a section alike",
}


class Setting(typing.NamedTuple):
    """A value that the user gave for a key.

    Attributes:
        key: the dotted key.
        value: as YAML parses it.
        source: what precedes the key in messages: `--`, `FILE: `, or nothing.
    """

    key: str
    value: object
    source: str


class Problems(list[str]):
    """The mistakes found so far, one line each."""

    def raise_if_any(self) -> None:
        """Raise `UserError` with all of them."""
        if self:
            raise UserError(*self)


def parse_config(arguments: list[str], verb: str) -> Config:
    """Build the config from a verb's command line.

    Args:
        arguments: the command line without the program's name: `--config FILE` and `--section.key VALUE` flags. A later
            one overrides an earlier one. FILE may be the name of a config of the package, such as `novels`.
        verb: the verb's name, for `--help`.

    Raises:
        UserError: one line per mistake: an unknown key (with the nearest known one), a value of the wrong type or out
            of bounds, a config file that is missing or not YAML.
        SystemExit: with code 0, after `--help` and `--print_config`.
    """
    if "--help" in arguments or "-h" in arguments:
        help_parser(verb).print_help()
        raise SystemExit(0)
    problems = Problems()
    settings = list(read_arguments([a for a in arguments if a != "--print_config"], problems))
    config = build(settings, problems)
    if "--print_config" in arguments:
        print(config.to_yaml(), end="")
        raise SystemExit(0)
    return config


def read_config(path: str | PathLike[str], overrides: Mapping[str, object] | None = None) -> Config:
    """Read a config file, or a config of the package by its name.

    Args:
        path: of the file, such as the `config.yaml` of a run directory; or a name, such as `novels`.
        overrides: values by dotted key, such as `{"optim.lr": 5e-4}`.

    Raises:
        UserError: as in `parse_config`.
    """
    problems = Problems()
    settings = list(read_file(package_config(str(path)), problems))
    settings += [Setting(key, value, "") for key, value in (overrides or {}).items()]
    return build(settings, problems)


def package_config(name: str) -> Path:
    """The path of the config of this name: a file, or else a config that comes with the package."""
    packaged = Path(str(CONFIGS / f"{name}.yaml"))
    return packaged if packaged.is_file() and not Path(name).is_file() else Path(name)


def package_config_names() -> list[str]:
    """The names of the configs that come with the package."""
    return sorted(Path(file.name).stem for file in CONFIGS.iterdir() if file.name.endswith(".yaml"))


# Reading


def read_arguments(arguments: list[str], problems: Problems) -> Iterator[Setting]:
    """The settings of a command line, in order, including those of its config files."""
    remaining = iter(arguments)
    for argument in remaining:
        key, equals, text = argument.removeprefix(FLAG).partition("=")
        if not argument.startswith(FLAG) or not key:
            problems.append(f"{argument}: unexpected argument; write --KEY VALUE, and a list as --KEY '[0, 1]'")
            continue
        if not equals:
            text = next(remaining, FLAG)
            if text.startswith(FLAG):
                is_known = key == "config" or key in leaf_types()
                problems.append(f"--{key}: a value is missing after it" if is_known else f"--{key}{explain_key(key)}")
                remaining = iter([*([text] if text != FLAG else []), *remaining])
                continue
        if key == "config":
            yield from read_file(package_config(text), problems)
        else:
            yield from current_spelling(Setting(key, parse_flag(key, text), FLAG))


def parse_flag(key: str, text: str) -> object:
    """The value of a flag: text as it is for a key of type text, else parsed as YAML.

    For a key that is text or a list, a list begins with a bracket.
    """
    kind = leaf_types().get(key)
    if is_text(kind) or (any(map(is_text, alternatives(kind))) and not text.startswith("[")):
        return text
    try:
        return yaml.load(text, Loader=StrictLoader)
    except Exception:  # not YAML, such as [1; or a date such as 2026-02-31: the type of the key decides
        return text


def read_file(path: Path, problems: Problems) -> Iterator[Setting]:
    """The settings of a config file."""
    try:
        content = yaml.load(read_text(path, largest=LARGEST_CONFIG), Loader=StrictLoader)
    except FileNotFoundError:
        names = ", ".join(package_config_names())
        problems.append(f"{path}: there is no such file; the configs that come with the package are {names}")
    except OSError as error:
        problems.append(f"{path}: {error.strerror}")
    except UnicodeDecodeError as error:
        problems.append(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8")
    except yaml.MarkedYAMLError as error:
        problems.append(f"{path}{explain_yaml(error)}")
    except RecursionError:
        problems.append(f"{path}: nested too deeply; a config has sections with keys in them")
    except UserError as error:
        problems += error.args
    except Exception as error:  # from a date such as 2026-02-31, or a tag such as !!bool on another value
        problems.append(f"{path}: not YAML: {error}")
    else:
        if content is None:
            problems.append(f"{path}: it contains no keys")
        elif is_mapping(content):
            for key, value in flatten(content):
                yield from current_spelling(Setting(key, value, f"{path}: "))
        else:
            problems.append(
                f"{path}: expected `key: value` lines, with a space after the colon, and found {show(content)}"
            )


def flatten(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """The dotted keys of nested mappings, with their values."""
    for name, value in content.items():
        key = f"{prefix}{name}"
        if is_mapping(value) and key not in leaf_types():
            yield from flatten(value, f"{key}.")
        else:
            yield key, value


def current_spelling(setting: Setting) -> list[Setting]:
    """Translate a setting of an earlier version into current settings."""
    key, value, source = setting
    if key == "masking.mask_prob" and is_mapping(value) and value.keys() == {"from", "to"}:
        return [Setting(key, value["from"], source), Setting(f"{key}_end", value["to"], source)]
    if key == "masking.mask_prob" and isinstance(value, list):
        return [Setting(f"{key}_range", value, source)]
    return [setting]


class StrictLoader(yaml.SafeLoader):
    """Reads YAML like `yaml.safe_load`, but parses 1e-3 as a number, and refuses aliases and duplicate keys."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Build the next node.

        Raises:
            yaml.YAMLError: it is an alias. A few lines of nested aliases can expand to more than any memory holds.
        """
        if self.check_event(yaml.AliasEvent):
            alias: yaml.AliasEvent = self.get_event()  # type: ignore[no-untyped-call]
            problem = f"*{alias.anchor} is an alias: write its value out"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=typing.cast(yaml.Mark, alias.start_mark))
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a dict from a mapping node.

        Raises:
            yaml.YAMLError: it has the same key twice. `safe_load` would keep only one of them.
        """
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key.value, str) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} appears twice", problem_mark=key.start_mark)
            seen |= {key.value} if isinstance(key.value, str) else set()
        return super().construct_mapping(node, deep)


StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def explain_yaml(error: yaml.MarkedYAMLError) -> str:
    """Line and reason of a YAML error, to be appended to the file's name in a message."""
    line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
    if "'\\t'" in str(error.problem):
        return f"{line}: a tab; YAML is indented with spaces"
    begun = f", in the block that begins in line {error.context_mark.line + 1}" if error.context_mark else ""
    hint = next((hint for part, hint in YAML_HINTS.items() if part in str(error.problem)), "")
    return f"{line}: not YAML: {error.problem}{begun}{hint}"


# Validating


def build(settings: list[Setting], problems: Problems) -> Config:
    """The config with these settings, the later ones overriding the earlier ones.

    Raises:
        UserError: with the problems so far, and one line for each unknown key and each wrong value.
    """
    problems += find_unknown_keys(settings)
    settings = [*inherited(settings, problems), *settings]
    given = {setting.key: setting for setting in settings if setting.key in leaf_types()}
    for key, setting in list(given.items()):
        if too_large(setting.value):
            problems.append(f"{setting.source}{key}: a number of more than 64 bits")
            del given[key]
    sections: dict[str, object] = {
        name: validate(typing.cast(type, kind), f"{name}.", given, problems)
        for name, kind in key_types().items()
        if dataclasses.is_dataclass(kind)
    }
    config = validate(Config, "", given, problems, {} if problems else sections)
    problems.raise_if_any()
    return config


def inherited(settings: list[Setting], problems: Problems) -> list[Setting]:
    """The shape and the tokenizer of the model that `init_from` names, for the keys that are not given.

    They are taken from the run itself if it has begun, so that it does not need its source again.
    """
    given = {setting.key: setting.value for setting in settings}
    init_from, run_dir = given.get("init_from"), given.get("run_dir", Config.run_dir)
    missing = INHERITED - given.keys()
    if not missing or not isinstance(init_from, str) or not isinstance(run_dir, str):
        return []
    try:
        source = Source.parse(run_dir if has_checkpoints(run_dir) else init_from)
        values = [Setting("data.tokenizer", str(source.folder), "")]
        if source.is_exported:
            shape = dataclasses.asdict(read_exported_shape(source.folder))
            values += [Setting(f"model.{key}", value, "") for key, value in shape.items()]
        else:
            values += [setting for setting in read_file(source.folder / CONFIG, problems) if setting.key in SHAPE]
    except UserError as error:
        problems += error.args
        return []
    return [value for value in values if value.key in missing]


def validate(
    section: type[T],
    prefix: str,
    given: dict[str, Setting],
    problems: Problems,
    sections: Mapping[str, object] = MappingProxyType({}),
) -> T:
    """The section with the given values; if one of them is wrong, the section with its defaults.

    Args:
        section: a dataclass of `mlm_dist.config`.
        prefix: of its keys in `given`.
        given: the settings by key. Those of other sections are ignored.
        problems: gets one line for each wrong value.
        sections: the sections inside this one, by name.
    """
    types = typing.get_type_hints(section, include_extras=True)
    values = {name: given[f"{prefix}{name}"].value for name in types if f"{prefix}{name}" in given}
    try:
        return section(**values, **sections)
    except pydantic.ValidationError as error:
        wrong = {details["loc"][0]: details for details in error.errors() if details["loc"]}
        for name in (name for name in types if name in wrong):
            key, value, source = given[f"{prefix}{name}"]
            problems.append(f"{source}{key} is {show(value)}: it must be {describe_type(types[name])}")
        if not wrong:  # a `model_validator`, which checks several keys together
            problems += [str(details["ctx"]["error"]) for details in error.errors()]
        return section()


def find_unknown_keys(settings: list[Setting]) -> list[str]:
    """One line for each key that is unknown, with the nearest known key, and for each that is a section."""
    unknown = {setting.key: setting for setting in settings if setting.key not in leaf_types()}
    return [f"{setting.source}{key}{explain_key(key)}" for key, setting in unknown.items()]


def too_large(value: object) -> bool:
    """Whether a whole number has more than 64 bits. Python refuses to print one with thousands of digits."""
    if isinstance(value, dict | list):
        return any(too_large(part) for part in (value.values() if isinstance(value, dict) else value))
    return isinstance(value, int) and abs(value) >= LARGEST_NUMBER


def is_mapping(value: object) -> TypeGuard[dict[str, Any]]:
    """Whether a YAML value is a mapping."""
    return isinstance(value, dict)
