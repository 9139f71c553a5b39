"""Trains a peer as its own script does, for the comparison of to_loss.py.

The peer is `BertForMaskedLM` by the recipe of transformers' `run_mlm_no_trainer.py`: AdamW without weight decay, a
learning rate that falls linearly from the first step on, no clipping, dropout, tokens masked at random by 80/10/10. The
rows, the held-out rows with their masks, and the precision are those of this package. The run directory has a
metrics.jsonl and a checkpoint of the last evaluation. As with `train`, a STOP file ends the run.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from mlm_dist.benchmarks.peers import TransformersEncoder, mask_with_global_generator
from mlm_dist.config import Config
from mlm_dist.config_reading import parse_config
from mlm_dist.data.corpus import Corpus
from mlm_dist.data.masking import MaskedBatch
from mlm_dist.data.mixture import join_corpora
from mlm_dist.data.preparation import find_or_prepare_all
from mlm_dist.data.rows import choose_rows
from mlm_dist.distributed import Processes
from mlm_dist.evaluation import Validator
from mlm_dist.files import replacing
from mlm_dist.precision import autocast, choose_dtype
from mlm_dist.run.metrics import MetricsFile, drop_later_events
from mlm_dist.run.recorder import Stopwatch
from mlm_dist.run.run_dir import RunDir
from mlm_dist.training.stopping import StopRequest


class PeerTrainer:
    """A run of the peer."""

    def __init__(self, config: Config, corpora: Sequence[Corpus]) -> None:
        self.config = config
        self.processes = Processes(config.device)
        self.device = self.processes.device
        self.dtype = choose_dtype(config.precision, self.device)
        self.mask_id = corpora[0].tokenizer.mask_id
        self.rows, self.sampler = choose_rows(config, corpora)
        self.validator = Validator(config, corpora[0], self.processes, self.dtype)
        self.run = RunDir(Path(config.run_dir))
        self.checkpoint = self.run.path / "peer.pt"
        torch.manual_seed(config.seed)
        self.model = TransformersEncoder(config.model).to(self.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.optim.lr, weight_decay=0.0)
        self.schedule = torch.optim.lr_scheduler.LinearLR(self.optimizer, 1.0, 0.0, config.train.max_iters)
        self.step, self.seconds = 0, 0.0

    def train(self) -> None:
        """Train to the last step, or until a stop request."""
        self.resume()
        drop_later_events(self.run.metrics, self.step)
        metrics, stopwatch = MetricsFile(self.run.metrics), Stopwatch(self.seconds)
        settings = self.config.train
        with StopRequest() as stop:
            while self.step < settings.max_iters and not (stop.reason() or self.run.stop.exists()):
                loss = self.take_step()
                if self.step % settings.log_interval == 0 or self.is_evaluated():
                    self.seconds = stopwatch.read()
                    tokens = self.step * settings.batch_size * self.config.model.block_size
                    lr = self.schedule.get_last_lr()[0]
                    event = {
                        "step": self.step,
                        "loss": loss.item(),
                        "lr": lr,
                        "tokens": tokens,
                        "seconds": self.seconds,
                    }
                    metrics.add("train", event)
                if self.is_evaluated():
                    with stopwatch.paused():
                        metrics.add("val", {"step": self.step, "val_loss": self.evaluate()})
                        self.save()
        metrics.close()
        self.run.stop.unlink(missing_ok=True)
        if self.step == settings.max_iters:
            self.run.mark_done(self.step)

    def is_evaluated(self) -> bool:
        """Whether the step just taken is evaluated."""
        return self.validator.is_due(self.step) or self.step == self.config.train.max_iters

    def take_step(self) -> torch.Tensor:
        """Take the next optimizer step. Returns its loss."""
        tokens = torch.from_numpy(self.rows.read(self.sampler.select(self.step)).astype("int64"))
        inputs, labels = mask_with_global_generator(tokens, self.config, self.mask_id)
        with autocast(self.device, self.dtype):
            loss: torch.Tensor = self.model(inputs.to(self.device), labels.to(self.device))
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.step += 1
        return loss.detach()

    @torch.no_grad()
    def evaluate(self) -> float:
        """The validation loss, in nats per masked token, on the rows and masks of this package."""
        self.model.eval()
        total, count = 0.0, 0.0
        for batch in self.validator.batches():
            with autocast(self.device, self.dtype):
                logits = self.model.model(input_ids=batch.inputs, attention_mask=torch.ones_like(batch.inputs)).logits
            total += weighted_loss(logits, batch)
            count += batch.loss_weights.sum().item()
        self.model.train()
        return total / count

    def save(self) -> None:
        """Write a checkpoint."""
        content = io.BytesIO()
        torch.save(self.state() | {"random": random_states()}, content)
        with replacing(self.checkpoint) as file:
            file.write(content.getbuffer())

    def state(self) -> dict[str, Any]:
        """What a checkpoint stores, except for the random generator."""
        parts: dict[str, Any] = {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule}
        return {name: part.state_dict() for name, part in parts.items()} | {"step": self.step, "seconds": self.seconds}

    def resume(self) -> None:
        """Load the checkpoint, if there is one."""
        self.run.path.mkdir(parents=True, exist_ok=True)
        if not self.checkpoint.exists():
            return
        saved = torch.load(self.checkpoint, weights_only=True)
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.schedule.load_state_dict(saved["schedule"])
        self.step, self.seconds = saved["step"], saved["seconds"]
        torch.set_rng_state(saved["random"]["cpu"])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state_all(saved["random"]["cuda"])


def random_states() -> dict[str, Any]:
    """The states of torch's random generators, which choose masks and dropout."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def weighted_loss(logits: torch.Tensor, batch: MaskedBatch) -> float:
    """The sum of the losses at the predicted positions, by their weights; `logits` are (B, T, V)."""
    predicted = logits.gather(1, batch.positions[:, :, None].expand(-1, -1, logits.shape[-1])).float()
    losses = F.cross_entropy(predicted.flatten(0, 1), batch.targets.flatten(), reduction="none")
    return float((losses * batch.loss_weights.flatten()).sum())


def main(arguments: list[str]) -> None:
    """Train, or continue, the run of a config."""
    config = parse_config(arguments, "train")
    opened = [Corpus.open(folder) for folder in find_or_prepare_all(config.data, config.model.vocab_size)]
    corpora = join_corpora(opened, config.model.block_size)
    PeerTrainer(config.with_vocab_size(corpora[0].tokenizer.vocab_size), corpora).train()
