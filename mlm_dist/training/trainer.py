"""The training loop."""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from mlm_dist.config import Config
from mlm_dist.data.batches import load_batch
from mlm_dist.data.corpus import Corpus
from mlm_dist.data.masking import MaskedBatch, Masker
from mlm_dist.data.randomness import salt
from mlm_dist.data.sampler import GlobalBatchSampler
from mlm_dist.errors import UserError
from mlm_dist.model.encoder import Encoder
from mlm_dist.model.loss import masked_cross_entropy
from mlm_dist.training.checkpoint import find_newest, load_checkpoint, save_checkpoint
from mlm_dist.training.curves import draw_curves
from mlm_dist.training.distributed import Processes
from mlm_dist.training.evaluation import HeldOut
from mlm_dist.training.metrics import Recorder, Stopwatch, read_events
from mlm_dist.training.optim import build_optimizer, learning_rate
from mlm_dist.training.precision import autocast, choose_dtype
from mlm_dist.training.run_dir import RunDir, replacing

SMALLEST_SCALE = 2.0**-10


class DivergenceError(Exception):
    """The loss or its gradient is no longer a finite number."""


class StepResult(NamedTuple):
    """What came of a step.

    Attributes:
        loss: this rank's share; the shares of all ranks add up to the loss.
        grad_norm: length of the gradient before clipping, the same on all ranks.
        lr: the learning rate.
    """

    loss: torch.Tensor
    grad_norm: torch.Tensor
    lr: float


class Trainer:
    """Trains an encoder on a corpus, alone or as one rank of many, from wherever the run directory left off.

    Attributes:
        encoder: the model; `model` is the same wrapped for the exchange of gradients.
        step: optimizer steps taken. Rows, masks and learning rate are functions of it, so that with the weights and
            the optimizer's state it is all that a checkpoint has to hold.

    Raises:
        UserError: the corpus does not fit the config.
    """

    def __init__(self, config: Config, corpus: Corpus, processes: Processes, run_dir: RunDir) -> None:
        self.config = config
        self.corpus = corpus
        self.processes = processes
        self.run_dir = run_dir
        self.device = processes.device
        with processes.together():
            check_vocabulary(corpus, config)
            self.dtype = choose_dtype(config.precision, self.device)
        processes.check_same("precision", str(self.dtype))
        with processes.together():
            self.rows = corpus.rows("train", config.model.block_size)
            self.sampler = GlobalBatchSampler(
                len(self.rows), config.train.batch_size, config.seed, processes.rank, processes.world_size
            )
            self.held_out = HeldOut(config, corpus, processes, self.dtype)
        self.masker = Masker.of(config.masking, config.model.block_size, corpus.tokenizer, config.seed, self.device)

        torch.manual_seed(config.seed)
        self.encoder = Encoder(config.model).to(self.device)
        self.optimizer = build_optimizer(self.encoder, config.optim)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.model: Encoder | DistributedDataParallel = self.encoder
        if processes.exchanges:
            self.model = DistributedDataParallel(self.encoder, gradient_as_bucket_view=True)
        self.step = 0
        self.seconds = 0.0

    @property
    def tokens(self) -> int:
        """Tokens read so far, over all ranks and epochs."""
        return self.step * self.config.train.batch_size * self.config.model.block_size

    def train(self) -> None:
        """Take the steps that are left, then write `model.pth` and the pictures."""
        config, interval = self.config.train, self.config.checkpoint.interval
        recorder = None
        if self.processes.is_first:
            recorder = Recorder(self.run_dir, self.step, self.tokens, self.seconds, config.max_iters)
        if self.step == 0:
            self.evaluate(recorder)
        batches, stopwatch = self.batches(), Stopwatch(self.seconds)
        while self.step < config.max_iters:
            rate = learning_rate(self.step, config.max_iters, self.config.optim)
            result = self.take_step(next(batches), rate)
            self.step += 1
            last = self.step == config.max_iters
            evaluates = last or self.held_out.is_due(self.step)
            saves = last or self.step % interval == 0
            if evaluates or saves or self.step % config.log_interval == 0:
                self.log(recorder, result, stopwatch)
            with stopwatch.paused():
                if evaluates:
                    self.evaluate(recorder)
                if saves:
                    self.save()
        if recorder:
            recorder.close()
            self.finish()
        self.processes.barrier()

    def batches(self) -> Iterator[MaskedBatch]:
        """Read and mask this rank's part of one global batch after another, beginning with the next step's."""
        self.sampler.start_step = self.step
        for epoch, rows in self.sampler:
            if self.config.model.dropout:
                # Seeded anew at every step, the generator needs no place in the checkpoint.
                torch.manual_seed(salt(self.config.seed, self.step, self.processes.rank, "dropout"))
            yield load_batch(self.rows, rows, epoch, self.masker, self.device)

    def take_step(self, batch: MaskedBatch, rate: float) -> StepResult:
        """Take one optimizer step.

        The loss is the mean over the masked tokens of the global batch, so each part of it, on whatever rank and in
        whatever micro-batch, is divided by the number of those.

        Args:
            batch: this rank's part of the global batch.
            rate: the learning rate.

        Returns:
            Its figures, still on the device.
        """
        count = self.processes.sum_(batch.weights.sum()).clamp(min=1)
        micro_batches = batch.micro_batches(self.config.micro_batch_size(self.processes.world_size))
        losses = []
        for index, micro_batch in enumerate(micro_batches):
            with self.exchanging(last=index + 1 == len(micro_batches)):
                with autocast(self.device, self.dtype):
                    logits = self.model(micro_batch.inputs, micro_batch.positions)
                loss = masked_cross_entropy(logits, micro_batch.targets, micro_batch.weights) / count
                # DDP averages over the ranks where a sum is wanted.
                self.scaler.scale(loss * self.processes.world_size).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        self.scaler.unscale_(self.optimizer)
        grad_norm = clip_grad_norm_(self.encoder.parameters(), self.config.optim.grad_clip or math.inf)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return StepResult(torch.stack(losses).sum(), grad_norm, rate)

    def exchanging(self, last: bool) -> AbstractContextManager[None]:
        """Let gradients be exchanged in the last micro-batch of a step alone; until then they add up on each rank."""
        if isinstance(self.model, DistributedDataParallel) and not last:
            return self.model.no_sync()
        return nullcontext()

    def log(self, recorder: Recorder | None, step: StepResult, stopwatch: Stopwatch) -> None:
        """Record the step just taken, and stop if its numbers are not finite.

        Raises:
            DivergenceError: on all ranks. No checkpoint is written after that.
        """
        loss = self.processes.sum_(step.loss).item()
        grad_norm = step.grad_norm.item()
        self.seconds = stopwatch.read()
        if recorder:
            recorder.training(
                step=self.step,
                epoch=self.step / self.sampler.steps_per_epoch,
                loss=loss,
                lr=step.lr,
                grad_norm=grad_norm,
                tokens=self.tokens,
                seconds=self.seconds,
            )
        # With fp16 a gradient may overflow now and then: its step is left out, and the scaler takes a lower scale.
        overflows = self.scaler.is_enabled() and self.scaler.get_scale() > SMALLEST_SCALE
        if not math.isfinite(loss) or not (math.isfinite(grad_norm) or overflows):
            raise DivergenceError(
                f"step {self.step}: loss {loss}, grad_norm {grad_norm}. The checkpoints in {self.run_dir.checkpoints} "
                f"are from before that; a lower optim.lr or a longer optim.warmup_iters may help"
            )

    def evaluate(self, recorder: Recorder | None) -> None:
        """Measure on held-out text and record it."""
        if not self.held_out.interval:
            return
        result = self.held_out.evaluate(self.encoder)
        if recorder:
            recorder.evaluation(step=self.step, **result)

    def save(self) -> None:
        """Write a checkpoint (rank 0)."""
        if self.processes.is_first:
            state = {
                "step": self.step,
                "seconds": self.seconds,
                "corpus": self.corpus.manifest.sha256["train"],
                "model": self.encoder.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
            }
            save_checkpoint(self.run_dir.checkpoints, self.step, state, self.config.checkpoint.keep)

    def resume(self) -> None:
        """Go back to the newest checkpoint that is whole, if there is one.

        Raises:
            UserError: the checkpoint is of another model or corpus, or from after the run's end.
        """
        name = self.processes.first_alone(lambda: str(find_newest(self.run_dir.checkpoints) or ""))
        if not name:
            return
        with self.processes.together():
            state = load_checkpoint(Path(name))
            if state["corpus"] != self.corpus.manifest.sha256["train"]:
                raise UserError(
                    f"{name} was trained on another corpus than {self.corpus.folder}: choose another run_dir"
                )
            if state["step"] > self.config.train.max_iters:
                raise UserError(f"{name} is beyond train.max_iters {self.config.train.max_iters}: raise that")
            try:
                self.encoder.load_state_dict(state["model"])
            except RuntimeError as error:
                raise UserError(f"{name} is of a model of another shape: choose another run_dir") from error
            # The groups' settings are the config's, which may have changed.
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
            if state["scaler"] and self.scaler.is_enabled():  # fp16 before and now
                self.scaler.load_state_dict(state["scaler"])
            self.step, self.seconds = state["step"], state["seconds"]

    def finish(self) -> None:
        """Write the final weights and the pictures, and mark the run as done."""
        with replacing(self.run_dir.model) as file:
            torch.save({name: weight.cpu() for name, weight in self.encoder.state_dict().items()}, file)
        draw_curves(self.run_dir.metrics, self.run_dir.curves)
        self.run_dir.done.touch()

    def describe(self) -> str:
        """What is about to be trained, in a line."""
        weights = sum(weight.numel() for weight in self.encoder.parameters())
        precision = str(self.dtype).removeprefix("torch.")
        return (
            f"training {weights / 1e6:.1f} M weights in {precision} on {self.processes.world_size} x "
            f"{self.device.type}, step {self.step} to {self.config.train.max_iters} "
            f"({self.sampler.steps_per_epoch} steps an epoch), in {self.run_dir.path}"
        )

    def summarize(self) -> str:
        """What came of the run."""
        losses = [event["val_loss"] for event in read_events(self.run_dir.metrics) if "val_loss" in event]
        fell = f"held-out loss {losses[0]:.3f} -> {losses[-1]:.3f}" if losses else "no evaluation"
        return (
            f"done: {self.step} steps in {self.seconds:.0f} s of training, {fell}\n"
            f"weights: {self.run_dir.model}\nloss plot: {self.run_dir.curves}"
        )


def check_vocabulary(corpus: Corpus, config: Config) -> None:
    """Raise `UserError` if the model has no place for a token of the corpus."""
    needed, size = corpus.tokenizer.vocab_size, config.model.vocab_size
    if needed > size:
        raise UserError(
            f"{corpus.folder} has a vocabulary of {needed}, more than model.vocab_size {size}: set that to {needed}"
        )
