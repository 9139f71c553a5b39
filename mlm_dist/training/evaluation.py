"""Evaluation on held-out text: the same rows with the same masks every time, shared by the ranks."""

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch

from mlm_dist.config import Config
from mlm_dist.data.batches import load_batch
from mlm_dist.data.corpus import Corpus
from mlm_dist.data.masking import MaskedBatch, Masker
from mlm_dist.errors import UserError
from mlm_dist.model.encoder import Encoder
from mlm_dist.model.loss import loss_and_hits
from mlm_dist.training.distributed import Processes
from mlm_dist.training.precision import autocast

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
        evenly = np.linspace(0, len(self.matrix), count, endpoint=False).astype(np.int64)
        self.rows = evenly[processes.rank :: processes.world_size]
        self.turns = math.ceil(count / processes.world_size / self.batch_size)  # batches of the rank that has most
        self.masker = Masker.of(config.masking, config.model.block_size, corpus.tokenizer, SEED, processes.device)

    def is_due(self, step: int) -> bool:
        """Whether to evaluate after a step."""
        return self.interval > 0 and step % self.interval == 0

    def batches(self) -> Iterator[MaskedBatch]:
        """Read and mask the rows of this rank."""
        for start in range(0, len(self.rows), self.batch_size):
            rows = self.rows[start : start + self.batch_size]
            yield load_batch(self.matrix, rows, EPOCH, self.masker, self.processes.device)

    @torch.no_grad()
    def evaluate(self, encoder: Encoder, stops: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
        """Measure `val_loss`, in nats per masked token, and `val_accuracy`, on all ranks' rows.

        Args:
            encoder: the model to measure.
            stops: asked before every batch, on all ranks alike, whether to give up; None is returned then.
        """
        device = self.processes.device
        encoder.eval()
        sums = torch.zeros(3, dtype=torch.float64, device=device)
        for _, batch in itertools.zip_longest(range(self.turns), self.batches()):
            if stops():
                encoder.train()
                return None
            if batch is None:  # another rank has one more
                continue
            with autocast(device, self.dtype):
                hidden = encoder.encode(batch.inputs, batch.positions)
                loss, hits = loss_and_hits(hidden, encoder.output, batch.targets, batch.weights)
            sums += torch.stack([loss, hits, batch.weights.sum()])
        encoder.train()
        loss_sum, hits_sum, count = self.processes.sum_(sums).tolist()
        return {"val_loss": loss_sum / max(count, 1), "val_accuracy": hits_sum / max(count, 1)}
