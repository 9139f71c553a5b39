"""Estimates how long a step takes on an H100, without one: `python launch/roofline.py`.

The operations are those of the code itself. They are traced on tensors without memory, with the data types that they
have on a GPU in bf16. The model:

- An operation is one kernel. It reads every input from memory, writes every output, and computes meanwhile.
- A kernel takes the longest of: its bytes at 2.7 TB/s, its FLOPs at 550 TFLOP/s, 2.2 microseconds.
- The kernel of the loss reads logits from memory once, then from the cache. Nothing else is in the cache.
- The host, gaps between kernels and misaligned matrix products cost nothing. So this is a lower bound for each variant.
- "fused" is what a compiler could do: an element-wise operation or a reduction joins the kernel of an input of the same
  size, and what only this kernel uses is neither written nor read.
"""

import math
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mlm_dist.config import Config
from mlm_dist.config_reading import parse_config
from mlm_dist.data.rows import TrainingRows
from mlm_dist.data.sampler import GlobalBatchSampler
from mlm_dist.distributed import Processes
from mlm_dist.model import encoder, loss, low_precision, selection
from mlm_dist.model.flops import step_flops
from mlm_dist.model.registry import build_model
from mlm_dist.training import muon
from mlm_dist.training.inputs import InputReader, StepInputs, inputs_bytes
from mlm_dist.training.optim import build_optimizers
from mlm_dist.training.state import TrainState
from mlm_dist.training.step import Step

BANDWIDTH = 2.7e12  # bytes per second
FLOPS = 550e12  # per second, of bf16 matrix products
CEILING = 798e12  # the fastest matrix product that was measured on an H100 elsewhere
SHORTEST = 2.2e-6  # seconds of a kernel

PLAIN = "without kernels of its own"

# Operations that only describe memory.
FREE = {"view", "alias", "detach", "expand", "permute", "transpose", "slice", "select", "unsqueeze", "squeeze", "t"}
FREE |= {"as_strided", "split", "split_with_sizes", "unbind", "lift_fresh", "empty", "empty_like", "empty_strided"}
FREE |= {"_unsafe_view", "_reshape_alias", "new_empty", "new_empty_strided"}
GATHERS = {"index_select", "gather"}
SCATTERS = {"index_add", "index_add_", "scatter_add_"}
FILLS = {"fill_", "zero_", "new_zeros", "zeros_like", "ones_like", "full_like"}  # they do not read
COPIES = {"copy_", "_foreach_copy_"}
# What a compiler leaves in kernels of their own.
PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "_addmm_activation", "before relu"}
ALONE = GATHERS | SCATTERS | PRODUCTS | {"sort", "topk", "scatter", "cumsum", "searchsorted", "stack", "cat"}
ALONE |= {
    "_foreach_norm",
    "_foreach_add_",
    "_foreach_sub_",
    "_fused_adamw_",
    "cross entropy",
    "column sums",
    "attention",
}
ALONE |= {"attention backward", "add norm", "add norm backward", "look up", "add rows"}

Sizes = dict[int, float]


@dataclass
class Kernel:
    """What a kernel does.

    Attributes:
        part: of the step.
        name: of its first operation.
        reads, writes: bytes by memory.
        flops: of a matrix product.
        size: elements of its largest tensor.
    """

    part: str
    name: str
    reads: Sizes
    writes: Sizes
    flops: float
    size: int

    @property
    def bytes(self) -> float:
        """All bytes that it moves."""
        return sum(self.reads.values()) + sum(self.writes.values())

    @property
    def seconds(self) -> float:
        """Its time."""
        return max(self.bytes / BANDWIDTH, self.flops / FLOPS, SHORTEST)


class Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the operations that would be kernels on a GPU, each under the `part` of that moment."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.part = ""
        self.kernels: list[Kernel] = []
        self._alive: list[torch.UntypedStorage] = []  # so that each memory has an address of its own

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if func.namespace == "aten" and name not in FREE:
            self._record(name, args, kwargs or {}, out)
        return out

    @contextmanager
    def of(self, step: Step) -> Iterator[None]:
        """Trace a step in the block, with its parts."""
        parts: dict[str, tuple[Any, str]] = {
            "masks": (step.reader, "batch"),
            "encoder": (step.state.encoder, "encode_for_loss"),
            "loss": (loss, "masked_cross_entropy"),
            "backward": (torch.Tensor, "backward"),
            "update": (step, "update"),
        }
        with ExitStack() as patches:
            for name, (owner, function) in parts.items():
                in_its_part = self._in_part(name, getattr(owner, function))
                patches.enter_context(mock.patch.object(owner, function, in_its_part))
            patches.enter_context(self)
            yield

    def _in_part(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            before, self.part = self.part, name
            try:
                return function(*args, **kwargs)
            finally:
                self.part = before

        return call

    def add(self, name: str, reads: Iterable[torch.Tensor], writes: Iterable[torch.Tensor], flops: float = 0) -> None:
        """Add a kernel that reads and writes these tensors."""
        reads, writes = list(reads), list(writes)
        self._alive += [tensor.untyped_storage() for tensor in [*reads, *writes]]
        size = max((tensor.numel() for tensor in [*reads, *writes]), default=0)
        self.kernels.append(Kernel(self.part, name, sizes(reads), sizes(writes), flops, size))

    def _record(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: object) -> None:
        read = {key: value for key, value in kwargs.items() if key != "out"}
        inputs, outputs = tensors_in((args, read)), tensors_in(out)
        if name in GATHERS:  # they read as much as they write
            inputs = [inputs[-1], torch.empty_like(outputs[0])]
        elif name in SCATTERS:  # they change as much as they add
            inputs, outputs = [inputs[1], inputs[-1], torch.empty_like(inputs[-1])], [torch.empty_like(inputs[-1])]
        elif name in FILLS:
            inputs = []
        elif name in COPIES:
            inputs, outputs = tensors_in(args[1]), tensors_in(args[0])
        elif name == "_fused_adamw_":
            outputs = tensors_in((args[0], args[2], args[3]))
        elif name in ("_foreach_add_", "_foreach_sub_"):
            outputs = tensors_in(args[0])
        self.add(name, inputs, outputs, flops_of(name, args))


def tensors_in(values: object) -> list[torch.Tensor]:
    """The tensors in nested lists, tuples and dicts."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def sizes(tensors: list[torch.Tensor]) -> Sizes:
    """The bytes of tensors, by what identifies their memory. Tensors may be different parts of one memory."""
    views = {(tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape): tensor for tensor in tensors}
    result: Sizes = {}
    for (memory, *_), tensor in views.items():
        result[memory] = min(result.get(memory, 0.0) + tensor.nbytes, float(tensor.untyped_storage().nbytes()))
    return result


def flops_of(name: str, args: tuple[Any, ...]) -> float:
    """The FLOPs of a matrix product or of attention; 0 for other operations."""
    if name in PRODUCTS:
        left, right = args[1:3] if "add" in name else args[:2]
        return float(2 * left.numel() * right.shape[-1])
    if "scaled_dot_product" in name:
        query, key = (args[1], args[2]) if "backward" in name else (args[0], args[1])
        return float(4 * query.numel() * key.shape[-2]) * (2.5 if "backward" in name else 1)
    return 0.0


def fuse(kernels: list[Kernel]) -> list[Kernel]:
    """Join kernels as a compiler does."""
    groups: list[list[Kernel]] = []
    writer: dict[int, int] = {}  # the group that last wrote a memory
    for kernel in kernels:
        latest = max((writer[memory] for memory in (kernel.reads | kernel.writes) if memory in writer), default=-1)
        first = groups[latest][0] if latest >= 0 else None
        joins = first and first.part == kernel.part and first.size == kernel.size
        if joins and first and kernel.name not in ALONE and first.name not in ALONE:
            groups[latest].append(kernel)
        else:
            groups.append([kernel])
            latest = len(groups) - 1
        writer |= dict.fromkeys(kernel.writes, latest)
    readers: dict[int, set[int]] = {}
    for index, group in enumerate(groups):
        for kernel in group:
            for memory in kernel.reads:
                readers.setdefault(memory, set()).add(index)
    return [fused(group, index, readers) for index, group in enumerate(groups)]


def fused(group: list[Kernel], index: int, readers: dict[int, set[int]]) -> Kernel:
    """The kernel of a group, which keeps to itself what no other group reads."""
    reads: Sizes = {}
    writes: Sizes = {}
    for kernel in group:
        reads |= {memory: size for memory, size in kernel.reads.items() if memory not in writes}
        writes |= kernel.writes
    kept = {memory: size for memory, size in writes.items() if readers.get(memory, {-1}) - {index}}
    return Kernel(group[0].part, group[0].name, reads, kept, sum(k.flops for k in group), group[0].size)


def loss_kernels(trace: Trace) -> types.ModuleType:
    """A stand-in for mlm_dist/model/loss_kernel.py, which needs triton, that records its kernels."""

    def replace_by_gradient(
        logits: torch.Tensor, bias: torch.Tensor, targets: torch.Tensor, *_: float | None
    ) -> torch.Tensor:
        losses = torch.empty(len(logits))
        trace.add("cross entropy", [logits, bias, targets], [logits, losses])
        return losses

    def column_sums(matrix: torch.Tensor, row_weights: torch.Tensor) -> torch.Tensor:
        sums = torch.empty(matrix.shape[1])
        trace.add("column sums", [matrix, row_weights], [sums])
        return sums

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        out = torch.empty(a.shape[0], b.shape[1])
        trace.add("mm", [a, b], [out], flops_of("mm", (a, b)))
        return out

    def pad_vocabulary(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        padded = weight.new_empty(len(weight) + -len(weight) % 64, weight.shape[1], dtype=dtype)
        padded[: len(weight)] = weight
        padded[len(weight) :] = 0
        return padded

    module: Any = types.ModuleType("loss_kernel")
    module.pad_vocabulary = pad_vocabulary
    module.replace_by_gradient, module.column_sums, module.product = replace_by_gradient, column_sums, product
    result: types.ModuleType = module
    return result


def attention_kernel(trace: Trace) -> types.ModuleType:
    """A stand-in for mlm_dist/model/attention_kernel.py, which needs triton, that records its kernels."""

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int) -> torch.Tensor:
        out = torch.empty(query.shape, dtype=query.dtype)
        trace.add("attention", [query, key, value], [out], 4 * query.numel() * key.shape[1])
        return out

    def attend_backward(
        gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any
    ) -> None:
        *written, _ = rest
        reads = [gradient, query, key, value]
        trace.add("attention backward", reads, written, 10 * query.numel() * key.shape[1])

    module: Any = types.ModuleType("attention_kernel")
    module.attend, module.attend_backward = attend, attend_backward
    result: types.ModuleType = module
    return result


def norm_kernel(trace: Trace) -> types.ModuleType:
    """A stand-in for mlm_dist/model/norm_kernel.py, which needs triton, that records its kernels."""

    def add_norm_(
        x: torch.Tensor, branch: torch.Tensor | None, weight: torch.Tensor, bias: torch.Tensor, _: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        total = x if branch is None else torch.empty_like(x)
        normed, statistics = torch.empty_like(x), torch.empty(2, x.numel() // x.shape[-1])
        branches = [] if branch is None else [branch]
        trace.add("add norm", [x, *branches, weight, bias], [normed, statistics, *branches])
        return total, normed, statistics

    def add_norm_backward(*given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        *_, total, weight, statistics = given
        of_x, of_parameters = torch.empty_like(total), total.new_empty(-(-statistics.shape[1] // 64), 2, len(weight))
        trace.add("add norm backward", given, [of_x, of_parameters])
        return of_x, of_parameters.sum(0)

    module: Any = types.ModuleType("norm_kernel")
    module.add_norm, module.add_norm_backward = add_norm_, add_norm_backward
    result: types.ModuleType = module
    return result


def embedding_kernel(trace: Trace) -> types.ModuleType:
    """A stand-in for mlm_dist/model/embedding_kernel.py, which needs triton, that records its kernels."""

    def look_up(weight: torch.Tensor, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        read = torch.empty(*tokens.shape, weight.shape[1])
        out = torch.empty_like(read, dtype=torch.bfloat16)
        trace.add("look up", [read, tokens, positions], [out])
        return out

    def add_rows(weight: torch.Tensor, tokens: torch.Tensor, gradient: torch.Tensor) -> None:
        changed = torch.empty_like(gradient, dtype=weight.dtype)
        trace.add("add rows", [changed, tokens, gradient], [changed])

    module: Any = types.ModuleType("embedding_kernel")
    module.look_up, module.add_rows = look_up, add_rows
    result: types.ModuleType = module
    return result


def relu_kernel(trace: Trace) -> types.ModuleType:
    """A stand-in for mlm_dist/model/relu_kernel.py, which needs triton, that records its kernels."""

    def gradient_before_relu(
        gradient: torch.Tensor, weight: torch.Tensor, activation: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        result, sums = torch.empty_like(activation), activation.new_empty(-(-len(activation) // 128), weight.shape[1])
        flops = flops_of("before relu", (gradient, weight))
        trace.add("before relu", [gradient, weight, activation], [result, sums], flops)
        return result, sums.sum(0)

    module: Any = types.ModuleType("relu_kernel")
    module.gradient_before_relu = gradient_before_relu
    result: types.ModuleType = module
    return result


def layer_norm(self: torch.nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
    """LayerNorm, in fp32 under autocast, as on CUDA. Blocks compute it in bf16 and without autocast."""
    if not torch.is_autocast_enabled("cpu"):
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
    with torch.autocast("cpu", enabled=False):
        return F.layer_norm(x.float(), self.normalized_shape, self.weight, self.bias, self.eps)


@contextmanager
def as_on_a_gpu(trace: Trace, has_kernel: bool) -> Iterator[None]:
    """Let the model take the paths that it takes on a GPU, with or without the Triton kernels."""
    chunks = {"cpu": loss.LOGITS_BYTES["cuda"]}
    with (
        mock.patch.object(encoder, "LONGEST_PLAIN", 0),
        mock.patch.object(torch.nn.LayerNorm, "forward", layer_norm),
        mock.patch.object(low_precision, "dtype_of_blocks", lambda x: torch.bfloat16),
        mock.patch.dict(loss.LOGITS_BYTES, chunks),
        mock.patch.dict(loss.SOFTMAX_BYTES, chunks),
        mock.patch("mlm_dist.model.kernels.is_on", lambda kernel, x: has_kernel),
        mock.patch("torch.nn.utils.clip_grad._has_foreach_support", return_value=True),
        mock.patch.dict(sys.modules, {"mlm_dist.model.loss_kernel": loss_kernels(trace)}),
        mock.patch("mlm_dist.model.loss_kernel", loss_kernels(trace), create=True),
        mock.patch.dict(sys.modules, {"mlm_dist.model.embedding_kernel": embedding_kernel(trace)}),
        mock.patch("mlm_dist.model.embedding_kernel", embedding_kernel(trace), create=True),
        mock.patch.object(selection, "adds_in_place", lambda matrix: True),
        mock.patch.object(muon, "computes_together", lambda matrix: True),
        mock.patch.dict(sys.modules, {"mlm_dist.model.norm_kernel": norm_kernel(trace)}),
        mock.patch("mlm_dist.model.norm_kernel", norm_kernel(trace), create=True),
        mock.patch.dict(sys.modules, {"mlm_dist.model.attention_kernel": attention_kernel(trace)}),
        mock.patch("mlm_dist.model.attention_kernel", attention_kernel(trace), create=True),
        mock.patch.dict(sys.modules, {"mlm_dist.model.relu_kernel": relu_kernel(trace)}),
        mock.patch("mlm_dist.model.relu_kernel", relu_kernel(trace), create=True),
    ):
        yield


def trace_step(config: Config, has_kernel: bool) -> list[Kernel]:
    """The kernels of a step of one process, in the order of the step."""
    trace, rows, length = Trace(), config.train.batch_size, config.model.block_size
    tokenizer: Any = types.SimpleNamespace(mask_id=config.model.entries - 1, end_id=config.model.entries - 2)
    corpus = TrainingRows([np.zeros(rows * length, np.uint16)], length, config.seed, is_shifted=True)
    sampler = GlobalBatchSampler([rows], rows, config.seed)
    with FakeTensorMode(allow_non_fake_inputs=True), as_on_a_gpu(trace, has_kernel):
        model = build_model(config.model)
        state = TrainState(model, build_optimizers(model, config.optim), torch.amp.GradScaler("cpu", enabled=False))
        reader = InputReader(corpus, sampler, torch.device("cpu"))
        step = Step(config, state, reader, tokenizer, None, Processes("cpu"), torch.bfloat16)
        step.without_host = True
        reader.on_device = torch.empty(100 * rows * length, dtype=torch.int16)
        buffer = torch.empty(inputs_bytes(rows, 0, reader.dtype), dtype=torch.uint8)
        inputs = StepInputs.in_buffer(buffer, rows, reader.dtype)
        step.run(inputs, math.nan)  # the optimizer creates its state
        trace.kernels.clear()  # of the stand-in
        with trace.of(step):
            step.run(inputs, math.nan)
    return trace.kernels


def row(name: str, kernels: list[Kernel]) -> str:
    """A line of the table."""
    size, flops = sum(kernel.bytes for kernel in kernels), sum(kernel.flops for kernel in kernels)
    seconds = sum(kernel.seconds for kernel in kernels)
    return f"| {name} | {len(kernels)} | {size / 1e9:.2f} | {flops / 1e9:.0f} | {1e3 * seconds:.2f} |"


def report(name: str, config: Config) -> Iterator[str]:
    """The lines of the tables of a recipe."""
    eager = trace_step(config, has_kernel=True)
    variants = {PLAIN: trace_step(config, has_kernel=False), "now": eager, "fused": fuse(eager)}
    yield f"\n{name}: {config.train.batch_size} rows of {config.model.block_size} tokens\n"
    yield from ("| | kernels | GB | GFLOP | ms |", "|---|---|---|---|---|")
    for variant, kernels in variants.items():
        share = step_flops(config) / sum(kernel.seconds for kernel in kernels) / CEILING
        yield row(f"{variant}, {100 * share:.0f} % of the ceiling", kernels)
        if variant != PLAIN:
            for part in Counter(kernel.part for kernel in kernels):
                yield row(f"... {part or 'rest'}", [kernel for kernel in kernels if kernel.part == part])


def main() -> None:
    """Print the tables of the recipe, of the recipe with Muon, and of a micro-batch of BERT-base."""
    recipe, with_muon = (
        parse_config(["--config=novels", "--model.vocab_size=50258", f"--optim.name={name}"], "train")
        for name in ("adamw", "muon")
    )
    bert = parse_config(["--config=bert_base_8gpu", "--device=cpu", "--train.batch_size=64"], "train")
    configs = {
        "configs/novels.yaml": recipe,
        "configs/novels.yaml with Muon": with_muon,
        "A micro-batch of configs/bert_base_8gpu.yaml": bert,
    }
    for name, config in configs.items():
        print("\n".join(report(name, config)))


if __name__ == "__main__":
    main()
