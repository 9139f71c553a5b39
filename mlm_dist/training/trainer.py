"""The training loop."""

import json
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from mlm_dist.config import Config
from mlm_dist.data.batches import load_batch
from mlm_dist.data.corpus import Corpus
from mlm_dist.data.masking import MaskedBatch, Masker
from mlm_dist.data.randomness import salt
from mlm_dist.data.sampler import GlobalBatchSampler
from mlm_dist.distributed import Processes
from mlm_dist.errors import RunError, UserError, warn
from mlm_dist.evaluation import HeldOut
from mlm_dist.files import replacing
from mlm_dist.model.encoder import Encoder, check_weights
from mlm_dist.model.loss import MaskedLoss
from mlm_dist.precision import autocast, choose_dtype
from mlm_dist.run.background_saver import BackgroundSaver, copy_to_cpu
from mlm_dist.run.checkpoint import find_newest, load_checkpoint, read_record, write
from mlm_dist.run.machine import describe_machine
from mlm_dist.run.metrics import Recorder, Stopwatch, read_events
from mlm_dist.run.record import describe_run, differences
from mlm_dist.run.run_dir import RunDir, check_same_run
from mlm_dist.training.memory import check_memory, enough_memory
from mlm_dist.training.optim import build_optimizers, check_state, learning_rate, set_learning_rate, shortened_parts
from mlm_dist.training.stopping import StopRequest

SMALLEST_SCALE = 2.0**-10
LARGEST_SCALE = 2.0**127  # of fp32
MAKE_ROOM = "make room on the disk, and the same command goes on from the last checkpoint"


class StepResult(NamedTuple):
    """What came of a step.

    Attributes:
        loss: this rank's share, on its device; the shares of all ranks add up to the loss.
        grad_norm: length of the gradient before clipping, the same on all ranks. If it is not finite, the step was left
            out: weights and optimizer are as before.
        lr: the learning rate.
    """

    loss: torch.Tensor
    grad_norm: float
    lr: float


class Trainer:
    """Trains an encoder on a corpus, alone or as one rank of many, from wherever the run directory left off.

    Attributes:
        encoder: the model; `loss` is its loss, wrapped for the exchange of gradients where there are several ranks.
        step: optimizer steps taken. Rows, masks and learning rate are functions of it, so that with the weights and
            the optimizer's state it is all that a checkpoint has to hold.
        bad_steps: the last so many steps were left out, since their gradients were not finite.
        stopping: once the ranks have agreed to stop before the end, who or what asked for it; until then empty.

    Raises:
        UserError: the corpus does not fit the config.
    """

    def __init__(
        self, config: Config, corpus: Corpus, processes: Processes, run_dir: RunDir, stop: StopRequest
    ) -> None:
        self.config = config
        self.corpus = corpus
        self.processes = processes
        self.run_dir = run_dir
        self.stop = stop
        self.device = processes.device
        with processes.together():
            check_vocabulary(corpus, config)
            check_memory(config, self.device, processes.world_size)
            self.dtype = choose_dtype(config.precision, self.device)
        processes.check_same("precision", str(self.dtype))
        with processes.together():
            self.rows = corpus.rows("train", config.model.block_size)
            self.sampler = GlobalBatchSampler(
                len(self.rows), config.train.batch_size, config.seed, processes.rank, processes.world_size
            )
            self.held_out = HeldOut(config, corpus, processes, self.dtype)
        self.masker = Masker.of(
            config, config.model.block_size, corpus.tokenizer, config.seed, config.train.batch_size, self.device
        )

        torch.manual_seed(config.seed)
        with processes.together(), enough_memory():
            self.encoder = Encoder(config.model).to(self.device)
        self.optimizers = build_optimizers(self.encoder, config.optim)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.loss: MaskedLoss | DistributedDataParallel = MaskedLoss(self.encoder, self.most_hidden)
        if processes.exchanges:
            self.loss = DistributedDataParallel(self.loss, gradient_as_bucket_view=True)
        self.record = describe_run(config, corpus, self.dtype)
        self.step = self.saved_step = 0
        self.seconds = 0.0
        self.bad_steps = 0
        self.stopping = ""
        self.recorder: Recorder | None = None  # these two are rank 0's
        self.saver: BackgroundSaver | None = None

    @property
    def tokens(self) -> int:
        """Tokens read so far, over all ranks and epochs."""
        return self.step * self.config.train.batch_size * self.config.model.block_size

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return learning_rate(self.step, self.config.train.max_iters, self.config.optim)

    @property
    def most_hidden(self) -> int:
        """How many tokens a micro-batch may have hidden, on any rank."""
        world_size = self.processes.world_size
        by_place = self.masker.most_hidden().reshape(-1, self.config.micro_batch_size(world_size), world_size)
        return int(by_place.sum(1).max())

    @property
    def checkpoint_bytes(self) -> int:
        """Size of a checkpoint at most, but for some kilobytes: the weights and AdamW's two moments of each."""
        return 3 * sum(weight.nbytes for weight in self.encoder.parameters())

    def train(self) -> None:
        """Take the steps that are left and write the results; or, if asked to stop, save and leave the rest for later.

        Raises:
            RunError: on all ranks: the run directory cannot be written, or too many steps in a row were left out.
        """
        try:
            with enough_memory():
                self.take_steps()
            with self.processes.together():
                self.finish()
        except Exception:
            if self.saver:  # what it is writing may be the newest there is; KeyboardInterrupt alone does not wait
                self.saver.wait()
            raise
        finally:
            if self.recorder:
                self.recorder.abandon()

    def take_steps(self) -> None:
        """Train until the last step or until the ranks are asked to stop."""
        config, interval = self.config.train, self.config.checkpoint.interval
        if self.processes.is_first:
            self.recorder = Recorder(self.run_dir, self.step, self.tokens, self.seconds, config.max_iters)
            self.saver = BackgroundSaver(self.run_dir.checkpoints, self.config.checkpoint.keep, self.record)
        if self.lacks_evaluation():
            self.evaluate()
        batches, stopwatch = self.batches(), Stopwatch(self.seconds)
        while self.step < config.max_iters and not self.is_stopping():
            batch = next(batches)
            result = self.take_step(batch, self.rate)
            self.step += 1
            self.count_bad_steps(result)
            last = self.step == config.max_iters
            evaluates = last or self.held_out.is_due(self.step)
            saves = last or (self.step % interval == 0 and not self.bad_steps)
            if evaluates or saves or self.step % config.log_interval == 0:
                self.log(batch, result, stopwatch)
            with stopwatch.paused():
                if evaluates:
                    self.evaluate()
                if saves:
                    self.save()
                if self.saver:
                    self.saver.report()
        self.seconds = stopwatch.read()

    def is_stopping(self) -> bool:
        """Whether any rank has been asked to stop. All ranks ask at the same point, and get the same answer."""
        self.processes.pulse(self.step)
        if not self.stopping:
            reason = self.stop.reason()
            if self.processes.is_first and self.run_dir.stop.exists():
                reason = reason or str(self.run_dir.stop)
            if self.processes.any(bool(reason)):
                self.stopping = next(filter(None, self.processes.exchange(reason)))
        return bool(self.stopping)

    def batches(self) -> Iterator[MaskedBatch]:
        """Read and mask this rank's part of one global batch after another, beginning with the next step's."""
        self.sampler.start_step = self.step
        for selection in self.sampler:
            if self.config.model.dropout:
                # Seeded anew at every step, the generator needs no place in the checkpoint.
                torch.manual_seed(salt(self.config.seed, self.step, self.processes.rank, "dropout"))
            yield load_batch(self.rows, selection, self.masker, self.device)

    def take_step(self, batch: MaskedBatch, rate: float) -> StepResult:
        """Take one optimizer step.

        Args:
            batch: this rank's part of the global batch.
            rate: the learning rate.
        """
        return StepResult(self.add_gradients(batch), self.update(rate), rate)

    def add_gradients(self, batch: MaskedBatch) -> torch.Tensor:
        """Compute the gradients of a batch, exchanged between the ranks, and return this rank's share of the loss.

        The loss is the mean over the masked tokens of the global batch, so each part of it, on whatever rank and in
        whatever micro-batch, is divided by the number of those.
        """
        count = self.processes.sum_(batch.weights.sum()).clamp(min=1)
        micro_batches = batch.micro_batches(self.config.micro_batch_size(self.processes.world_size))
        losses = []
        for index, micro_batch in enumerate(micro_batches):
            with self.exchanging(last=index + 1 == len(micro_batches)):
                with autocast(self.device, self.dtype):
                    loss = self.loss(**vars(micro_batch)) / count
                # DDP averages over the ranks where a sum is wanted.
                self.scaler.scale(loss * self.processes.world_size).backward()
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def update(self, rate: float) -> float:
        """Move the weights along the gradients, which are used up, if all of those are finite.

        Returns:
            the gradients' norm before clipping.
        """
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        weights, largest = list(self.encoder.parameters()), self.config.optim.grad_clip or math.inf
        norm = get_total_norm(weight.grad for weight in weights if weight.grad is not None)
        grad_norm = norm.item()
        if grad_norm > largest:
            clip_grads_with_norm_(weights, largest, norm)
        set_learning_rate(self.optimizers, rate)
        for optimizer in self.optimizers:
            if math.isfinite(grad_norm):
                self.scaler.step(optimizer)
            optimizer.zero_grad()
        self.scaler.update()
        return grad_norm

    def exchanging(self, last: bool) -> AbstractContextManager[None]:
        """Let gradients be exchanged in the last micro-batch of a step alone; until then they add up on each rank."""
        if isinstance(self.loss, DistributedDataParallel) and not last:
            return self.loss.no_sync()
        return nullcontext()

    def count_bad_steps(self, result: StepResult) -> None:
        """Count the steps in a row that were left out, and say on which ranks and rows the loss was not finite.

        Raises:
            RunError: on all ranks, after `max_bad_steps`.
        """
        if math.isfinite(result.grad_norm):
            self.bad_steps = 0
            return
        loss, rows = result.loss.item(), self.sampler.select(self.step - 1).rows
        shares = [json.loads(note) for note in self.processes.exchange(json.dumps([loss, rows.tolist()]))]
        guilty = [rank for rank, (share, _) in enumerate(shares) if not math.isfinite(share)]
        if not guilty and self.scaler.is_enabled() and self.scaler.get_scale() > SMALLEST_SCALE:
            return  # with fp16 a gradient may overflow now and then, and the scaler takes a lower scale
        self.bad_steps += 1
        reason = f"loss {sum(share for share, _ in shares)}, grad_norm {result.grad_norm}"
        if self.recorder:
            self.recorder.skipped(
                step=self.step,
                skipped=reason,
                in_a_row=self.bad_steps,
                ranks=guilty,
                rows=[row for rank, (_, rows) in enumerate(shares) if rank in guilty or not guilty for row in rows],
            )
        if self.bad_steps >= self.config.train.max_bad_steps:
            raise RunError(
                f"{self.bad_steps} steps in a row came to no number, the last, step {self.step}, to {reason}. The "
                f"checkpoints in {self.run_dir.checkpoints} are from before that; a lower optim.lr or a longer "
                f"optim.warmup_iters may help"
            )

    def log(self, batch: MaskedBatch, result: StepResult, stopwatch: Stopwatch) -> None:
        """Record the step just taken."""
        loss, digest = self.processes.sum_(result.loss), self.processes.sum_(batch.digest())
        self.seconds = stopwatch.read()
        if self.recorder:
            self.recorder.training(
                step=self.step,
                epoch=self.step / self.sampler.steps_per_epoch,
                loss=loss.item(),
                lr=result.lr,
                grad_norm=result.grad_norm,
                tokens=self.tokens,
                seconds=self.seconds,
                digest=f"{digest.item():012x}",
            )

    def lacks_evaluation(self) -> bool:
        """Whether the weights are to be measured as they are now, before any step, and have not been."""
        due = self.held_out.is_due(self.step) or self.step == self.config.train.max_iters
        recorded = self.recorder is not None and self.step in self.recorder.val_losses
        return due and not self.processes.any(recorded)

    def evaluate(self) -> None:
        """Measure on held-out text and record it, unless asked to stop meanwhile: then that is left for later."""
        if not self.held_out.interval:
            return
        result = self.held_out.evaluate(self.encoder, self.is_stopping)
        if self.recorder and result:
            self.recorder.evaluation(step=self.step, **result)

    def save(self) -> None:
        """Begin to write a checkpoint (rank 0)."""
        self.saved_step = self.step
        if self.saver and self.recorder:
            self.saver.save(self.step, self.state(), self.recorder.val_losses)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds. Its tensors are those of the training, not copies."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "bad_steps": self.bad_steps,
            "model": self.encoder.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
        }

    def resume(self) -> None:
        """Go back to the newest checkpoint that is whole, if there is one.

        Raises:
            UserError: all checkpoints are damaged, or the newest whole one is of another run, or from after the run's
                end.
        """
        name = self.processes.first_alone(lambda: str(find_newest(self.run_dir.checkpoints) or ""))
        if not name:
            return
        with self.processes.together():
            place = Path(name)
            record = read_record(place)
            if record:
                check_same_run(record["fixed"], self.record["fixed"], place)
            state = load_checkpoint(place)
            try:
                if not record:
                    self.check_corpus(state)
                self.restore(state)
            except UserError as error:
                raise UserError(f"{place} {error}") from error
            except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
                raise UserError(f"{place} is of a model of another shape: choose another run_dir") from error
        if record and (changes := differences(self.record["adjustable"], record["adjustable"])):
            warn(f"{place}: the run goes on with {', '.join(changes)}")

    def check_corpus(self, state: dict[str, Any]) -> None:
        """Compare the corpus with the one of a checkpoint that has no record, being of an earlier version.

        Raises:
            UserError, KeyError, TypeError: as `restore`.
        """
        if state["corpus"] != self.corpus.manifest.sha256["train"]:
            raise UserError(f"was trained on another corpus than {self.corpus.folder}: choose another run_dir")

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what a checkpoint holds.

        Raises:
            UserError: it does not belong to this run; the rest of a sentence that begins with its name.
            LookupError, TypeError, ValueError, AttributeError, RuntimeError: it is of another model.
        """
        step, seconds, bad_steps = state["step"], state["seconds"], state["bad_steps"]
        if not (type(step) is type(bad_steps) is int and min(step, bad_steps) >= 0):
            raise ValueError("a count is no whole number")
        if not (type(seconds) is float and 0 <= seconds < math.inf):
            raise ValueError("the time is no number")
        if state["step"] > self.config.train.max_iters:
            raise UserError(f"is beyond train.max_iters {self.config.train.max_iters}: raise that")
        check_weights(state["model"], self.config.model)
        self.encoder.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            # The groups' settings are the config's, which may have changed.
            groups = optimizer.state_dict()["param_groups"]
            check_state(optimizer, saved["state"])
            optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
        if not all(type(value) in (int, float) and 0 <= value < LARGEST_SCALE for value in state["scaler"].values()):
            raise ValueError("the scale of the gradients is no number")
        if state["scaler"] and self.scaler.is_enabled():  # fp16 before and now
            self.scaler.load_state_dict(state["scaler"])
        self.step = self.saved_step = step
        self.seconds, self.bad_steps = seconds, bad_steps

    def finish(self) -> None:
        """Write what is left to write (rank 0): at the end of the run its results, before that a checkpoint.

        Raises:
            RunError: the disk does not take it.
        """
        if not (self.recorder and self.saver):
            return
        try:
            if self.step > self.saved_step:
                self.save()
            self.saver.wait()
            self.recorder.close()
            self.run_dir.stop.unlink(missing_ok=True)
            if self.stopping:
                self.run_dir.stopped.write_text(f"{self.stopping}\n", encoding="utf-8")
            else:
                with replacing(self.run_dir.model) as file:
                    write(copy_to_cpu(self.encoder.state_dict()), file)
        except OSError as error:
            raise RunError(f"{self.run_dir.path} cannot be written ({error.strerror}): {MAKE_ROOM}") from error
        if self.saver.failed:
            raise RunError(f"{self.run_dir.path} has no checkpoint of step {self.step}: {MAKE_ROOM}")

    def machine(self) -> dict[str, str | int]:
        """What it is trained on."""
        return describe_machine(self.device, self.dtype, self.processes.world_size)

    def describe(self) -> str:
        """What is about to be trained, in a line."""
        weights = sum(weight.numel() for weight in self.encoder.parameters())
        precision = str(self.dtype).removeprefix("torch.")
        return (
            f"training {weights / 1e6:.1f} M weights in {precision} on {self.processes.world_size} x "
            f"{self.device.type}, step {self.step} to {self.config.train.max_iters} "
            f"({self.sampler.steps_per_epoch} steps an epoch), in {self.run_dir.path}"
        )

    def misfits(self) -> list[str]:
        """Which values of the config do not fit the run or its corpus, and what becomes of them, a line for each."""
        parts = shortened_parts(self.config.train.max_iters, self.config.optim)
        return parts + unused_entries(self.corpus, self.config)

    def summarize(self) -> str:
        """What came of the run."""
        if self.stopping:
            return (
                f"stopped by {self.stopping} at step {self.step} of {self.config.train.max_iters}, saved in "
                f"{self.run_dir.path}; the same command goes on from there"
            )
        events = read_events(self.run_dir.metrics)
        losses = [event["val_loss"] for event in events if event.get("val_loss") is not None]
        fell = f"held-out loss {losses[0]:.3f} -> {losses[-1]:.3f}" if losses else "no evaluation"
        return (
            f"done: {self.step} steps in {self.seconds:.0f} s of training, {fell}\n"
            f"weights: {self.run_dir.model}\nloss plot: {self.run_dir.curves}"
        )


def check_vocabulary(corpus: Corpus, config: Config) -> None:
    """Raise `UserError` if the model has no place for a token of the corpus."""
    needed, size = corpus.tokenizer.vocab_size, config.model.entries
    if needed > size:
        raise UserError(
            f"{corpus.folder} has a vocabulary of {needed}, more than model.vocab_size {size}: set that to {needed}"
        )


def unused_entries(corpus: Corpus, config: Config) -> list[str]:
    """Say in a line how many entries of the model's vocabulary no token of the corpus has, if there are any."""
    needed, size = corpus.tokenizer.vocab_size, config.model.entries
    if size <= needed:
        return []
    unused = "1 entry is" if size - needed == 1 else f"{size - needed} entries are"
    return [
        f"model.vocab_size {size} is larger than the vocabulary of {config.data.path} ({needed}): {unused} never used"
    ]
