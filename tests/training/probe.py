"""Runs under torchrun in place of the training verb, and writes down what a rank sees and computes.

    probe.py OUT FLAGS...   for the first steps, with a learning rate that leaves the weights as they are

Each rank writes OUT/rank-<r>.pt: a dict a step with its row numbers, its masked batch, the loss and the gradient of the
whole global batch, and the number of times that gradients were exchanged.
"""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from mlm_dist.command_line import run_verb
from mlm_dist.config_reading import parse_config
from mlm_dist.data.corpus import Corpus
from mlm_dist.distributed import Processes
from mlm_dist.run.run_dir import RunDir
from mlm_dist.training.stopping import StopRequest
from mlm_dist.training.trainer import Trainer

STEPS = 3


def main(arguments: list[str]) -> None:
    out, *flags = arguments
    config = parse_config(flags, "train")
    processes = Processes(config.device)
    corpus = Corpus.open(Path(config.data.path))
    trainer = Trainer(config, corpus, processes, RunDir(Path(config.run_dir)), StopRequest())
    exchanges = [0]

    def counted(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        exchanges[0] += bucket.is_last()
        return allreduce_hook(state, bucket)

    if isinstance(trainer.model, DistributedDataParallel):
        trainer.model.register_comm_hook(None, counted)
    gradient: list[torch.Tensor] = []

    def keep(*_: object) -> None:
        gradient[:] = [weight.grad.flatten().clone() for weight in trainer.state.encoder.parameters()]  # type: ignore[union-attr]

    trainer.state.optimizers[0].register_step_pre_hook(keep)
    steps = []
    trainer.learning_rate = lambda: 0.0  # type: ignore[method-assign]
    for _ in range(STEPS):
        selection = trainer.sampler.select(trainer.state.step)
        result = trainer.train_step()
        steps.append(
            {
                "epoch": selection.epoch,
                "rows": torch.from_numpy(selection.rows),
                "batch": vars(result.batch),
                "loss": processes.sum_(result.loss).item(),
                "grad_norm": result.grad_norm,
                "gradient": torch.cat(gradient),
                "exchanges": exchanges[0],
            }
        )
        exchanges[0] = 0
    torch.save(steps, Path(out) / f"rank-{processes.rank}.pt")
    processes.close()


if __name__ == "__main__":
    run_verb(main)
