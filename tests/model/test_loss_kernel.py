"""The kernels of the loss: on a GPU, or in Triton's interpreter on a CPU."""

import pytest
import torch

from mlm_dist.model import loss
from mlm_dist.model.soft_cap import soft_cap

pytest.importorskip("triton", reason="needs triton, which comes with the builds of torch for CUDA")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def by_definition(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    targets: torch.Tensor,
    loss_weights: torch.Tensor,
    softcap: float | None = None,
) -> list[torch.Tensor]:
    """The loss, and the gradients of three times it, in fp64, by autograd."""
    given = [x.double().requires_grad_() for x in (hidden, weight, bias)]
    logits = soft_cap(given[0] @ given[1].t() + given[2], softcap)
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    total = (losses * loss_weights.double()).sum()
    return [total, *torch.autograd.grad(3 * total, given)]


def computed(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    targets: torch.Tensor,
    loss_weights: torch.Tensor,
    dtype: torch.dtype,
    softcap: float | None = None,
) -> list[torch.Tensor]:
    """The loss, and the gradients of three times it, by the kernels."""
    targets, loss_weights = targets.to(DEVICE), loss_weights.to(DEVICE)
    given = [part.to(DEVICE).requires_grad_() for part in (hidden, weight, bias)]
    total = loss.OutputCrossEntropyOnGPU.apply(*given, targets, loss_weights, dtype, softcap)
    return [part.cpu() for part in (total.detach(), *torch.autograd.grad(3 * total, given))]


@pytest.mark.parametrize(("weighted", "softcap"), [(False, None), (True, None), (True, 3.0)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
@pytest.mark.parametrize("is_cut", [False, True], ids=["one chunk", "several chunks"])
@pytest.mark.parametrize("entries", [10, 64, 1002])
def test_the_kernel_computes_the_loss_and_its_gradients(
    entries: int,
    is_cut: bool,
    dtype: torch.dtype,
    tolerance: float,
    weighted: bool,
    softcap: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if is_cut:  # the last chunk is shorter
        monkeypatch.setitem(loss.LOGITS_BYTES, "cuda", 8 * (entries + -entries % 64) * dtype.itemsize)
    generator = torch.Generator().manual_seed(entries)
    hidden = torch.randn(21, 32, generator=generator).to(dtype).float()
    weight = (0.3 * torch.randn(entries, 32, generator=generator)).to(dtype).float()
    bias = torch.randn(entries, generator=generator)
    targets = torch.randint(entries, (21,), generator=generator)
    loss_weights = (torch.rand(21, generator=generator) < 0.8).float()
    if weighted:
        loss_weights *= 64 * torch.rand(21, generator=generator)
    expected = by_definition(hidden, weight, bias, targets, loss_weights, softcap)
    found = computed(hidden, weight, bias, targets, loss_weights, dtype, softcap)
    for value, reference in zip(found, expected, strict=True):
        assert value.dtype == torch.float32
        assert (value - reference).norm() <= tolerance * reference.norm()


def test_a_frequent_token_does_not_overflow_in_fp16() -> None:
    hidden, weight = torch.ones(3000, 16), torch.zeros(100, 16)
    targets, weights = torch.zeros(3000, dtype=torch.int64), torch.full((3000,), 50.0)
    expected = by_definition(hidden, weight, torch.zeros(100), targets, weights)
    found = computed(hidden, weight, torch.zeros(100), targets, weights, torch.float16)
    torch.testing.assert_close(found[2], expected[2].float(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_makes_its_own_loss_not_finite(value: float) -> None:
    from mlm_dist.model import loss_kernel

    logits = torch.ones(3, 128, device=DEVICE)
    logits[1] = value
    targets = torch.arange(3, device=DEVICE)
    losses = loss_kernel.replace_by_gradient(logits, torch.zeros(70, device=DEVICE), targets, 1.0)
    assert losses.isfinite().tolist() == [True, False, True]
