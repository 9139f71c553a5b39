"""`launch/roofline.py`: the kernels of a step, traced without a GPU."""

from collections import Counter

import pytest
import roofline
import torch

from mlm_dist.config import Config, MaskingConfig, ModelConfig, TrainConfig
from mlm_dist.model.flops import step_flops

pytestmark = pytest.mark.slow

SHAPE = ModelConfig(vocab_size=4096, block_size=32, embedding_dim=64, heads=2, blocks=2)
CONFIG = Config(model=SHAPE, masking=MaskingConfig(mask_prob=0.25), train=TrainConfig(batch_size=16))


def test_the_traced_flops_are_those_of_the_formula_and_every_part_has_kernels() -> None:
    for has_kernel in (False, True):
        kernels = roofline.trace_step(CONFIG, has_kernel)
        flops = sum(kernel.flops for kernel in kernels)
        assert flops == pytest.approx(step_flops(CONFIG), rel=0.1)  # attention's backward computes its scores again
        assert {kernel.part for kernel in kernels} == {"masks", "encoder", "loss", "backward", "update", ""}


def test_the_loss_kernel_and_fusing_save_bytes_and_kernels_but_no_flops() -> None:
    plain, eager = (roofline.trace_step(CONFIG, has_kernel) for has_kernel in (False, True))
    fused = roofline.fuse(eager)
    counts = [len(kernels) for kernels in (plain, eager, fused)]
    sizes = [sum(kernel.bytes for kernel in kernels) for kernels in (plain, eager, fused)]
    flops = [sum(kernel.flops for kernel in kernels) for kernels in (plain, eager, fused)]
    assert counts == sorted(counts, reverse=True)
    assert sizes == sorted(sizes, reverse=True)
    assert flops == pytest.approx([flops[0]] * 3)


def test_blocks_cast_only_parameters_and_gradients_in_one_kernel_each_and_the_sums_of_kernels() -> None:
    kernels = [
        kernel for kernel in roofline.trace_step(CONFIG, has_kernel=True) if kernel.part in ("encoder", "backward")
    ]
    names = Counter((kernel.part, kernel.name) for kernel in kernels)
    assert names["encoder", "_to_copy"] == 0
    assert names["backward", "_to_copy"] == 3 * SHAPE.blocks  # two norms and a feed-forward layer
    norms = 1  # the final one is a module of its own
    assert names["encoder", "_foreach_copy_"] == names["backward", "_foreach_copy_"] == SHAPE.blocks + norms


def test_parts_of_one_memory_count_each_and_the_same_part_once() -> None:
    packed = torch.ones(10, 3)
    first, second, _ = packed.unbind(1)
    assert list(roofline.sizes([first, second, second]).values()) == [4 * 20]
    assert list(roofline.sizes([packed, first]).values()) == [4 * 30]


def test_fusing_keeps_what_others_read_and_drops_what_only_the_fused_kernel_reads() -> None:
    def kernel(name: str, reads: list[int], writes: list[int], size: int = 10) -> roofline.Kernel:
        return roofline.Kernel("encoder", name, dict.fromkeys(reads, 8.0), dict.fromkeys(writes, 8.0), 0.0, size)

    chain = [kernel("add", [1], [2]), kernel("mul", [2], [3]), kernel("mm", [3], [4]), kernel("sub", [4], [5], size=9)]
    first, *rest = roofline.fuse(chain)
    assert (first.reads, first.writes) == ({1: 8.0}, {3: 8.0})
    assert [kernel.name for kernel in rest] == ["mm", "sub"]  # a product stays alone, and so does another size
    first, *_ = roofline.fuse([*chain, kernel("mm", [2], [6])])
    assert first.writes == {2: 8.0, 3: 8.0}


def test_every_operation_is_a_kernel_with_its_bytes_and_flops() -> None:
    a, b, index = torch.ones(10, 20), torch.ones(20), torch.tensor([1, 3, 3])
    trace = roofline.Trace()
    with trace:
        product = (a + b).bfloat16() @ torch.ones(20, 30, dtype=torch.bfloat16)
        product.t().index_select(0, index)
    found = [(kernel.name, kernel.bytes, kernel.flops) for kernel in trace.kernels]
    assert found == [
        ("add", 4 * (200 + 20 + 200), 0),
        ("_to_copy", (4 + 2) * 200, 0),
        ("ones", 2 * 600, 0),
        ("mm", 2 * (200 + 600 + 300), 2 * 10 * 20 * 30),
        ("index_select", 8 * 3 + 2 * (30 + 30), 0),
    ]
