import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mlm_dist.config import ModelConfig
from mlm_dist.model import loss
from mlm_dist.model.encoder import Encoder
from mlm_dist.model.loss import MaskedLoss, loss_and_hits, masked_cross_entropy

WIDTH, VOCABULARY = 24, 101

Case = tuple[torch.Tensor, nn.Linear, torch.Tensor, torch.Tensor]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def random_case(rows: int = 6, slots: int = 4, dtype: torch.dtype = torch.float64) -> Case:
    output = nn.Linear(WIDTH, VOCABULARY, dtype=dtype)
    hidden = torch.randn(rows, slots, WIDTH, dtype=dtype, requires_grad=True)
    return hidden, output, torch.randint(0, VOCABULARY, (rows, slots)), (torch.rand(rows, slots) < 0.7).to(dtype)


def definition(
    hidden: torch.Tensor, output: nn.Linear, targets: torch.Tensor, loss_weights: torch.Tensor
) -> torch.Tensor:
    """The definition of the loss, with all logits at once."""
    losses = F.cross_entropy(output(hidden).flatten(0, 1), targets.flatten(), reduction="none")
    return (losses * loss_weights.flatten()).sum()


def to_fp64(case: Case) -> Case:
    hidden, output, targets, loss_weights = case
    copy = nn.Linear(WIDTH, VOCABULARY, dtype=torch.float64)
    copy.load_state_dict(output.state_dict())
    return hidden.detach().double().requires_grad_(), copy, targets, loss_weights.double()


def gradients(result: torch.Tensor, case: Case) -> list[torch.Tensor]:
    hidden, output, _, _ = case
    return list(torch.autograd.grad(result, [hidden, output.weight, output.bias]))


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.double() - expected).norm() / expected.norm())


@pytest.fixture(params=["one chunk", "many chunks"])
def chunk_sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One chunk for all predictions, or chunks of 7 predictions for the logits and of 3 for the softmax."""
    if request.param == "many chunks":
        monkeypatch.setitem(loss.LOGITS_BYTES, "cpu", 7 * 4 * VOCABULARY)
        monkeypatch.setitem(loss.SOFTMAX_BYTES, "cpu", 3 * 4 * VOCABULARY)


@pytest.mark.usefixtures("chunk_sizes")
def test_loss_and_gradients_equal_the_definition() -> None:
    case = random_case()
    expected = definition(*case)
    torch.testing.assert_close(masked_cross_entropy(*case), expected)
    actual = gradients(masked_cross_entropy(*case) * 3, case)
    for gradient, expected_gradient in zip(actual, gradients(expected * 3, case), strict=True):
        torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.usefixtures("chunk_sizes")
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 1.5e-2), (torch.float16, 2e-3)], ids=str
)
def test_loss_and_gradients_are_as_close_to_fp64_as_the_precision_allows(dtype: torch.dtype, bound: float) -> None:
    case = random_case(40, 5, torch.float32)
    exact = to_fp64(case)
    expected = definition(*exact)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        actual = masked_cross_entropy(*case)
    assert actual.dtype == torch.float32
    assert actual.item() == pytest.approx(expected.item(), rel=bound / 10)
    for gradient, expected_gradient in zip(gradients(actual, case), gradients(expected, exact), strict=True):
        assert gradient.dtype == torch.float32
        assert relative_error(gradient, expected_gradient) < bound


def test_fp16_keeps_the_gradients_of_unlikely_tokens() -> None:
    # With a vocabulary of the size of GPT-2's, most probabilities are too small for fp16.
    output = nn.Linear(8, 50000)
    nn.init.normal_(output.weight, std=0.02)
    hidden, targets, loss_weights = torch.randn(2, 2, 8), torch.zeros(2, 2, dtype=torch.long), torch.ones(2, 2)
    expected = torch.autograd.grad(definition(hidden, output, targets, loss_weights), output.weight)[0]
    with torch.autocast("cpu", dtype=torch.float16):
        result = masked_cross_entropy(hidden, output, targets, loss_weights)
    unlikely = slice(1, None)
    actual = torch.autograd.grad(result, output.weight)[0]
    assert relative_error(actual[unlikely], expected[unlikely].double()) < 8e-4  # three times as large without scaling


def test_a_target_of_probability_0_has_a_finite_loss() -> None:
    hidden, output, targets, loss_weights = random_case(dtype=torch.float32)
    with torch.no_grad():
        output.bias[0] = -1000.0
    result = masked_cross_entropy(hidden, output, torch.zeros_like(targets), loss_weights)
    assert result.item() == pytest.approx(
        definition(hidden, output, torch.zeros_like(targets), loss_weights).item(), rel=1e-6
    )
    assert result.item() > 900


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_hidden_states_that_are_not_finite_give_a_loss_that_is_not_finite(value: float) -> None:
    hidden, output, targets, _ = random_case(dtype=torch.float32)
    with torch.no_grad():
        hidden[2, 1, 0] = value
    assert not masked_cross_entropy(hidden, output, targets, torch.ones(6, 4)).isfinite()


def test_token_0_is_learned_like_any_other() -> None:
    # MosaicBERT selects masked tokens by `labels > 0`, so that GPT-2's `!`, whose id is 0, is never learned.
    hidden, output, _, _ = random_case(1, 1)
    zero = torch.zeros(1, 1, dtype=torch.long)
    masked_cross_entropy(hidden, output, zero, torch.ones(1, 1, dtype=torch.float64)).backward()
    assert output.bias.grad is not None
    assert output.bias.grad[0] < 0


@pytest.mark.usefixtures("chunk_sizes")
def test_unused_slots_have_no_gradient() -> None:
    case = random_case()
    hidden, _, _, loss_weights = case
    masked_cross_entropy(*case).backward()
    assert hidden.grad is not None
    assert not hidden.grad[loss_weights == 0].any()
    assert hidden.grad[loss_weights == 1].abs().sum(-1).all()


def test_the_losses_of_micro_batches_add_up_to_that_of_the_batch() -> None:
    hidden, output, targets, loss_weights = random_case()
    whole = masked_cross_entropy(hidden, output, targets, loss_weights)
    cuts = [slice(start, start + 2) for start in (0, 2, 4)]
    parts = [masked_cross_entropy(hidden[cut], output, targets[cut], loss_weights[cut]) for cut in cuts]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)


@pytest.mark.usefixtures("chunk_sizes")
def test_loss_and_hits_has_the_same_loss_and_counts_hits() -> None:
    hidden, output, targets, loss_weights = random_case(dtype=torch.float32)
    targets[::2] = output(hidden).argmax(-1)[::2]
    top_tokens = output(hidden).topk(6).indices
    targets[1], targets[3], targets[5] = top_tokens[1, :, 1], top_tokens[3, :, 4], top_tokens[5, :, 5]
    loss_weights[1::2] = 1
    total, top_1, top_5 = loss_and_hits(hidden, output, targets, loss_weights)
    assert total.item() == pytest.approx(definition(hidden, output, targets, loss_weights).item(), rel=1e-6)
    hits = (top_tokens[..., :5] == targets[..., None]) * loss_weights[..., None]
    assert top_1.item() == hits[..., 0].sum().item() > 0
    assert top_5.item() == hits.sum().item() > top_1.item()


def test_a_model_that_has_learned_nothing_has_no_hits() -> None:
    _, output, targets, loss_weights = random_case(dtype=torch.float32)
    for state in (torch.zeros(6, 4, WIDTH), torch.full((6, 4, WIDTH), float("nan"))):
        nn.init.zeros_(output.bias)
        _, top_1, top_5 = loss_and_hits(state, output, targets, loss_weights)
        assert top_1.item() == top_5.item() == 0


def test_the_module_returns_the_summed_loss_of_the_encoder() -> None:
    encoder = Encoder(ModelConfig(vocab_size=VOCABULARY, block_size=12, embedding_dim=WIDTH, heads=3, blocks=1))
    inputs, positions = torch.randint(0, VOCABULARY, (5, 12)), torch.randint(0, 12, (5, 3))
    targets, loss_weights = torch.randint(0, VOCABULARY, (5, 3)), torch.ones(5, 3)
    losses = F.cross_entropy(encoder(inputs, positions).flatten(0, 1), targets.flatten(), reduction="sum")
    torch.testing.assert_close(MaskedLoss(encoder, targets.numel())(inputs, positions, targets, loss_weights), losses)


@pytest.mark.parametrize("max_masked", [11, 12, 14])
def test_leaving_out_unused_slots_changes_neither_loss_nor_gradients(max_masked: int) -> None:
    torch.manual_seed(4)
    shape = ModelConfig(vocab_size=VOCABULARY, block_size=12, embedding_dim=WIDTH, heads=3, blocks=2)
    encoder = Encoder(shape).double()
    inputs, targets = (torch.randint(0, VOCABULARY, (5, width)) for width in (12, 3))
    positions = torch.rand(5, 12).argsort(1)[:, :3]
    loss_weights = torch.full((15,), 1.5, dtype=torch.float64)
    loss_weights[torch.tensor([0, 4, 9, 14])] = 0  # 11 of 15 slots are used
    results = {}
    for limit in (15, max_masked):
        loss = MaskedLoss(encoder, limit)(inputs, positions, targets, loss_weights.view(5, 3))
        results[limit] = [loss.detach(), *torch.autograd.grad(loss, list(encoder.parameters()))]
    for expected, actual in zip(results[15], results[max_masked], strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-14)


def test_at_most_max_masked_slots_reach_the_output_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(ModelConfig(vocab_size=VOCABULARY, block_size=12, embedding_dim=WIDTH, heads=3, blocks=1))
    shapes = []

    def record(hidden: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(hidden.shape))
        return hidden.sum()

    monkeypatch.setattr("mlm_dist.model.loss.masked_cross_entropy", record)
    inputs, positions = torch.zeros(5, 12, dtype=torch.int64), torch.zeros(5, 3, dtype=torch.int64)
    MaskedLoss(encoder, 7)(inputs, positions, positions, torch.zeros(5, 3))
    MaskedLoss(encoder, 15)(inputs, positions, positions, torch.ones(5, 3))
    assert shapes == [(1, 7, WIDTH), (5, 3, WIDTH)]


@pytest.mark.parametrize("logits_bytes", [1 << 28, 1 << 20], ids=["one chunk", "many chunks"])
def test_the_gradient_of_a_frequent_token_does_not_overflow_in_fp16(
    logits_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # At the start of a run all hidden states are similar. A step of the default config has 2560 slots.
    monkeypatch.setitem(loss.LOGITS_BYTES, "cpu", logits_bytes)
    torch.manual_seed(9)
    output = nn.Linear(64, 500)
    hidden = 3 * torch.randn(64) + 0.3 * torch.randn(256, 10, 64)
    targets = torch.where(torch.rand(256, 10) < 0.1, 7, torch.randint(0, 500, (256, 10)))
    gradients = []
    for enabled in (False, True):
        output.zero_grad()
        with torch.autocast("cpu", torch.float16, enabled=enabled):
            masked_cross_entropy(hidden, output, targets, torch.ones(256, 10)).backward()
        gradients.append(output.weight.grad)
    expected, actual = gradients
    assert expected is not None and actual is not None
    assert (actual - expected).norm() < 5e-3 * expected.norm()


@pytest.mark.parametrize("loss_weight", [1.0, 64.0, 512.0])
def test_large_loss_weights_do_not_overflow_in_fp16(loss_weight: float) -> None:
    torch.manual_seed(9)
    output = nn.Linear(64, 500)
    hidden = torch.randn(1, 20, 64)
    targets, loss_weights = torch.randint(0, 500, (1, 20)), torch.ones(1, 20)
    loss_weights[0, 3] = loss_weight
    gradients = []
    for enabled in (False, True):
        output.zero_grad()
        with torch.autocast("cpu", torch.float16, enabled=enabled):
            masked_cross_entropy(hidden, output, targets, loss_weights).backward()
        gradients.append(output.weight.grad)
    expected, actual = gradients
    assert expected is not None and actual is not None
    assert (actual - expected).norm() < 5e-3 * expected.norm()
