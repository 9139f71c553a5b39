"""The keys of the config: their types, descriptions and defaults in words, and the nearest key to an unknown one."""

import argparse
import dataclasses
import difflib
import functools
import json
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import annotated_types
from typing_extensions import is_typeddict

from mlm_dist import foreign_names
from mlm_dist.config import Config

LARGEST_NUMBER = 1 << 64
NEAR = 0.5  # a key is suggested for an unknown one if their similarity is above this
SHOWN_CHARACTERS = 60  # of a value, in a message


@functools.cache
def key_types(section: type = Config, prefix: str = "") -> dict[str, Any]:
    """All dotted keys with their types. The type of a section is its dataclass."""
    types_: dict[str, Any] = {}
    for name, kind in typing.get_type_hints(section, include_extras=True).items():
        types_[prefix + name] = kind
        if dataclasses.is_dataclass(kind):
            types_ |= key_types(typing.cast(type, kind), f"{prefix}{name}.")
    return types_


@functools.cache
def leaf_types() -> dict[str, Any]:
    """The dotted keys that have a value, with their types."""
    return {key: kind for key, kind in key_types().items() if not dataclasses.is_dataclass(kind)}


def is_text(kind: Any) -> bool:
    """Whether the values of a type are text."""
    return bool(kind) and isinstance(split_bounds(kind)[0], type) and issubclass(split_bounds(kind)[0], str)


def alternatives(kind: Any) -> tuple[Any, ...]:
    """The types of a union; none of another type."""
    return typing.get_args(kind) if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union else ()


def split_bounds(kind: Any) -> tuple[Any, list[Any]]:
    """A type and its bounds."""
    if typing.get_origin(kind) is not Annotated:
        return kind, []
    bare, *bounds = typing.get_args(kind)
    return bare, bounds


def describe_type(kind: Any) -> str:
    """The type of a config field with its bounds, in words."""
    bare, bounds = split_bounds(kind)
    choices = typing.get_args(bare)
    if typing.get_origin(bare) is Literal:
        return "one of " + ", ".join(choices)
    if types.NoneType in choices:
        return f"{describe_type(choices[0])}, or null"
    if alternatives(bare):
        return ", or ".join(map(describe_type, choices))
    if is_typeddict(bare):
        keys = typing.get_type_hints(bare, include_extras=True).items()
        return f"{{{'; '.join(f'{key}: {describe_type(kind)}' for key, kind in keys)}}}"
    if typing.get_origin(bare) is list:
        count = "".join(f"{bound.min_length} " for bound in bounds if isinstance(bound, annotated_types.Len))
        return f"a list of {count}values, each {describe_type(choices[0])}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[bare]
    limits = " and ".join(limit for bound in bounds for limit in describe_bound(bound, bare))
    return f"{words}, {limits}" if limits else words


def describe_bound(bound: object, kind: type) -> Iterator[str]:
    """A bound in words, for values of this type."""
    match bound:
        case annotated_types.Gt(gt=limit):
            yield f"at least {typing.cast(int, limit) + 1}" if kind is int else f"above {limit}"
        case annotated_types.Ge(ge=limit):
            yield f"at least {limit}"
        case annotated_types.Lt(lt=limit):
            yield "below 2**64" if limit == LARGEST_NUMBER else f"below {limit}"
        case annotated_types.Le(le=limit):
            yield f"at most {limit}"
        case annotated_types.MinLen():
            yield "not empty"


def help_parser(verb: str) -> argparse.ArgumentParser:
    """A parser for `--help` only, with one flag per key."""
    parser = argparse.ArgumentParser(
        prog=f"python -m mlm_dist.{verb}",
        usage="%(prog)s [--config FILE] [--print_config] [--KEY VALUE ...]",
        description=f"Example: python -m mlm_dist.{verb} --config configs/novels.yaml --optim.lr 5e-4",
    )
    parser.add_argument(
        "--config", metavar="FILE", help="YAML file, or the name of a config of the package; later flags override it"
    )
    parser.add_argument("--print_config", action="store_true", help="print the config as YAML and exit")
    groups: dict[str, Any] = {"": parser}
    for key, description in describe_keys().items():
        section = key.rpartition(".")[0]
        if section not in groups:
            groups[section] = parser.add_argument_group(section)
        choices = typing.get_args(leaf_types()[key]) if typing.get_origin(leaf_types()[key]) is Literal else None
        groups[section].add_argument(
            f"--{key}",
            metavar=None if choices else key.rsplit(".", maxsplit=1)[-1].upper(),
            choices=choices,
            help=f"{description} (default: {default_of(key)})".replace("%", "%%"),
        )
    return parser


def default_of(key: str) -> str:
    """The default of a key, as YAML."""
    value: Any = Config()
    for name in key.split("."):
        value = getattr(value, name)
    return value if isinstance(value, str) else show(value)


def describe_keys() -> dict[str, str]:
    """The dotted keys with their descriptions, which are the docstrings of the fields."""
    sections: dict[str, Any] = {"": Config}
    sections |= {f"{name}.": kind for name, kind in key_types().items() if dataclasses.is_dataclass(kind)}
    return {
        f"{prefix}{name}": " ".join((field.description or "").split())
        for prefix, section in sections.items()
        for name, field in section.__pydantic_fields__.items()
        if f"{prefix}{name}" in leaf_types()
    }


def explain_key(key: str) -> str:
    """Why a key is not a config key, and which key may be meant."""
    leaves = leaf_types()
    if key in key_types():
        example = next(leaf for leaf in leaves if leaf.startswith(f"{key}."))
        return f" is a section: set one of its keys, such as {example}; in a file, indent keys under their section"
    last_name = key.rsplit(".", maxsplit=1)[-1]
    by_last_name = [leaf for leaf in leaves if leaf.split(".")[-1] == last_name.replace("-", "_")]
    foreign = None if by_last_name else foreign_names.explain(last_name)
    similarity = {leaf: max(alike(key, leaf), alike(last_name, leaf.split(".")[-1])) for leaf in leaves}
    nearest = by_last_name[0] if by_last_name else max(leaves, key=similarity.__getitem__)
    is_near = by_last_name or similarity[nearest] > NEAR
    return f": unknown key; {foreign or (f'did you mean {nearest}?' if is_near else '--help lists the keys')}"


def alike(one: str, other: str) -> float:
    """How similar two names are, from 0 to 1."""
    return difflib.SequenceMatcher(None, one, other).ratio()


def show(value: object) -> str:
    """A value for a message, as YAML on one line."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."
