"""Where this user keeps what is fetched or prepared once and used again."""

import os
from pathlib import Path

from mlm_dist.errors import UserError


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/mlm_dist`, by default `~/.cache/mlm_dist`. It need not exist.

    Raises:
        UserError: neither is known.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlm_dist"
    except RuntimeError as error:
        raise UserError("this user has no home folder: say with XDG_CACHE_HOME where caches go") from error
