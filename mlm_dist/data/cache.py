"""Where this user keeps what is fetched or prepared once and used again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/mlm_dist`, by default `~/.cache/mlm_dist`. It need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlm_dist"
