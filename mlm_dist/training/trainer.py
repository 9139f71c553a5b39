"""The training loop. `python -m mlm_dist.benchmark` measures the parts of a step; most is the loss, model/loss.py."""

from collections.abc import Sequence

import torch

from mlm_dist.config import Config
from mlm_dist.data.corpus import Corpus
from mlm_dist.data.rows import choose_rows
from mlm_dist.data.token_frequency import weights_by_frequency
from mlm_dist.distributed import Processes
from mlm_dist.errors import RunError
from mlm_dist.evaluation import MixtureValidator
from mlm_dist.fault_points import reached
from mlm_dist.model.registry import build_model
from mlm_dist.precision import choose_dtype
from mlm_dist.run.background_saver import BackgroundSaver, copy_to_cpu
from mlm_dist.run.checkpoint import list_checkpoints
from mlm_dist.run.origin import Origin
from mlm_dist.run.parameters import best_parameters
from mlm_dist.run.record import describe_run
from mlm_dist.run.recorder import Recorder, Stopwatch
from mlm_dist.run.run_dir import MAKE_ROOM, RunDir
from mlm_dist.training.average import ParameterAverage
from mlm_dist.training.compilation import forget_compiled
from mlm_dist.training.inputs import InputReader
from mlm_dist.training.memory import check_memory, user_error_if_out_of_memory
from mlm_dist.training.milestones import milestone_steps
from mlm_dist.training.optim import build_optimizers
from mlm_dist.training.patience import Patience
from mlm_dist.training.skipped_steps import SkippedSteps
from mlm_dist.training.state import StepResult, TrainState
from mlm_dist.training.step import Step, leave_default_stream, with_graph
from mlm_dist.training.stop_agreement import StopAgreement
from mlm_dist.training.stopping import StopFile, StopRequest


class Trainer:
    """Trains an encoder on corpora with one tokenizer, on one rank or as one of many.

    Attributes:
        state: what a checkpoint stores.
        step: takes the next optimizer step with a learning rate.
        eager_step: the same, operation by operation.
        origin: what the run started from, if its config has `init_from`.
        milestones: what the config has for each step that is a milestone.
        stop: whether the run stops before its last step, and why.
        patience: whether the run ends early, because its validation loss no longer improves.
        final_step: the step of the parameters in model.pth, once it is written (rank 0).

    Raises:
        UserError: the config does not fit the corpora or the machine.
    """

    def __init__(
        self, config: Config, corpora: Sequence[Corpus], processes: Processes, run_dir: RunDir, stop: StopRequest
    ) -> None:
        self.config = config
        self.corpora = corpora
        self.tokenizer = corpora[0].tokenizer
        self.processes = processes
        self.run_dir = run_dir
        self.stop = StopAgreement(stop, StopFile(run_dir.stop), processes)
        self.patience = Patience(config, processes)
        self.device = processes.device
        leave_default_stream(self.device)
        with processes.raise_on_all_ranks():
            config.check_vocab_size(self.tokenizer.vocab_size)
            check_memory(config, self.device, processes.world_size)
            self.dtype = choose_dtype(config.precision, self.device)
        processes.check_same("precision", str(self.dtype))
        with processes.raise_on_all_ranks():
            rows, self.sampler = choose_rows(config, corpora, processes.rank, processes.world_size)
            token_weights = weights_by_frequency(config, rows.corpora, self.dtype, self.device)
            self.validator = MixtureValidator(config, corpora, processes, self.dtype)
            self.milestones = milestone_steps(config, corpora)

        torch.manual_seed(config.seed)
        with processes.raise_on_all_ranks(), user_error_if_out_of_memory():
            encoder = build_model(config.model).to(self.device)
            average = ParameterAverage(encoder, config.optim.ema) if config.optim.ema else None
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.state = TrainState(encoder, build_optimizers(encoder, config.optim), scaler, average)
        reader = InputReader(rows, self.sampler, self.device)
        self.eager_step = Step(config, self.state, reader, self.tokenizer, token_weights, processes, self.dtype)
        self.step = with_graph(self.eager_step)
        self.skipped_steps = SkippedSteps(self.eager_step, config.train.max_bad_steps)
        self.record = describe_run(config, corpora, self.dtype)
        self.recorder = Recorder([])  # rank 0 replaces it in `loop`
        self.saver = BackgroundSaver(run_dir.checkpoints, config.checkpoint.keep, self.record)
        self.origin: Origin | None = None
        self.saved_step, self.final_step = 0, 0

    @property
    def tokens(self) -> int:
        """Tokens read so far, over all ranks and epochs."""
        return self.eager_step.phases.rows_before(self.state.step) * self.config.model.block_size

    @property
    def last_step(self) -> int:
        """The step at which the run ends, as far as is known."""
        return self.state.step if self.patience.is_out else self.config.train.max_iters

    def train(self) -> None:
        """Run the remaining steps and write the results; on a stop request, save a checkpoint and return.

        Raises:
            RunError: on all ranks: the run directory cannot be written, or too many consecutive steps were skipped.
            UserError: out of memory.
        """
        try:
            with user_error_if_out_of_memory():
                self.loop()
            with self.processes.raise_on_all_ranks():
                self.finish()
        except Exception:
            self.saver.wait()  # it may be writing the newest checkpoint. After KeyboardInterrupt, nothing waits for it.
            raise
        finally:
            self.recorder.abandon()

    def loop(self) -> None:
        """Train until the last step or a stop request."""
        state, settings, interval = self.state, self.config.train, self.config.checkpoint.interval
        if self.processes.is_rank_zero:
            self.recorder = Recorder.open(self.run_dir, self.config, state.step, self.tokens, state.seconds)
        if self.lacks_evaluation():
            self.evaluate()
        self.save_milestone()  # of the step that the run resumes at, if it is missing
        is_new = state.step == 0 and not list_checkpoints(self.run_dir.checkpoints)
        if is_new and self.patience.is_best(0, self.recorder.val_losses):
            self.save()  # an early end may need the parameters of `init_from`
        self.patience.check(state.step, self.recorder.val_losses)
        stopwatch = Stopwatch(state.seconds)
        while state.step < self.last_step and not self.is_stopping():
            with stopwatch.paused():
                self.begin_phase()
            result = self.train_step()
            is_last = state.step == settings.max_iters
            should_evaluate = is_last or self.validator.is_due(state.step)
            should_save = is_last or state.step % interval == 0
            is_milestone = state.step in self.milestones  # its copy waits for the steps before it
            should_log = should_evaluate or should_save or is_milestone or state.step % settings.log_interval == 0
            self.skipped_steps.add(result, self.recorder, read_now=should_log)
            if should_log:
                self.log(result, stopwatch)
            with stopwatch.paused():
                if should_evaluate:
                    self.evaluate()
                    self.patience.check(state.step, self.recorder.val_losses)
                self.save_milestone()  # before the checkpoint, so that a run that resumes there has it
                is_best = self.patience.is_best(state.step, self.recorder.val_losses)
                if is_best or (should_save and (is_last or not state.skipped_steps)):
                    self.save()
                self.saver.report()
        self.skipped_steps.read(self.recorder)
        state.seconds = stopwatch.read()

    def begin_phase(self) -> None:
        """Begin the phase of the next step and compile its step, unless that is done. All ranks call this."""
        phase = self.eager_step.phases.at(self.state.step)
        if phase != self.eager_step.phase:
            self.step = self.eager_step  # frees the graph of the phase before
            forget_compiled()
            self.eager_step.begin(phase)
            self.step = with_graph(self.eager_step)
        self.eager_step.compile(self.last_step)

    def is_stopping(self) -> bool:
        """Whether all ranks stop before the next step. A collective: all ranks return the same value."""
        self.processes.heartbeat(self.state.step)
        return self.stop.is_reached()

    def train_step(self) -> StepResult:
        """Take the next optimizer step."""
        reached("step begins")
        lr = self.eager_step.next_lr
        batch, loss, grad_norm = self.step(lr)
        self.state.step += 1
        if self.state.average:
            self.state.average.update(self.state.step)
        reached("step taken")
        return StepResult(self.state.step, batch, loss, grad_norm, lr)

    def log(self, result: StepResult, stopwatch: Stopwatch) -> None:
        """Record the step just taken."""
        local = torch.stack([result.loss.double(), result.batch.digest().double()])  # both are exact in fp64
        loss, digest = self.processes.sum_(local).tolist()
        self.state.seconds = stopwatch.read()
        self.recorder.log_step(
            step=self.state.step,
            epoch=self.eager_step.phases.rows_before(self.state.step) / self.sampler.rows_per_epoch,
            loss=loss,
            lr=result.lr,
            grad_norm=result.grad_norm.item(),
            tokens=self.tokens,
            seconds=self.state.seconds,
            digest=f"{int(digest):012x}",
        )

    def lacks_evaluation(self) -> bool:
        """Whether an evaluation is due before the next step and is not recorded yet."""
        is_due = self.validator.is_due(self.state.step) or self.state.step == self.config.train.max_iters
        return is_due and not self.processes.any(self.state.step in self.recorder.val_losses)

    def evaluate(self) -> None:
        """Evaluate and record the result. On a stop request, nothing is recorded, and the next start evaluates."""
        if not self.validator.interval:
            return
        if result := self.validator.evaluate(self.state.model, self.is_stopping):
            self.recorder.log_evaluation(step=self.state.step, **result)
            reached("evaluated")

    def save_milestone(self) -> None:
        """Start to write a milestone, if this step is one (rank 0)."""
        if self.processes.is_rank_zero and self.state.step in self.milestones:
            self.saver.save_milestone(self.run_dir.milestones, self.state.step, self.state.milestone())

    def save(self) -> None:
        """Start to write a checkpoint (rank 0)."""
        self.saved_step = self.state.step
        if self.processes.is_rank_zero:
            self.saver.save(self.state.step, self.state.state_dict(), self.recorder.val_losses)

    def finish(self) -> None:
        """Write the results (rank 0): the final parameters, or, after a stop request, a checkpoint and the reason.

        The final parameters are those of the last step, or, if the run is out of patience, the best ones.

        Raises:
            RunError: the run directory cannot be written.
        """
        if not self.processes.is_rank_zero:
            return
        with self.run_dir.run_error_if_unwritable():
            if self.state.step > self.saved_step:
                self.save()
            self.saver.wait()
            self.recorder.close()
            self.run_dir.stop.unlink(missing_ok=True)
            if self.stop.reason:
                self.run_dir.stopped.write_text(f"{self.stop.reason}\n", encoding="utf-8")
            else:
                reached("results begin")
                self.final_step, parameters = self.state.step, self.state.model.state_dict()
                if self.patience.is_out:
                    self.final_step, parameters = best_parameters(self.run_dir, self.recorder.val_losses)
                self.run_dir.write_model(copy_to_cpu(parameters))
        if self.saver.failed:
            raise RunError(f"{self.run_dir.path} has no checkpoint of step {self.state.step}: {MAKE_ROOM}")
