"""Evaluation on held-out text: the same rows with the same masks every time, shared by the ranks."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch

from mlm_dist.config import Config
from mlm_dist.data.batches import load_batch
from mlm_dist.data.corpus import Corpus
from mlm_dist.data.masking import MaskedBatch, Masker
from mlm_dist.data.sampler import Selection
from mlm_dist.distributed import Processes
from mlm_dist.errors import UserError
from mlm_dist.model.encoder import Encoder
from mlm_dist.model.loss import loss_and_hits
from mlm_dist.precision import autocast

# Not the run's own seed: runs with different seeds are to be measured on the same masks.
SEED = 0
EPOCH = 0


class HeldOut:
    """The held-out rows of a corpus that a run is evaluated on.

    Raises:
        UserError: there is not a single row, though the config asks for evaluations.
    """

    def __init__(self, config: Config, corpus: Corpus, processes: Processes, dtype: torch.dtype) -> None:
        self.processes = processes
        self.dtype = dtype
        self.matrix = corpus.rows("val", config.model.block_size)
        self.interval = config.train.eval_interval
        self.batch_size = config.micro_batch_size(processes.world_size)
        if self.interval and not len(self.matrix):
            raise UserError(
                f"{corpus.folder} holds out {len(corpus.val)} tokens, less than one row: prepare it with a larger "
                f"val_fraction, or turn evaluation off with train.eval_interval 0"
            )
        count = min(config.train.eval_rows, len(self.matrix))
        self.rows = np.linspace(0, len(self.matrix), count, endpoint=False).astype(np.int64)
        self.places = np.arange(processes.rank, count, processes.world_size)
        self.turns = math.ceil(count / processes.world_size / self.batch_size)  # batches of the rank that has most
        self.last_step = config.train.max_iters
        self.masker = Masker.of(
            config, config.model.block_size, corpus.tokenizer, SEED, max(1, count), processes.device
        )

    def is_due(self, step: int) -> bool:
        """Whether to evaluate after a step."""
        return self.interval > 0 and step % self.interval == 0

    def batches(self) -> Iterator[MaskedBatch]:
        """Read and mask the rows of this rank."""
        for start in range(0, len(self.places), self.batch_size):
            places = self.places[start : start + self.batch_size]
            selection = Selection(self.last_step, EPOCH, self.rows[places], places)
            yield load_batch(self.matrix, selection, self.masker, self.processes.device)

    def evaluate(self, encoder: Encoder, stops: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
        """Measure `val_loss`, in nats a token, and `val_accuracy`, on all ranks' rows.

        Args:
            encoder: the model to measure.
            stops: asked before every batch, on all ranks alike, whether to give up; None is returned then.
        """
        # None where another rank has one more.
        batches = (batch for _, batch in itertools.zip_longest(range(self.turns), self.batches()))
        result = measure(encoder, batches, self.processes, self.dtype, stops)
        return result and {"val_loss": result.loss, "val_accuracy": result.accuracy}


class Evaluation(NamedTuple):
    """How well masked tokens are guessed; where the share that is masked is drawn, each stands for several tokens.

    Attributes:
        loss: nats per masked token, or, with their weights, per token of the text.
        accuracy: how many of them are the likeliest token, between 0 and 1.
        top5_accuracy: how many are one of the five likeliest.
        tokens: masked tokens that were guessed, or that these stand for.
    """

    loss: float
    accuracy: float
    top5_accuracy: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """Over masked tokens: as unsure as a choice among so many equally likely ones."""
        return float(np.exp(self.loss))


@torch.no_grad()
def measure(
    encoder: Encoder,
    batches: Iterable[MaskedBatch | None],
    processes: Processes,
    dtype: torch.dtype,
    stops: Callable[[], bool] = lambda: False,
) -> Evaluation | None:
    """Measure an encoder on the batches of all ranks.

    Args:
        encoder: the model to measure.
        batches: of this rank.
        processes: over which to add up.
        dtype: of the matrix products.
        stops: asked before every batch, also before one that is None, whether to give up; None is returned then.
    """
    was_training = encoder.training
    encoder.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=processes.device)
    for batch in batches:
        if stops():
            encoder.train(was_training)
            return None
        if batch is None:
            continue
        with autocast(processes.device, dtype):
            hidden = encoder.encode(batch.inputs, batch.positions)
            found = loss_and_hits(hidden, encoder.output, batch.targets, batch.weights)
        sums += torch.stack([*found, batch.weights.sum()])
    encoder.train(was_training)
    loss, top_1, top_5, count = processes.sum_(sums).tolist()
    tokens = max(count, 1)
    return Evaluation(loss / tokens, top_1 / tokens, top_5 / tokens, round(count))
