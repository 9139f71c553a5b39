"""Named points of a run, at which the tests in tests/faults make it fail. In production they do nothing."""

from collections.abc import Callable

on_reached: Callable[[str], None] | None = None
"""Called with the name of each point; None in production."""


def reached(point: str) -> None:
    """Mark a point that a run reaches."""
    if on_reached is not None:
        on_reached(point)
