"""Contrastive training of an encoder on unlabelled texts (SimCSE: Gao et al. 2021, arXiv:2104.08821).

Each text of a batch is encoded twice, with different dropout. Its two vectors should be closer to each other than to
those of the other texts. A vector is the mean of the last hidden states, as in `embed`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from mlm_dist.errors import UserError
from mlm_dist.model.masked_model import MaskedModel, padded_documents


@dataclass(frozen=True)
class ContrastiveStage:
    """The settings of the training.

    Attributes:
        steps: number of updates.
        batch_size: texts in a step.
        lr: AdamW's learning rate in the first step; it falls linearly to 0.
        temperature: divides the cosines.
        seed: of the order of the texts, and of dropout.

    Raises:
        UserError: a value is out of bounds.
    """

    steps: int
    batch_size: int
    lr: float
    temperature: float
    seed: int

    def __post_init__(self) -> None:
        for name, least in {"steps": 1, "batch_size": 2, "seed": 0}.items():
            if getattr(self, name) < least:
                raise UserError(f"--{name} is {getattr(self, name)}: it must be at least {least}")
        for name in ("lr", "temperature"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"--{name} is {getattr(self, name)}: it must be above 0 and at most 1")


def train_contrastively(encoder: MaskedModel, texts: Sequence[list[int]], stage: ContrastiveStage) -> list[float]:
    """Train an encoder, which has dropout, and leave it in evaluation mode.

    Args:
        encoder: on any device.
        texts: different token ids, 1 to `block_size` each; at least `batch_size`.
        stage: the settings.

    Returns:
        The loss of each step, in nats.

    Raises:
        UserError: a loss is not finite.
    """
    torch.manual_seed(stage.seed)
    optimizer = torch.optim.AdamW(encoder.parameters(), weight_decay=0)
    losses = []
    encoder.train()
    for step in range(stage.steps):
        chosen = torch.randperm(len(texts))[: stage.batch_size].tolist()
        loss = contrast(encoder, [texts[index] for index in chosen], stage.temperature)
        losses.append(loss.item())
        if not loss.isfinite():
            raise UserError(f"the loss of step {step + 1} is not finite: try a smaller --lr than {stage.lr}")
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        for group in optimizer.param_groups:
            group["lr"] = stage.lr * (1 - step / stage.steps)
        optimizer.step()
    encoder.eval()
    return losses


def contrast(encoder: MaskedModel, texts: Sequence[list[int]], temperature: float) -> torch.Tensor:
    """The cross-entropy of finding, by cosine, the second vector of each text among those of all texts."""
    first, second = F.normalize(mean_states(encoder, [*texts, *texts])).chunk(2)
    return F.cross_entropy(first @ second.T / temperature, torch.arange(len(texts), device=first.device))


def mean_states(encoder: MaskedModel, texts: Sequence[list[int]]) -> torch.Tensor:
    """The mean of the last hidden states of each text: (B, C)."""
    device = encoder.output.weight.device
    tokens = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in texts], batch_first=True).to(device)
    lengths = torch.tensor([len(ids) for ids in texts], device=device)
    documents = padded_documents(lengths, tokens.shape[1])
    states = encoder.last_hidden_states(tokens, documents=documents)
    return (states * (1 - documents)[:, :, None]).sum(1) / lengths[:, None]
