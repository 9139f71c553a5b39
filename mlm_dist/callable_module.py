"""Callable modules: the module of a verb is also the function that does the same from Python."""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def make_callable(name: str, function: Callable[..., Any]) -> None:
    """Make a module call `function` when it is called: `mlm_dist.train` is then both a module and a function."""
    kind = type("CallableModule", (ModuleType,), {"__call__": staticmethod(function)})
    sys.modules[name].__class__ = kind
