import copy
from typing import Any

import pytest
import roofline
import torch
from torch import nn
from torch.optim._muon import _zeropower_via_newtonschulz

from mlm_dist.training import muon
from mlm_dist.training.muon import COEFFICIENTS, EPS, ITERATIONS, Muon, NorMuon, orthogonalize

KINDS = pytest.mark.parametrize("kind", [Muon, NorMuon])
TOGETHER = pytest.mark.parametrize("together", [False, True])
WIDTH = 16


def matrices_of_blocks(blocks: int) -> list[nn.Parameter]:
    shapes = [(3 * WIDTH, WIDTH), (WIDTH, WIDTH), (4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH)]
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator) * 0.02) for _ in range(blocks) for shape in shapes]


def set_gradients(matrices: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for matrix in matrices:
        matrix.grad = torch.randn(matrix.shape, generator=generator)


def update_together(monkeypatch: pytest.MonkeyPatch, together: bool) -> None:
    """Update all matrices together, as on a GPU, or one at a time."""
    monkeypatch.setattr(muon, "computes_together", lambda matrix: together)


def copies(optimizer: Muon) -> list[torch.Tensor]:
    """Copies of the matrices and of their state."""
    matrices = optimizer.param_groups[0]["params"]
    states = [value for matrix in matrices for value in optimizer.state[matrix].values()]
    return [tensor.detach().clone() for tensor in [*matrices, *states]]


@pytest.mark.parametrize("shape", [(16, 16), (48, 16), (16, 64), (33, 17), (1, 5)], ids=str)
def test_stacked_matrices_are_orthogonalized_as_by_torch(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    scales = torch.tensor([1e-3, 1.0, 50.0, 0.0]).view(-1, 1, 1)
    matrices = torch.randn(4, *shape) * scales
    expected = [_zeropower_via_newtonschulz(matrix, COEFFICIENTS, ITERATIONS, EPS) for matrix in matrices]
    found = orthogonalize(matrices.bfloat16())
    assert found.dtype == torch.bfloat16
    for matrix, one, of_torch in zip(matrices, found, expected, strict=True):
        assert torch.equal(orthogonalize(matrix.bfloat16()), of_torch)
        # Batched products may be rounded differently on other processors.
        assert (one - of_torch).float().norm() <= 0.02 * of_torch.float().norm()


@KINDS
@pytest.mark.parametrize("on_device", [False, True])
def test_matrices_updated_together_are_those_updated_one_at_a_time(
    kind: type[Muon], on_device: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for together in (False, True):
        update_together(monkeypatch, together)
        matrices = matrices_of_blocks(3)
        optimizer = kind(matrices, lr=0.01, weight_decay=0.1)
        for step, lr in enumerate((0.01, 0.02, 0.005)):
            set_gradients(matrices, step)
            matrices[5].grad = None
            optimizer.param_groups[0]["lr"] = torch.tensor(lr) if on_device else lr
            if on_device:
                optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.7), torch.tensor(float(step == 1))
            optimizer.step()
        assert torch.equal(matrices[5], matrices_of_blocks(3)[5])
        assert not optimizer.state[matrices[5]]
        found.append(copies(optimizer))
    assert len(found[0]) == 12 + 11 * len(optimizer.initial_state(matrices[0]))
    for one, other in zip(*found, strict=True):
        # Batched products may be rounded differently on other processors.
        assert (one - other).norm() <= 0.01 * one.norm()


@KINDS
@TOGETHER
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_skipped_step_changes_nothing_even_if_the_learning_rate_is_not_finite(
    kind: type[Muon], together: bool, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    update_together(monkeypatch, together)
    matrices = matrices_of_blocks(2)
    optimizer = kind(matrices, lr=0.01, weight_decay=0.1)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.0), torch.tensor(0.0)
    optimizer.param_groups[0]["lr"] = torch.tensor(0.01)
    set_gradients(matrices, 0)
    optimizer.step()
    before = copies(optimizer)
    assert matrices[2].grad is not None
    matrices[2].grad[3, 4] = value
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(value), torch.tensor(1.0)
    optimizer.param_groups[0]["lr"] = torch.tensor(value)
    optimizer.step()
    assert all(torch.equal(*pair) for pair in zip(copies(optimizer), before, strict=True))


@KINDS
@TOGETHER
def test_the_gradients_stay_as_they_are(kind: type[Muon], together: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    update_together(monkeypatch, together)
    matrices = matrices_of_blocks(2)
    optimizer = kind(matrices, lr=0.01, weight_decay=0.1)
    set_gradients(matrices, 0)
    gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]
    before = [gradient.clone() for gradient in gradients]
    optimizer.step()
    assert all(torch.equal(*pair) for pair in zip(gradients, before, strict=True))


@KINDS
@TOGETHER
def test_a_state_that_was_saved_before_matrices_were_updated_together_continues(
    kind: type[Muon], together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrices = matrices_of_blocks(2)
    optimizer = kind(matrices, lr=0.01, weight_decay=0.1)
    saved: dict[str, Any] = optimizer.state_dict()
    torch.manual_seed(0)
    for index, matrix in enumerate(matrices):
        state = {"momentum_buffer": torch.randn_like(matrix)}
        if kind is NorMuon:
            state["row_mean_squares"] = torch.rand(len(matrix), 1)
        saved["state"][index] = {name: value.detach() for name, value in state.items()}
    momenta = [state["momentum_buffer"].clone() for state in saved["state"].values()]
    optimizer.load_state_dict(copy.deepcopy(saved))
    update_together(monkeypatch, together)
    set_gradients(matrices, 0)
    optimizer.step()
    after = optimizer.state_dict()["state"]
    for index, (matrix, momentum) in enumerate(zip(matrices, momenta, strict=True)):
        assert matrix.grad is not None
        torch.testing.assert_close(after[index]["momentum_buffer"], momentum * 0.95 + matrix.grad * 0.05)
        if kind is NorMuon:
            direction = matrix.grad.lerp(after[index]["momentum_buffer"], 0.95)
            orthogonal = _zeropower_via_newtonschulz(direction, COEFFICIENTS, ITERATIONS, EPS).float()
            expected = (
                saved["state"][index]["row_mean_squares"] * 0.95 + orthogonal.square().mean(1, keepdim=True) * 0.05
            )
            torch.testing.assert_close(after[index]["row_mean_squares"], expected, rtol=0.02, atol=0)
        for name, value in saved["state"][index].items():
            assert after[index][name].shape == value.shape
            assert after[index][name].untyped_storage().nbytes() == value.nbytes  # no part of a larger tensor


@pytest.mark.parametrize(("kind", "recorded"), [(Muon, 97), (NorMuon, 156)])
def test_the_operations_of_an_update_do_not_grow_with_the_blocks(
    kind: type[Muon], recorded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    update_together(monkeypatch, together=True)
    counts = []
    for blocks in (2, 5):
        matrices = matrices_of_blocks(blocks)
        optimizer = kind(matrices, lr=0.01, weight_decay=0.1)
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.0), torch.tensor(0.0)
        optimizer.param_groups[0]["lr"] = torch.tensor(0.01)
        set_gradients(matrices, 0)
        optimizer.step()  # it creates the state
        with roofline.Trace() as trace:
            optimizer.step()
        counts.append(len(trace.kernels))
    assert counts[0] == counts[1] <= recorded, counts
