"""Write the table of config keys in docs/configuration.md from the docstrings of `mlm_dist.config`.

`python docs/configuration.py` rewrites the table; tests/test_configs.py fails if it is stale.
"""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from docstring_parser import parse_from_object

from mlm_dist.config import Config

PAGE = Path(__file__).with_name("configuration.md")
TABLE = re.compile(r"(?<=<!-- keys -->\n).*(?=<!-- end of keys -->)", re.DOTALL)


def describe(section: type[Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every key of a section, dotted, with its description."""
    for part in parse_from_object(section).params:
        yield prefix + part.arg_name, " ".join((part.description or "").split())
    for name, kind in get_type_hints(section).items():
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            yield from describe(kind, f"{name}.")


def default_of(key: str) -> str:
    """The default of a key, as YAML."""
    value: Any = Config()
    for name in key.split("."):
        value = getattr(value, name)
    return str(yaml.safe_dump(value)).split("\n")[0]


def table() -> str:
    """The table, in Markdown, in the order of the config."""
    described = dict(describe(Config))
    sections = [field.name for field in dataclasses.fields(Config) if dataclasses.is_dataclass(field.type)]
    keys = sorted(
        (key for key in described if key not in sections),
        key=lambda key: sections.index(key.split(".")[0]) + 1 if "." in key else 0,
    )
    rows = [f"| `{key}` | `{default_of(key)}` | {described[key]} |" for key in keys]
    return "\n".join(["", "| key | default | |", "|---|---|---|", *rows, "", ""])


def main() -> None:
    """Rewrite the table."""
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(TABLE.sub(lambda _: table(), page), encoding="utf-8")


if __name__ == "__main__":
    main()
