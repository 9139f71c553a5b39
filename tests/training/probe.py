"""Runs under torchrun in place of the training verb, and records what each rank reads and computes.

    probe.py OUT FLAGS...

The learning rate is 0, so that the parameters stay the same. Each rank writes OUT/rank-<r>.pt: for each of the first
steps a dict with its row indices, its masked batch, the loss and the gradient of the global batch, and the number of
all-reduces of the gradient.
"""

from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch._C._distributed_c10d import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from mlm_dist.config_reading import parse_config
from mlm_dist.data.corpus import Corpus
from mlm_dist.distributed import Processes
from mlm_dist.exit_codes import run_verb
from mlm_dist.run.run_dir import RunDir
from mlm_dist.training.stopping import StopRequest
from mlm_dist.training.trainer import Trainer

STEPS = 3


def main(arguments: list[str]) -> None:
    out, *flags = arguments
    config = parse_config(flags, "train")
    processes = Processes(config.device)
    corpus = Corpus.open(Path(config.data.paths))
    trainer = Trainer(config, [corpus], processes, RunDir(Path(config.run_dir)), StopRequest())
    all_reduces = 0

    def counted(state: Any, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
        nonlocal all_reduces
        all_reduces += bucket.is_last()
        return allreduce_hook(state, bucket)

    if isinstance(trainer.eager_step.model, DistributedDataParallel):
        trainer.eager_step.model.register_comm_hook(None, counted)
    gradient: list[torch.Tensor] = []

    def keep(*_: object) -> None:
        parameters = list(trainer.state.encoder.parameters())
        gradient[:] = [p.grad.flatten().clone() for p in parameters if p.grad is not None]
        assert len(gradient) == len(parameters)

    trainer.state.optimizers[0].register_step_pre_hook(keep)
    steps = []
    for _ in range(STEPS):
        selection = trainer.sampler.select(trainer.state.step)
        with mock.patch("mlm_dist.training.step.learning_rate", return_value=0.0):
            result = trainer.train_step()
        steps.append(
            {
                "epoch": selection.epochs.tolist(),
                "rows": torch.from_numpy(selection.rows),
                "batch": {name: tensor for name, tensor in vars(result.batch).items() if tensor is not None},
                "loss": processes.sum_(result.loss).item(),
                "grad_norm": result.grad_norm.item(),
                "gradient": torch.cat(gradient),
                "all_reduces": all_reduces,
            }
        )
        all_reduces = 0
    torch.save(steps, Path(out) / f"rank-{processes.rank}.pt")
    processes.close()


if __name__ == "__main__":
    run_verb(main)
