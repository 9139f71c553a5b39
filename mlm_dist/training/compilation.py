"""Compiling the encoder and its loss with torch's inductor."""

import torch

from mlm_dist.config import Config
from mlm_dist.data.masking import MaskedBatch
from mlm_dist.errors import UserError
from mlm_dist.model.flops import step_flops
from mlm_dist.model.loss import MaskedLoss
from mlm_dist.output import warn
from mlm_dist.precision import autocast

BACKEND = "inductor"

# FLOPs of one rank from which compiling pays for the minute that it takes. By the estimates of launch/roofline.py, it
# saves 0.13 ms (7 %) of the recipe's 0.47 TFLOP, a minute in 2e17 FLOPs; and 0.7 ms (1.5 %) of the 20 TFLOP of a
# micro-batch of BERT-base, a minute in 1.7e18. The larger one counts, so that no run takes longer.
WORTHWHILE_FLOPS = 2e18


def should_compile(config: Config, device: torch.device, world_size: int, steps_left: float) -> bool:
    """Whether to compile: the key `compile`; `auto` does on a GPU, if the steps that are left are worth it."""
    if config.debug or not steps_left or config.compile == "off":
        return False
    flops_left = step_flops(config) / world_size * steps_left
    return config.compile == "on" or (device.type == "cuda" and flops_left >= WORTHWHILE_FLOPS)


def compile_loss(loss: MaskedLoss, batch: MaskedBatch, dtype: torch.dtype, is_required: bool) -> None:
    """Compile forward and backward pass of a loss, in place, so that its parameters keep their names.

    They run once, so that an error is found before the first step. `autograd.grad` does not touch the gradients that
    the parameters have, nor the hooks of DDP.

    Args:
        loss: the loss, not wrapped by DDP.
        batch: a micro-batch. All others must have its shapes.
        dtype: the dtype of matrix products.
        is_required: raise an error if it cannot be compiled, instead of a warning.

    Raises:
        UserError: it cannot be compiled.
    """
    loss.compile(backend=BACKEND, fullgraph=True, dynamic=False)
    try:
        with autocast(batch.inputs.device, dtype):
            result = loss(**vars(batch))
        torch.autograd.grad(result, [parameter for parameter in loss.parameters() if parameter.requires_grad])
    except Exception as error:  # of any part of a compiler
        reason = " ".join(str(error).splitlines()[:2])  # "backend='inductor' raised:", and what
        if is_required:
            raise UserError(f"compile: on, but the model cannot be compiled here ({reason}): use off") from error
        loss._compiled_call_impl = None  # what `compile` sets
        warn(f"the model cannot be compiled here, so its operations are started one by one ({reason})")


def forget_compiled() -> None:
    """Forget the compiled losses of earlier phases: torch compiles a function for a limited number of shapes."""
    torch._dynamo.reset()
