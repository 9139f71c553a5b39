"""Compiles the kernels for a GPU that need not be there. Prints registers spilled and scalar accesses.

python -m tests.model.compile_kernels 90    # compute capability 9.0
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mlm_dist.model import attention_kernel, embedding_kernel, loss_kernel, norm_kernel, relu_kernel

ENTRIES = 50258
FP32 = {"bias", "losses", "row_weights"}  # pointers of the loss
SUMS = {"statistics", "sums", "parts"}
SCALARS = {"scale": "fp32", "softcap": "fp32", "eps": "fp32", "n": "i32"}
HEADS = {"H": 8, "K": 64, "T": 64, "D": 32, "QUERIES": 64, "KEYS": 64}
NORM = norm_kernel.sizes(256)
ROWS = {"C": 256, "WIDTH": 256, "R": 16}
# Constants, warps and stages.
KERNELS = {
    loss_kernel.cross_entropy_kernel: ({"CAPPED": False, "V": ENTRIES, "B": loss_kernel.BLOCK}, loss_kernel.WARPS, 3),
    loss_kernel.column_sums_kernel: ({"N": 2560, "C": loss_kernel.ALIGNMENT, "R": loss_kernel.ROWS}, 4, 3),
    relu_kernel.gradient_before_relu_kernel: (
        {"C": 256, "W": 1024, **relu_kernel.TILE},
        relu_kernel.WARPS,
        relu_kernel.STAGES,
    ),
    attention_kernel.attention_kernel: (HEADS, attention_kernel.WARPS, 3),
    attention_kernel.attention_backward_kernel: (HEADS, attention_kernel.WARPS, 3),
    norm_kernel.add_norm_kernel: ({"ADDS": True, **NORM}, norm_kernel.WARPS, 3),
    norm_kernel.add_norm_backward_kernel: ({"COUNT": norm_kernel.ROWS, **NORM}, norm_kernel.WARPS, 3),
    embedding_kernel.look_up_kernel: ({"T": 64, **ROWS}, embedding_kernel.WARPS, 3),
    embedding_kernel.add_rows_kernel: (ROWS, embedding_kernel.WARPS, 3),
}


def type_of(kernel: triton.JITFunction, name: str) -> str:
    """The type of an argument of a kernel."""
    if name in KERNELS[kernel][0]:
        return "constexpr"
    if name in SCALARS or name.endswith("stride"):
        return SCALARS.get(name, "i32")
    if name in ("targets", "tokens"):
        return "*i64"
    in_loss = kernel in (loss_kernel.cross_entropy_kernel, loss_kernel.column_sums_kernel)
    in_embedding = kernel in (embedding_kernel.look_up_kernel, embedding_kernel.add_rows_kernel)
    is_fp32 = name in FP32 if in_loss else in_embedding and name in ("weight", "positions")
    return "*fp32" if is_fp32 or name in SUMS else "*bf16"


def compile_for(kernel: triton.JITFunction, capability: int) -> tuple[str, int]:
    """The PTX of a kernel, and the bytes of registers that it spills."""
    names, (sizes, warps, stages) = kernel.arg_names, KERNELS[kernel]
    signature = {name: type_of(kernel, name) for name in names}
    # Pointers and strides are multiples of 16, as torch's allocator and the padded vocabulary make them.
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(names)
        if signature[name].startswith("*") or name.endswith("stride") or name == "n"
    }
    constants = {(names.index(name),): value for name, value in sizes.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    compiled = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps, "num_stages": stages}
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(compiled.asm["cubin"])
        tool = next(Path(triton.__file__).parent.glob("backends/nvidia/bin/cuobjdump"))
        usage = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True)
    stack, local = (int(re.search(rf"{name}:(\d+)", usage.stdout)[1]) for name in ("STACK", "LOCAL"))  # type: ignore[index]
    return compiled.asm["ptx"], stack + local


def main(capability: int) -> None:
    for kernel in KERNELS:
        ptx, spilled = compile_for(kernel, capability)
        scalar = re.findall(r"(?:ld|st)\.global(?:\.\w+)*\.b16", ptx)
        count = sum(".v" not in access for access in scalar)
        print(f"{kernel.__name__}: {spilled} bytes spilled, {count} scalar access{'es' * (count != 1)}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
