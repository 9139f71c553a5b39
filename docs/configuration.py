"""Write the table of config keys in docs/configuration.md from the docstrings of `mlm_dist.config`.

`python docs/configuration.py` rewrites the table; tests/test_configs.py fails if it is stale.
"""

import re
from pathlib import Path

from mlm_dist.config_help import default_of, describe_keys, describe_type, leaf_types

PAGE = Path(__file__).with_name("configuration.md")
TABLE = re.compile(r"(?<=<!-- keys -->\n).*(?=<!-- end of keys -->)", re.DOTALL)


def table() -> str:
    """The table, in Markdown, in the order of the config."""
    rows = [
        f"| `{key}` | `{default_of(key)}` | {describe_type(leaf_types()[key])} | {description} |"
        for key, description in describe_keys().items()
    ]
    return "\n".join(["", "| key | default | value | |", "|---|---|---|---|", *rows, "", ""])


def main() -> None:
    """Rewrite the table."""
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(TABLE.sub(lambda _: table(), page), encoding="utf-8")


if __name__ == "__main__":
    main()
