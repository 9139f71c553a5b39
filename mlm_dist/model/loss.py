"""The loss: cross-entropy summed over the predicted tokens, each with its loss weight.

Which tokens are predicted, and with which weight, is decided in data/masking.py.

Logits are by far the largest tensors of a masked language model. They are computed for one chunk of predictions at a
time and overwritten by their gradient at once, so that they are not kept for the backward pass (as in the Liger
kernels, arXiv 2410.10989, and in cut cross-entropy, arXiv 2411.09009). On a GPU, those of the last chunk are.

Shapes: B rows, T tokens per row, K slots per row, C channels, V entries of the vocabulary, N predictions.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mlm_dist.model import kernels
from mlm_dist.model.masked_model import MaskedModel
from mlm_dist.model.soft_cap import soft_cap, soft_cap_

# Maximum bytes of the logits of a chunk, and of the part of them that is in fp32; on a CPU, that part fits the cache.
LOGITS_BYTES = {"cpu": 1 << 28, "cuda": 1 << 30}
SOFTMAX_BYTES = {"cpu": 1 << 22, "cuda": 1 << 29}

# The small probabilities of a large vocabulary underflow in fp16. Gradients are scaled by this.
FP16_SCALE = 2.0**10


class MaskedLoss(nn.Module):
    """An encoder and its loss as one module, which DDP wraps.

    Args:
        encoder: the model.
        max_masked: upper bound on the predictions with a loss weight above 0 in a micro-batch. If a micro-batch has
            more slots, only this many reach the output layer, so that the shape is static.
    """

    def __init__(self, encoder: MaskedModel, max_masked: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.max_masked = max_masked

    def forward(
        self,
        inputs: torch.Tensor,
        positions: torch.Tensor,
        targets: torch.Tensor,
        loss_weights: torch.Tensor,
        documents: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Sum of the weighted cross-entropy over all predictions, in nats.

        It is not a mean, because the mean is over the masked tokens of the global batch, and this may be a part of it.

        Args:
            inputs: (B, T) token ids.
            positions: (B, K) positions at which tokens are predicted.
            targets: (B, K) original token ids at these positions.
            loss_weights: (B, K), 0 for unused slots.
            documents: (B, T), the document of each token, if documents are isolated.
        """
        hidden, weight = self.encoder.encode_for_loss(inputs, positions, documents)  # (B, K, C), (V, C)
        if self.max_masked < targets.numel():
            used = (loss_weights.flatten() > 0).to(torch.uint8).argsort(descending=True, stable=True)[: self.max_masked]
            hidden = hidden.flatten(0, 1).index_select(0, used)[None]  # (1, max_masked, C)
            targets, loss_weights = (part.flatten()[None, used] for part in (targets, loss_weights))
        softcap = self.encoder.config.logit_softcap
        return masked_cross_entropy(hidden, self.encoder.output, targets, loss_weights, softcap, weight)


def masked_cross_entropy(
    hidden: torch.Tensor,
    output: nn.Linear,
    targets: torch.Tensor,
    loss_weights: torch.Tensor,
    softcap: float | None = None,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sum of the weighted cross-entropy over all predictions, in nats, with its gradient.

    Matrix products run in autocast's dtype, if autocast is on, and the softmax in fp32.

    Args:
        hidden: (B, K, C), the input of the output layer.
        output: the output layer.
        targets: (B, K) token ids.
        loss_weights: (B, K), 0 for unused slots.
        softcap: the soft cap of the logits.
        weight: in place of that of the output layer.
    """
    weight = output.weight if weight is None else weight
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    function = OutputCrossEntropyOnGPU if kernels.is_on("loss", hidden) else OutputCrossEntropy
    loss: torch.Tensor = function.apply(  # type: ignore[no-untyped-call]
        hidden.flatten(0, 1), weight, output.bias, targets.flatten(), loss_weights.flatten(), dtype, softcap
    )
    return loss


class OutputCrossEntropy(torch.autograd.Function):
    """Output layer and cross-entropy in one function of hidden states (N, C), weight (V, C) and bias (V)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        targets: torch.Tensor,
        loss_weights: torch.Tensor,
        dtype: torch.dtype,
        softcap: float | None,
    ) -> torch.Tensor:
        """Compute the loss and its gradients."""
        losses, *saved = gradients(hidden, weight, bias, targets, loss_weights, dtype, softcap)
        ctx.save_for_backward(*saved)
        return torch.dot(losses, loss_weights)

    @staticmethod
    def backward(ctx: Any, loss_gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Scale the gradients in place, so this can run only once."""
        scaled = (gradient.mul_(loss_gradient) for gradient in ctx.saved_tensors)
        return *scaled, None, None, None, None


Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def gradients(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    targets: torch.Tensor,
    loss_weights: torch.Tensor,
    dtype: torch.dtype,
    softcap: float | None = None,
) -> Gradients:
    """Compute the losses (N,) without their weights, and the gradients by hidden states, weight and bias."""
    scale = FP16_SCALE if dtype == torch.float16 else 1.0
    hidden_gradient, bias_gradient = torch.empty_like(hidden), torch.zeros_like(bias)
    weight_gradient = None  # starting from zeros would cost one more pass over the largest parameter
    low_weight = weight.to(dtype)  # (V, C)
    losses = torch.empty_like(loss_weights)  # (N,)
    kind = hidden.device.type
    for chunk in chunks(len(hidden), len(weight) * dtype.itemsize, LOGITS_BYTES[kind]):
        low_hidden = hidden[chunk].to(dtype)  # (n, C)
        logits = low_hidden @ low_weight.t()  # (n, V)
        for part in chunks(len(logits), len(weight) * 4, SOFTMAX_BYTES[kind]):
            # addmm would first write the bias into all logits, one more pass over the largest tensor.
            full = logits[part].to(torch.promote_types(dtype, torch.float32)).add_(bias)
            losses[chunk][part] = replace_by_gradient(full, targets[chunk][part], softcap)
            bias_gradient.addmv_(full.t(), loss_weights[chunk][part])
            if dtype != full.dtype:
                logits[part] = full if scale == 1 else full.mul_(scale)
        hidden_gradient[chunk] = (logits @ low_weight) * (loss_weights[chunk, None] / scale)
        if scale == 1:
            product = logits.t() @ (low_hidden * loss_weights[chunk, None].to(dtype))  # (V, C)
        else:  # a mean over the predictions fits fp16, but the sum overflows for a frequent token
            total = loss_weights[chunk].sum().clamp(min=1)
            mean = logits.t() @ (low_hidden * (loss_weights[chunk, None] / total)).to(dtype)
            product = mean.to(weight.dtype).mul_(total / scale)
        weight_gradient = product.to(weight.dtype) if weight_gradient is None else weight_gradient.add_(product)
    assert weight_gradient is not None
    return losses, hidden_gradient, weight_gradient, bias_gradient


class OutputCrossEntropyOnGPU(torch.autograd.Function):
    """What `OutputCrossEntropy` computes, with the kernels and a padded vocabulary of P entries.

    The products of the last chunk wait for the backward pass: there, the gradient of the loss is a factor of their
    rows, instead of one more pass over the gradient of the weight.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        targets: torch.Tensor,
        loss_weights: torch.Tensor,
        dtype: torch.dtype,
        softcap: float | None,
    ) -> torch.Tensor:
        """Compute the loss, the gradient by hidden states, and those by weight and bias for all but the last chunk."""
        from mlm_dist.model import loss_kernel  # noqa: PLC0415 (only where there is Triton)

        scale = FP16_SCALE if dtype == torch.float16 else 1.0
        low_weight = loss_kernel.pad_vocabulary(weight, dtype)  # (P, C)
        losses, hidden_gradients = [], []
        earlier: list[torch.Tensor] = []
        *others, last = chunks(len(hidden), len(low_weight) * dtype.itemsize, LOGITS_BYTES["cuda"])
        for chunk in (*others, last):
            low_hidden = hidden[chunk].to(dtype)  # (n, C)
            logits = low_hidden @ low_weight.t()  # (n, P)
            losses.append(loss_kernel.replace_by_gradient(logits, bias, targets[chunk], scale, softcap))
            hidden_gradients.append((logits @ low_weight).to(hidden.dtype))
            if chunk != last:
                products = output_gradients(logits, low_hidden, loss_weights[chunk])
                earlier = [a.add_(b) for a, b in zip(earlier, products, strict=True)] if earlier else [*products]
        ctx.save_for_backward(joined(hidden_gradients), loss_weights, logits, low_hidden, *earlier)
        ctx.entries, ctx.scale = len(weight), scale
        return torch.dot(joined(losses), loss_weights)

    @staticmethod
    def backward(ctx: Any, loss_gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Add the products of the last chunk. The gradient by hidden states is scaled in place, so this runs once."""
        hidden_gradient, loss_weights, logits, low_hidden, *earlier = ctx.saved_tensors
        factor = loss_gradient if ctx.scale == 1 else loss_gradient / ctx.scale
        row_factors, count = loss_weights * factor, len(logits)
        if ctx.scale == 1:
            totals = output_gradients(logits, low_hidden, row_factors[-count:])
            for total, part in zip(totals, earlier, strict=False):
                total.addcmul_(part, factor)
        else:  # rows in fp16 times the gradient of the loss, which has the factor of the scaler, would overflow
            totals = output_gradients(logits, low_hidden, loss_weights[-count:])
            for total, part in zip(totals, earlier, strict=False):
                total.add_(part)
            for total in totals:
                total.mul_(factor)
        of_weight, of_bias = (total[: ctx.entries] for total in totals)
        return hidden_gradient.mul_(row_factors[:, None]), of_weight, of_bias, *4 * (None,)


def joined(parts: list[torch.Tensor]) -> torch.Tensor:
    """Tensors one after the other; one alone is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def output_gradients(
    logits: torch.Tensor, low_hidden: torch.Tensor, row_weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients by weight (P, C) and bias (P,), from those by logits (n, P), of hidden states (n, C)."""
    from mlm_dist.model import loss_kernel  # noqa: PLC0415 (only where there is Triton)

    weighted = torch.mul(low_hidden, row_weights[:, None], out=torch.empty_like(low_hidden))  # casts too
    return loss_kernel.product(logits.t(), weighted), loss_kernel.column_sums(logits, row_weights)


def replace_by_gradient(logits: torch.Tensor, targets: torch.Tensor, softcap: float | None = None) -> torch.Tensor:
    """Cross-entropy of each row of logits: (N, V), (N,) -> (N,). The logits become its gradient.

    This is softmax - one-hot, times the derivative of the soft cap, if there is one.
    """
    slope = None if softcap is None else soft_cap_(logits, softcap)
    targets = targets[:, None]  # (N, 1)
    at_target, highest = logits.gather(1, targets), logits.amax(1, keepdim=True)
    torch.softmax(logits, 1, out=logits)
    # The largest probability is at least 1 / V, so its logarithm is exact, even if that of the target underflows.
    losses = highest - logits.amax(1, keepdim=True).log() - at_target
    logits.scatter_add_(1, targets, torch.full_like(at_target, -1))
    if slope is not None:
        logits.mul_(slope)
    return losses[:, 0]


def chunks(count: int, row_bytes: int, max_bytes: int) -> Iterator[slice]:
    """Split `count` rows of `row_bytes` bytes into chunks of at most `max_bytes` bytes, or of one row."""
    size = max(1, max_bytes // row_bytes)
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


@torch.no_grad()
def loss_and_hits(
    hidden: torch.Tensor,
    output: nn.Linear,
    targets: torch.Tensor,
    loss_weights: torch.Tensor,
    softcap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The loss without a gradient, and the weighted counts of targets that are the top token and in the top five.

    The target ranks last among equally likely tokens, so that a model that has learned nothing has no hits.

    Args:
        hidden: (B, K, C), the input of the output layer.
        output: the output layer.
        targets: (B, K) token ids.
        loss_weights: (B, K), 0 for unused slots.
        softcap: the soft cap of the logits.
    """
    used = loss_weights.flatten().nonzero()[:, 0]  # with sampled mask rates, about half of the slots
    hidden, targets, loss_weights = hidden.flatten(0, 1)[used], targets.flatten()[used], loss_weights.flatten()[used]
    loss, top_1, top_5 = torch.zeros(3, dtype=torch.float64, device=hidden.device)
    for chunk in chunks(len(hidden), len(output.weight) * 4, LOGITS_BYTES[hidden.device.type]):
        logits = soft_cap(output(hidden[chunk]).float(), softcap)  # (n, V)
        loss += torch.dot(F.cross_entropy(logits, targets[chunk], reduction="none"), loss_weights[chunk])
        rank = (~(logits < logits.gather(1, targets[chunk, None]))).sum(1)  # NaN is not below anything either
        top_1 += torch.dot((rank <= 1).float(), loss_weights[chunk])
        top_5 += torch.dot((rank <= 5).float(), loss_weights[chunk])
    return loss, top_1, top_5
