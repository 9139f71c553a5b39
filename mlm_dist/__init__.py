"""Pre-train masked language models on your own texts, in one process or many, and use them."""

import importlib
from typing import TYPE_CHECKING, Any

from mlm_dist.version import __version__

if TYPE_CHECKING:
    from mlm_dist.api import Run, average, load, prepare, train
    from mlm_dist.config import Config
    from mlm_dist.config_reading import read_config

__all__ = ["Config", "Run", "__version__", "average", "load", "prepare", "read_config", "train"]
CALLABLE_MODULES = {"average", "prepare", "train"}
MODULES = {"Config": "mlm_dist.config", "read_config": "mlm_dist.config_reading"}


def __getattr__(name: str) -> Any:
    """Import each public name on its first use, so that `import mlm_dist` is fast."""
    if name not in __all__:
        raise AttributeError(f"module 'mlm_dist' has no attribute '{name}'")
    if name in CALLABLE_MODULES:
        return importlib.import_module(f"mlm_dist.{name}")
    return getattr(importlib.import_module(MODULES.get(name, "mlm_dist.api")), name)
