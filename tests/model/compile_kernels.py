"""Compiles the kernels of the loss for a GPU that need not be there. Prints registers spilled and scalar accesses.

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

from mlm_dist.model import loss_kernel

ENTRIES = 50258
POINTERS = {"logits": "*bf16", "matrix": "*bf16", "targets": "*i64"}
SCALARS = {"stride": "i32", "scale": "fp32", "softcap": "fp32", "n": "i32"}
SIZES = {
    loss_kernel.cross_entropy_kernel: {"CAPPED": False, "V": ENTRIES, "B": loss_kernel.BLOCK},
    loss_kernel.column_sums_kernel: {"C": loss_kernel.ALIGNMENT, "R": loss_kernel.ROWS},
}


def compile_for(kernel: triton.JITFunction, capability: int) -> tuple[str, int]:
    """The PTX of a kernel, and the bytes of registers that it spills."""
    names = kernel.arg_names
    signature = {
        name: "constexpr" if name in SIZES[kernel] else SCALARS.get(name) or POINTERS.get(name, "*fp32")
        for name in names
    }
    # Pointers and the stride are multiples of 16, as torch's allocator and the padded vocabulary make them.
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(names)
        if signature[name].startswith("*") or name == "stride"
    }
    constants = {(names.index(name),): value for name, value in SIZES[kernel].items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    compiled = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"num_warps": loss_kernel.WARPS}
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(compiled.asm["cubin"])
        tool = next(Path(triton.__file__).parent.glob("backends/nvidia/bin/cuobjdump"))
        usage = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True)
    stack, local = (int(re.search(rf"{name}:(\d+)", usage.stdout)[1]) for name in ("STACK", "LOCAL"))  # type: ignore[index]
    return compiled.asm["ptx"], stack + local


def main(capability: int) -> None:
    for kernel in SIZES:
        ptx, spilled = compile_for(kernel, capability)
        scalar = re.findall(r"(?:ld|st)\.global(?:\.\w+)*\.b16", ptx)
        count = sum(".v" not in access for access in scalar)
        print(f"{kernel.__name__}: {spilled} bytes spilled, {count} scalar access{'es' * (count != 1)}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
