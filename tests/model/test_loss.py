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


def random_case(rows: int = 6, places: int = 4, dtype: torch.dtype = torch.float64) -> Case:
    output = nn.Linear(WIDTH, VOCABULARY, dtype=dtype)
    hidden = torch.randn(rows, places, WIDTH, dtype=dtype, requires_grad=True)
    return hidden, output, torch.randint(0, VOCABULARY, (rows, places)), (torch.rand(rows, places) < 0.7).to(dtype)


def plain(hidden: torch.Tensor, output: nn.Linear, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The definition, on whole logits."""
    losses = F.cross_entropy(output(hidden).flatten(0, 1), targets.flatten(), reduction="none")
    return (losses * weights.flatten()).sum()


def in_fp64(case: Case) -> Case:
    hidden, output, targets, weights = case
    copy = nn.Linear(WIDTH, VOCABULARY, dtype=torch.float64)
    copy.load_state_dict(output.state_dict())
    return hidden.detach().double().requires_grad_(), copy, targets, weights.double()


def gradients(result: torch.Tensor, case: Case) -> list[torch.Tensor]:
    hidden, output, _, _ = case
    return list(torch.autograd.grad(result, [hidden, output.weight, output.bias]))


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual.double() - expected).norm() / expected.norm()).item()


@pytest.fixture(params=["in one part", "in many parts"])
def size_of_parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of all places at a time, or of 7 in fp32, and the softmax of 3."""
    if request.param == "in many parts":
        monkeypatch.setitem(loss.LOGITS_BYTES, "cpu", 7 * 4 * VOCABULARY)
        monkeypatch.setitem(loss.SOFTMAX_BYTES, "cpu", 3 * 4 * VOCABULARY)


@pytest.mark.usefixtures("size_of_parts")
def test_loss_and_gradients_are_those_of_the_definition() -> None:
    case = random_case()
    expected = plain(*case)
    torch.testing.assert_close(masked_cross_entropy(*case), expected)
    for actual, plain_one in zip(
        gradients(masked_cross_entropy(*case) * 3, case), gradients(expected * 3, case), strict=True
    ):
        torch.testing.assert_close(actual, plain_one)


@pytest.mark.usefixtures("size_of_parts")
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 1.5e-2), (torch.float16, 2e-3)], ids=str
)
def test_low_precision_is_as_near_to_fp64_as_its_numbers_are(dtype: torch.dtype, bound: float) -> None:
    case = random_case(40, 5, torch.float32)
    exact = in_fp64(case)
    expected = plain(*exact)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        actual = masked_cross_entropy(*case)
    assert actual.dtype == torch.float32
    assert actual.item() == pytest.approx(expected.item(), rel=bound / 10)
    for ours, theirs in zip(gradients(actual, case), gradients(expected, exact), strict=True):
        assert ours.dtype == torch.float32
        assert relative_error(ours, theirs) < bound


def test_fp16_keeps_the_gradients_of_unlikely_tokens() -> None:
    # With a vocabulary of GPT-2's size most probabilities are too small for fp16.
    output = nn.Linear(8, 50000)
    nn.init.normal_(output.weight, std=0.02)
    hidden, targets, weights = torch.randn(2, 2, 8), torch.zeros(2, 2, dtype=torch.long), torch.ones(2, 2)
    expected = torch.autograd.grad(plain(hidden, output, targets, weights), output.weight)[0]
    with torch.autocast("cpu", dtype=torch.float16):
        result = masked_cross_entropy(hidden, output, targets, weights)
    unlikely = slice(1, None)
    actual = torch.autograd.grad(result, output.weight)[0]
    assert relative_error(actual[unlikely], expected[unlikely].double()) < 8e-4  # three times as much unscaled


def test_a_target_without_any_probability_has_a_finite_loss() -> None:
    hidden, output, targets, weights = random_case(dtype=torch.float32)
    with torch.no_grad():
        output.bias[0] = -1000.0
    result = masked_cross_entropy(hidden, output, torch.zeros_like(targets), weights)
    assert result.item() == pytest.approx(plain(hidden, output, torch.zeros_like(targets), weights).item(), rel=1e-6)
    assert result.item() > 900


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_hidden_states_that_are_no_numbers_give_a_loss_that_is_none(poison: float) -> None:
    hidden, output, targets, _ = random_case(dtype=torch.float32)
    with torch.no_grad():
        hidden[2, 1, 0] = poison
    assert not masked_cross_entropy(hidden, output, targets, torch.ones(6, 4)).isfinite()


def test_token_0_is_learned_like_any_other() -> None:
    # MosaicBERT selects predicted places by `labels > 0`: with GPT-2's tokens `!`, whose id is 0, is never learned.
    hidden, output, _, _ = random_case(1, 1)
    zero = torch.zeros(1, 1, dtype=torch.long)
    masked_cross_entropy(hidden, output, zero, torch.ones(1, 1, dtype=torch.float64)).backward()
    assert output.bias.grad is not None
    assert output.bias.grad[0] < 0


@pytest.mark.usefixtures("size_of_parts")
def test_places_of_weight_0_have_no_gradient() -> None:
    case = random_case()
    hidden, _, _, weights = case
    masked_cross_entropy(*case).backward()
    assert hidden.grad is not None
    assert not hidden.grad[weights == 0].any()
    assert hidden.grad[weights == 1].abs().sum(-1).all()


def test_parts_of_a_batch_add_up_to_the_whole() -> None:
    hidden, output, targets, weights = random_case()
    whole = masked_cross_entropy(hidden, output, targets, weights)
    cuts = [slice(start, start + 2) for start in (0, 2, 4)]
    parts = [masked_cross_entropy(hidden[cut], output, targets[cut], weights[cut]) for cut in cuts]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)


@pytest.mark.usefixtures("size_of_parts")
def test_the_loss_without_a_gradient_is_the_same_and_hits_are_counted() -> None:
    hidden, output, targets, weights = random_case(dtype=torch.float32)
    targets[::2] = output(hidden).argmax(-1)[::2]
    likeliest = output(hidden).topk(6).indices
    targets[1], targets[3], targets[5] = likeliest[1, :, 1], likeliest[3, :, 4], likeliest[5, :, 5]
    weights[1::2] = 1
    total, top_1, top_5 = loss_and_hits(hidden, output, targets, weights)
    assert total.item() == pytest.approx(plain(hidden, output, targets, weights).item(), rel=1e-6)
    hits = (likeliest[..., :5] == targets[..., None]) * weights[..., None]
    assert top_1.item() == hits[..., 0].sum().item() > 0
    assert top_5.item() == hits.sum().item() > top_1.item()


def test_a_model_that_knows_nothing_has_no_hits() -> None:
    _, output, targets, weights = random_case(dtype=torch.float32)
    for state in (torch.zeros(6, 4, WIDTH), torch.full((6, 4, WIDTH), float("nan"))):
        nn.init.zeros_(output.bias)
        _, top_1, top_5 = loss_and_hits(state, output, targets, weights)
        assert top_1.item() == top_5.item() == 0


def test_the_module_is_the_encoder_and_its_loss() -> None:
    encoder = Encoder(ModelConfig(vocab_size=VOCABULARY, block_size=12, embedding_dim=WIDTH, heads=3, blocks=1))
    inputs, positions = torch.randint(0, VOCABULARY, (5, 12)), torch.randint(0, 12, (5, 3))
    targets, weights = torch.randint(0, VOCABULARY, (5, 3)), torch.ones(5, 3)
    losses = F.cross_entropy(encoder(inputs, positions).flatten(0, 1), targets.flatten(), reduction="sum")
    torch.testing.assert_close(MaskedLoss(encoder, targets.numel())(inputs, positions, targets, weights), losses)


@pytest.mark.parametrize("max_masked", [11, 12, 14])
def test_only_places_that_count_reach_the_output_layer_and_nothing_else_changes(max_masked: int) -> None:
    torch.manual_seed(4)
    shape = ModelConfig(vocab_size=VOCABULARY, block_size=12, embedding_dim=WIDTH, heads=3, blocks=2)
    encoder = Encoder(shape).double()
    inputs, targets = (torch.randint(0, VOCABULARY, (5, width)) for width in (12, 3))
    positions = torch.rand(5, 12).argsort(1)[:, :3]
    weights = torch.full((15,), 1.5, dtype=torch.float64)
    weights[torch.tensor([0, 4, 9, 14])] = 0  # 11 of 15 count
    rows = {}
    for most in (15, max_masked):
        encoder.zero_grad()
        module = MaskedLoss(encoder, most)
        loss = module(inputs, positions, targets, weights.view(5, 3))
        loss.backward()
        rows[most] = [loss.detach(), *(weight.grad.clone() for weight in encoder.parameters())]  # type: ignore[union-attr]
    for whole, packed in zip(rows[15], rows[max_masked], strict=True):
        torch.testing.assert_close(packed, whole, rtol=1e-12, atol=1e-14)


def test_the_output_layer_runs_on_as_many_places_as_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(ModelConfig(vocab_size=VOCABULARY, block_size=12, embedding_dim=WIDTH, heads=3, blocks=1))
    shapes = []

    def record(hidden: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(hidden.shape))
        return hidden.sum()

    monkeypatch.setattr("mlm_dist.model.loss.masked_cross_entropy", record)
    inputs, places = torch.zeros(5, 12, dtype=torch.int64), torch.zeros(5, 3, dtype=torch.int64)
    MaskedLoss(encoder, 7)(inputs, places, places, torch.zeros(5, 3))
    MaskedLoss(encoder, 15)(inputs, places, places, torch.ones(5, 3))
    assert shapes == [(1, 7, WIDTH), (5, 3, WIDTH)]


@pytest.mark.parametrize("step_bytes", [1 << 28, 1 << 20], ids=["in one part", "in parts"])
def test_a_token_that_is_often_to_be_predicted_does_not_overflow_in_fp16(
    step_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # At the start of a run all masked places look alike, and the steps of the recipe have 2560 of them.
    monkeypatch.setitem(loss.LOGITS_BYTES, "cpu", step_bytes)
    torch.manual_seed(9)
    output = nn.Linear(64, 500)
    hidden = 3 * torch.randn(64) + 0.3 * torch.randn(256, 10, 64)
    targets = torch.where(torch.rand(256, 10) < 0.1, 7, torch.randint(0, 500, (256, 10)))
    gradients = []
    for on in (False, True):
        output.zero_grad()
        with torch.autocast("cpu", torch.float16, enabled=on):
            masked_cross_entropy(hidden, output, targets, torch.ones(256, 10)).backward()
        gradients.append(output.weight.grad)
    exact, low = gradients
    assert exact is not None and low is not None
    assert (low - exact).norm() < 5e-3 * exact.norm()


@pytest.mark.parametrize("weight", [1.0, 64.0, 512.0])
def test_large_weights_do_not_overflow_in_fp16(weight: float) -> None:
    torch.manual_seed(9)
    output = nn.Linear(64, 500)
    hidden = torch.randn(1, 20, 64)
    targets, weights = torch.randint(0, 500, (1, 20)), torch.ones(1, 20)
    weights[0, 3] = weight
    gradients = []
    for on in (False, True):
        output.zero_grad()
        with torch.autocast("cpu", torch.float16, enabled=on):
            masked_cross_entropy(hidden, output, targets, weights).backward()
        gradients.append(output.weight.grad)
    exact, low = gradients
    assert exact is not None and low is not None
    assert (low - exact).norm() < 5e-3 * exact.norm()
