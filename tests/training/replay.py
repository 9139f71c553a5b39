"""Runs under torchrun: each rank compares a trainer that replays its steps with an eager one, and prints the result.

    replay.py RUN_DIR RANK FLAGS...

The capture fails on this rank; -1 for none. In one step, the loss of rank 1 is NaN.
"""

from pathlib import Path
from typing import Any

import torch

from mlm_dist.config_reading import parse_config
from mlm_dist.data.corpus import Corpus
from mlm_dist.distributed import Processes
from mlm_dist.exit_codes import run_verb
from mlm_dist.run.run_dir import RunDir
from mlm_dist.training.state import StepResult
from mlm_dist.training.step import WARM_UP_STEPS_WITH_DDP, GraphStep
from mlm_dist.training.stopping import StopRequest
from mlm_dist.training.trainer import Trainer
from tests.training.tape import Tape

BAD_STEP = WARM_UP_STEPS_WITH_DDP + 2


class Failing(Tape):
    """Fails in the update, after the collectives: those of this rank run during the capture, unlike on a GPU."""

    def __torch_dispatch__(self, func: Any, *rest: Any) -> Any:
        if "fused_adamw" in str(func):
            raise RuntimeError("not permitted")
        return super().__torch_dispatch__(func, *rest)


def spoil(trainer: Trainer, steps: tuple[int, ...]) -> None:
    """Make the loss of these steps NaN, through a tensor that a graph reads too."""
    factor, train_step = torch.ones(()), trainer.train_step
    trainer.eager_step.loss.register_forward_hook(lambda module, arguments, loss: loss * factor)

    def step() -> StepResult:
        factor.fill_(float("nan") if trainer.state.step in steps else 1.0)
        return train_step()

    trainer.train_step = step  # type: ignore[method-assign]


def main(arguments: list[str]) -> None:
    run_dir, failing_rank, *flags = arguments
    config = parse_config(flags, "train")
    processes, corpus = Processes("cpu"), Corpus.open(Path(config.data.paths))
    tape = Failing() if processes.rank == int(failing_rank) else Tape()
    results = []
    for graph in (None, tape):
        trainer = Trainer(config, [corpus], processes, RunDir(Path(run_dir)), StopRequest())
        trainer.eager_step.without_host = True
        if graph:
            trainer.step = GraphStep(trainer.eager_step, graph)
        spoil(trainer, (BAD_STEP,) if processes.rank == 1 else ())
        norms = torch.stack([trainer.train_step().grad_norm for _ in range(config.train.max_iters)])
        is_bad = ~norms.isfinite()
        assert is_bad.nonzero().tolist() == [[BAD_STEP]]
        parameters = [parameter.detach().flatten() for parameter in trainer.state.encoder.parameters()]
        results.append(torch.cat([norms[~is_bad], *parameters]))
    expected_replays = config.train.max_iters - WARM_UP_STEPS_WITH_DDP if failing_rank == "-1" else 0
    print(f"rank {processes.rank}: {torch.equal(*results) and tape.replays == expected_replays}")
    processes.close()


if __name__ == "__main__":
    run_verb(main)
