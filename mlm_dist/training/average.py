"""The exponential moving average of the parameters, which `optim.ema` turns on."""

import copy

import torch

from mlm_dist.model.masked_model import MaskedModel


class ParameterAverage:
    """An exponential moving average of the parameters of an encoder, in fp32 and on its device.

    After step t, with d = min(decay, (1 + t) / (10 + t)): average = d * average + (1 - d) * parameters. The smaller
    decay of the first steps lets the average forget the initial parameters. It is that of `num_updates` in TensorFlow's
    `tf.train.ExponentialMovingAverage`. The parameters of a skipped step count like those of any other.

    Args:
        encoder: the model that is trained.
        decay: the decay after the first steps.

    Attributes:
        model: a model like the encoder, with the averages as parameters, and with the current buffers of the encoder.
    """

    def __init__(self, encoder: MaskedModel, decay: float) -> None:
        self.model = copy.deepcopy(encoder).requires_grad_(False)
        self.decay = decay
        self._averages: list[torch.Tensor] = list(self.model.parameters())
        self._parameters: list[torch.Tensor] = list(encoder.parameters())
        self._buffers = list(zip(self.model.buffers(), encoder.buffers(), strict=True))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the parameters after a step, counted from 1. Outside a CUDA graph, which would keep the decay."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, self._parameters, 1 - decay)
        for copied, buffer in self._buffers:
            copied.copy_(buffer)
