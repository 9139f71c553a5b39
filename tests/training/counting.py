"""Runs under torchrun: each rank prints the number of torch operations of a step, by part, as a line of JSON."""

import collections
import json
from pathlib import Path

import roofline

from mlm_dist.config_reading import parse_config
from mlm_dist.data.corpus import Corpus
from mlm_dist.distributed import Processes
from mlm_dist.exit_codes import run_verb
from mlm_dist.run.run_dir import RunDir
from mlm_dist.training.stopping import StopRequest
from mlm_dist.training.trainer import Trainer


def count_operations(trainer: Trainer) -> dict[str, int]:
    """The operations of the third step that would be kernels on a GPU."""
    for _ in range(2):  # the optimizer creates its state, DDP its buckets
        trainer.train_step()
    trace = roofline.Trace()
    with trace.of(trainer.eager_step):
        trainer.train_step()
    return dict(collections.Counter(kernel.part or "rest" for kernel in trace.kernels))


def main(arguments: list[str]) -> None:
    config = parse_config(arguments, "train")
    processes = Processes(config.device)
    corpus = Corpus.open(Path(config.data.paths))
    trainer = Trainer(config, [corpus], processes, RunDir(Path(config.run_dir)), StopRequest())
    trainer.eager_step.without_host = True
    print(json.dumps(count_operations(trainer)))
    processes.close()


if __name__ == "__main__":
    run_verb(main)
