"""Full fine-tuning: all parameters of an encoder learn a task, until its dev metric stops improving."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import tokenizers
import torch
import torch.nn.functional as F
from torch.nn.utils import clip_grad_norm_

from mlm_dist.data.tokenizer import Tokenizer
from mlm_dist.distributed import Processes
from mlm_dist.errors import UserError
from mlm_dist.finetuning.classifier import Classifier, write_classifier
from mlm_dist.finetuning.examples import Split, Targets
from mlm_dist.finetuning.metrics import value_of
from mlm_dist.finetuning.outcome import Outcome
from mlm_dist.model.encoder import Encoder

WEIGHT_DECAY = 0.01
WARMUP_FRACTION = 0.1
GRAD_CLIP = 1.0
PREDICTED_AT_ONCE = 64  # sequences

Sequences = dict[tuple[str, ...], list[int]]
"""The token ids of each text or pair."""


@dataclass(frozen=True)
class Recipe:
    """How an encoder is fine-tuned.

    Attributes:
        lr: the peak learning rate, after a linear warmup and before a linear decay to 0.
        batch_size: examples in a step, over all ranks.
        epochs: the most passes over the examples.
        patience: passes without a better dev metric after which it ends.
    """

    lr: float
    batch_size: int
    epochs: int
    patience: int


class Texts(NamedTuple):
    """The texts as the model reads them.

    Attributes:
        sequences: of all examples.
        tokenizer: of the encoder.
        converted: the same for the folder of the model.
    """

    sequences: Sequences
    tokenizer: Tokenizer
    converted: tokenizers.Tokenizer


def fine_tune(
    encoder: Encoder,
    texts: Texts,
    split: Split,
    classes: Sequence[str],
    recipe: Recipe,
    seed: int,
    processes: Processes,
) -> Outcome:
    """Fine-tune a copy of an encoder, and keep the parameters with the best dev metric. All ranks call this.

    Up to rounding, the result does not depend on the number of ranks: rows and initial values follow from the seed.
    There is no dropout.

    Raises:
        UserError: a gradient is not finite.
    """
    torch.manual_seed(seed)
    classifier = Classifier(copy.deepcopy(encoder), len(classes) or 1).to(processes.device).eval()
    mean, deviation = (0.0, 1.0) if classes else (split.learn.targets.mean(), split.learn.targets.std())
    rows = [texts.sequences[one] for one in split.learn.texts]
    targets = (split.learn.targets - mean) / deviation if not classes else split.learn.targets
    predict_part = partial(predict, classifier, bool(classes), processes)
    dev_rows = [texts.sequences[one] for one in split.dev.texts]
    steps = math.ceil(len(rows) / recipe.batch_size)
    trained = [parameter for name, parameter in classifier.named_parameters() if not is_unused(name, encoder)]
    optimizer = torch.optim.AdamW(trained, lr=recipe.lr, weight_decay=WEIGHT_DECAY)
    best, best_epoch, kept = -math.inf, 0, copy.deepcopy(classifier.state_dict())
    for epoch in range(recipe.epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(rows))
        for step, batch in enumerate(np.array_split(order, steps), start=epoch * steps):
            optimizer.param_groups[0]["lr"] = recipe.lr * relative_rate(step, steps * recipe.epochs)
            compute_gradient(classifier, rows, targets, batch, trained, processes)
            if not clip_grad_norm_(trained, GRAD_CLIP).isfinite():  # on all ranks, which have the same gradient
                raise UserError(f"the gradient of step {step + 1} is not finite: try a smaller --lr than {recipe.lr}")
            optimizer.step()
            optimizer.zero_grad()
        dev = value_of(split.dev.targets, predict_part(dev_rows), len(classes))
        if dev > best:
            best, best_epoch, kept = dev, epoch + 1, copy.deepcopy(classifier.state_dict())
        elif epoch + 1 - best_epoch >= recipe.patience:
            break
    classifier.load_state_dict(kept)
    classifier.rescale_output(float(mean), float(deviation))
    test = predict_part([texts.sequences[one] for one in split.test.texts])
    chosen = {"epoch": best_epoch}
    return Outcome(
        test,
        best,
        chosen,
        lambda folder: write_classifier(classifier, classes, texts.tokenizer, texts.converted, folder),
    )


def is_unused(name: str, encoder: Encoder) -> bool:
    """Whether a classifier does not use a parameter: the output layer and the LayerNorm before it."""
    output = ("encoder.output.bias",) if encoder.config.tie_embeddings else ("encoder.output.",)
    return name.startswith(("encoder.final_norm.", *output))


def relative_rate(step: int, total: int) -> float:
    """The learning rate of a step as a fraction of the peak."""
    warmup = max(1, round(WARMUP_FRACTION * total))
    return min((step + 1) / warmup, (total - step) / max(1, total - warmup))


def compute_gradient(
    classifier: Classifier,
    rows: Sequence[Sequence[int]],
    targets: Targets,
    batch: npt.NDArray[np.int64],
    trained: Sequence[torch.nn.Parameter],
    processes: Processes,
) -> None:
    """Leave the gradient of the mean loss over a global batch, of which each rank computes a part."""
    mine = batch[processes.rank :: processes.world_size]
    if len(mine):
        outputs = classifier(*pad([rows[index] for index in mine], processes.device))
        expected = torch.from_numpy(targets[mine]).to(processes.device)
        is_score = expected.is_floating_point()
        loss = (
            F.mse_loss(outputs[:, 0], expected.float(), reduction="sum")
            if is_score
            else F.cross_entropy(outputs, expected, reduction="sum")
        )
        (loss / len(batch)).backward()  # type: ignore[no-untyped-call]
    if processes.world_size > 1:
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
        total = processes.sum_(torch.cat([gradient.flatten() for gradient in gradients]))
        for parameter, part in zip(trained, torch.split(total, [p.numel() for p in trained]), strict=True):
            parameter.grad = part.view_as(parameter)


@torch.no_grad()
def predict(classifier: Classifier, is_class: bool, processes: Processes, rows: Sequence[Sequence[int]]) -> Targets:
    """The predictions on sequences, on all ranks. Each computes a part, sorted by length."""
    mine = sorted(range(processes.rank, len(rows), processes.world_size), key=lambda index: len(rows[index]))
    found: list[tuple[int, float]] = []
    for start in range(0, len(mine), PREDICTED_AT_ONCE):
        chosen = mine[start : start + PREDICTED_AT_ONCE]
        outputs = classifier(*pad([rows[index] for index in chosen], processes.device))
        values = outputs.argmax(1) if is_class else outputs[:, 0]
        found += zip(chosen, values.tolist(), strict=True)
    everything = dict(pair for part in processes.all_gather(found) for pair in part)
    return np.array([everything[index] for index in range(len(rows))])


def pad(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The ids of rows, (B, T), filled up to the longest of them, and their lengths, (B,)."""
    lengths = torch.tensor([len(row) for row in rows], device=device)
    tokens = [torch.tensor(row) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True).to(device), lengths
