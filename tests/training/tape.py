"""A graph of operations on a CPU, in place of a CUDA graph."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mlm_dist.training.step import Outcome


def tensors_in(values: object) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def memory_of(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """The tensors that an operation writes into."""
    parameters = func._schema.arguments
    values = {p.name: value for p, value in zip(parameters, args, strict=False)} | kwargs
    marked = [p.name for p in parameters if p.alias_info is not None and p.alias_info.is_write]
    return tensors_in([values.get(name) for name in marked])


class Tape(TorchDispatchMode):
    """A `Graph` that repeats the operations of a function on the same tensors.

    As in a CUDA graph, every Python number and every address is that of the capture, no Python runs again, and the
    capture changes no tensor from before it. The tensors of a CUDA graph have fixed places in its memory. Here, each
    operation is repeated, and its result is copied to where its first result is.

    Args:
        fails_at: the index of an operation that cannot be captured.
    """

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__()
        self.fails_at = fails_at
        self.replays = 0
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self._new: set[int] = set()
        self._before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def capture(self, body: Callable[[], Outcome]) -> Outcome:
        try:
            with self:
                return body()
        finally:
            for storage, copy in self._before.values():
                storage.copy_(copy)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if len(self.operations) == self.fails_at:
            raise RuntimeError("operation not permitted when stream is capturing\nmore lines")
        kwargs = kwargs or {}
        for tensor in written(func, args, kwargs):
            if memory_of(tensor) not in self._new | self._before.keys():
                storage = tensor.untyped_storage()
                self._before[memory_of(tensor)] = storage, storage.clone()
        known = {memory_of(tensor) for tensor in tensors_in((args, kwargs))}
        out = func(*args, **kwargs)
        self._new |= {memory_of(tensor) for tensor in tensors_in(out)} - known
        self.operations.append((func, args, kwargs, out))
        return out

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, out in self.operations:
            with torch._C._AutoDispatchBelowAutograd():
                again = func(*args, **kwargs)
            if func.namespace == "c10d":  # a stream would wait for it
                dist.Work.unbox(again[1]).wait()
            for first, new in zip(tensors_in(out), tensors_in(again), strict=True):
                if memory_of(first) != memory_of(new):  # not a view, and not in place
                    first.copy_(new)
