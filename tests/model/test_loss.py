import torch

from mlm_dist.model.loss import masked_cross_entropy


def random_case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    logits, targets = torch.randn(6, 4, 50, dtype=torch.float32), torch.randint(0, 50, (6, 4))
    return logits, targets, (torch.rand(6, 4) < 0.7).float()


def test_the_loss_is_the_sum_of_negative_log_probabilities_where_weights_are_1() -> None:
    logits, targets, weights = random_case()
    expected = 0.0
    for row in range(6):
        for place in range(4):
            probabilities = logits[row, place].double().softmax(-1)
            expected -= weights[row, place].item() * probabilities[targets[row, place]].log().item()
    torch.testing.assert_close(masked_cross_entropy(logits, targets, weights).item(), expected, rtol=1e-6, atol=1e-5)


def test_token_0_is_learned_like_any_other() -> None:
    # MosaicBERT selects predicted places by `labels > 0`: with GPT-2's tokens `!`, whose id is 0, is never learned.
    logits = torch.zeros(1, 1, 10, requires_grad=True)
    masked_cross_entropy(logits, torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1)).backward()
    assert logits.grad is not None
    assert logits.grad[0, 0, 0] < 0


def test_places_of_weight_0_have_no_gradient() -> None:
    logits, targets, weights = random_case()
    logits.requires_grad_()
    masked_cross_entropy(logits, targets, weights).backward()
    assert logits.grad is not None
    assert not logits.grad[weights == 0].any()
    assert logits.grad[weights == 1].abs().sum(-1).all()


def test_parts_of_a_batch_add_up_to_the_whole() -> None:
    logits, targets, weights = random_case()
    whole = masked_cross_entropy(logits, targets, weights)
    parts = [masked_cross_entropy(logits[i : i + 2], targets[i : i + 2], weights[i : i + 2]) for i in (0, 2, 4)]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)


def test_low_precision_logits_are_summed_in_full_precision() -> None:
    logits, targets, weights = random_case()
    half = logits.bfloat16()
    torch.testing.assert_close(
        masked_cross_entropy(half, targets, weights), masked_cross_entropy(half.float(), targets, weights)
    )
