"""Modules that can be called, so that a verb's module is also the function that does the same from Python."""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def make_callable(name: str, function: Callable[..., Any]) -> None:
    """Make calls of the module of this name call a function. `mlm_dist.train` then is both, whoever imports it."""
    kind = type("CallableModule", (ModuleType,), {"__call__": staticmethod(function)})
    sys.modules[name].__class__ = kind
