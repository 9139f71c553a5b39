"""The loss: cross-entropy summed over the places that count.

Logits are the largest tensors of a masked language model by far. They live for a part of the places at a time, and
their gradient is formed in their place as soon as they are known, so that nothing of them waits for the backward pass
(Liger kernels, arXiv 2410.10989, and cut cross-entropy, arXiv 2411.09009, do so too).
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mlm_dist.model.encoder import Encoder

# Bytes of the logits that live at a time, and of those of them that are in fp32: on a CPU as many as its cache holds.
LOGITS_BYTES = {"cpu": 1 << 28, "cuda": 1 << 29}
SOFTMAX_BYTES = {"cpu": 1 << 22, "cuda": 1 << 29}

# fp16 has no numbers for the small probabilities of a large vocabulary; so many times larger ones it has.
FP16_SCALE = 2.0**10


class MaskedLoss(nn.Module):
    """An encoder and its loss as one module, which is what exchanges gradients between ranks.

    Args:
        encoder: the model.
        most_hidden: how many places count at most in a batch of the largest size. If it has more, as where rows hide
            different numbers of tokens, the output layer runs on so many alone: a shape that does not change.
    """

    def __init__(self, encoder: Encoder, most_hidden: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.most_hidden = most_hidden

    def forward(
        self, inputs: torch.Tensor, positions: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """Sum of the cross-entropy over predicted places, in nats.

        A sum and not a mean, because the mean is to be taken over the places of the whole global batch, of which this
        may be a part: whoever adds the parts up divides.

        Args:
            inputs: (B, T) token ids.
            positions: (B, K) where tokens are predicted.
            targets: (B, K) the token ids that belong there.
            weights: (B, K), 0 for places that do not count.
        """
        hidden = self.encoder.encode(inputs, positions)
        if self.most_hidden < targets.numel():
            counting = (weights.flatten() > 0).to(torch.uint8).argsort(descending=True, stable=True)[: self.most_hidden]
            hidden = hidden.flatten(0, 1).index_select(0, counting)[None]
            targets, weights = (part.flatten()[None, counting] for part in (targets, weights))
        return masked_cross_entropy(hidden, self.encoder.output, targets, weights)


def masked_cross_entropy(
    hidden: torch.Tensor, output: nn.Linear, targets: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Sum of the cross-entropy over predicted places, in nats, with its gradient.

    Matrix products run in autocast's type, where that is on, the softmax in fp32.

    Args:
        hidden: (B, K, C), what the output layer reads.
        output: the output layer.
        targets: (B, K) token ids.
        weights: (B, K), 0 for places that do not count.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    loss: torch.Tensor = OutputCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden.flatten(0, 1), output.weight, output.bias, targets.flatten(), weights.flatten(), dtype
    )
    return loss


class OutputCrossEntropy(torch.autograd.Function):
    """Output layer and cross-entropy in one, with gradients for hidden states (N, C), weight (V, C) and bias (V)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """Compute the loss and the gradients that belong to it."""
        scale = FP16_SCALE if dtype == torch.float16 else 1.0
        hidden_gradient, bias_gradient = torch.empty_like(hidden), torch.zeros_like(bias)
        weight_gradient = None  # not zeros to add to, which would be one more pass over the largest weight
        low_weight = weight.to(dtype)
        losses = torch.empty_like(weights)
        kind = hidden.device.type
        for part in parts(len(hidden), len(weight) * dtype.itemsize, LOGITS_BYTES[kind]):
            low_hidden = hidden[part].to(dtype)
            logits = low_hidden @ low_weight.t()
            for few in parts(len(logits), len(weight) * 4, SOFTMAX_BYTES[kind]):
                # addmm would write the bias into all of the logits first, one more pass over the largest tensor.
                full = logits[few].to(torch.promote_types(dtype, torch.float32)).add_(bias)
                losses[part][few] = replace_by_gradient(full, targets[part][few])
                bias_gradient.addmv_(full.t(), weights[part][few])
                if dtype != full.dtype:
                    logits[few] = full if scale == 1 else full.mul_(scale)
            hidden_gradient[part] = (logits @ low_weight) * (weights[part, None] / scale)
            if scale == 1:
                product = logits.t() @ (low_hidden * weights[part, None].to(dtype))
            else:  # fp16 has room for a mean over the places, but not for a sum: a frequent token's is too large
                total = weights[part].sum().clamp(min=1)
                mean = logits.t() @ (low_hidden * (weights[part, None] / total)).to(dtype)
                product = mean.to(weight.dtype).mul_(total / scale)
            weight_gradient = product.to(weight.dtype) if weight_gradient is None else weight_gradient.add_(product)
        assert weight_gradient is not None
        ctx.save_for_backward(hidden_gradient, weight_gradient, bias_gradient)
        return torch.dot(losses, weights)

    @staticmethod
    def backward(ctx: Any, loss_gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Scale the gradients. In place, so that this can be asked for only once."""
        gradients = (gradient.mul_(loss_gradient) for gradient in ctx.saved_tensors)
        return *gradients, None, None, None


def replace_by_gradient(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each row of logits (N, V), (N,); the logits become its gradient, softmax less one-hot."""
    targets = targets[:, None]
    at_target, highest = logits.gather(1, targets), logits.amax(1, keepdim=True)
    torch.softmax(logits, 1, out=logits)
    # The highest logit's probability is at least 1 / V, so that its logarithm is exact however small the target's is.
    losses = highest - logits.amax(1, keepdim=True).log() - at_target
    logits.scatter_add_(1, targets, torch.full_like(at_target, -1))
    return losses[:, 0]


def parts(count: int, row_bytes: int, largest: int) -> Iterator[slice]:
    """Cut `count` rows of so many bytes each into parts of at most `largest` bytes, or of one row."""
    size = max(1, largest // row_bytes)
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


@torch.no_grad()
def loss_and_hits(
    hidden: torch.Tensor, output: nn.Linear, targets: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The loss without a gradient, and how many targets are the likeliest token, and one of the five likeliest.

    Of tokens that are equally likely the target comes last, so that a model that knows nothing has no hits.

    Args:
        hidden: (B, K, C), what the output layer reads.
        output: the output layer.
        targets: (B, K) token ids.
        weights: (B, K), 0 for places that do not count.
    """
    counting = weights.flatten().nonzero()[:, 0]  # of rows that hide different numbers of tokens, about half
    hidden, targets, weights = hidden.flatten(0, 1)[counting], targets.flatten()[counting], weights.flatten()[counting]
    loss, top_1, top_5 = torch.zeros(3, dtype=torch.float64, device=hidden.device)
    for part in parts(len(hidden), len(output.weight) * 4, LOGITS_BYTES[hidden.device.type]):
        logits = output(hidden[part]).float()
        loss += torch.dot(F.cross_entropy(logits, targets[part], reduction="none"), weights[part])
        rank = (~(logits < logits.gather(1, targets[part, None]))).sum(1)  # a NaN is not below anything either
        top_1 += torch.dot((rank <= 1).float(), weights[part])
        top_5 += torch.dot((rank <= 5).float(), weights[part])
    return loss, top_1, top_5
