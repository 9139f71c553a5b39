"""An optimizer step: from the inputs to the updated parameters, operation by operation or as one CUDA graph."""

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch.nn.parallel import DistributedDataParallel

from mlm_dist.config import Config
from mlm_dist.data.masking import MaskedBatch, Masker
from mlm_dist.data.randomness import derive_key
from mlm_dist.data.tokenizer import Tokenizer
from mlm_dist.distributed import Processes, maybe_no_sync
from mlm_dist.fault_points import reached
from mlm_dist.model import kernels
from mlm_dist.model.loss import MaskedLoss
from mlm_dist.output import warn
from mlm_dist.phases import Phase, Phases
from mlm_dist.precision import autocast
from mlm_dist.training.compilation import compile_loss, should_compile
from mlm_dist.training.inputs import InputReader, StepInputs
from mlm_dist.training.kernel_choice import choose_kernels
from mlm_dist.training.optim import update, update_without_host
from mlm_dist.training.schedule import learning_rate
from mlm_dist.training.state import TrainState

# Steps before a capture: kernels are compiled and the optimizer's state is created. DDP needs eleven, see torch's notes
# on CUDA semantics.
WARM_UP_STEPS = 3
WARM_UP_STEPS_WITH_DDP = 11

MOST_COMMUTING = 2  # ranks whose sum is the same in any order
SMALLEST_COUNT = 1e-6  # for a batch without masked tokens. Weights by frequency may add up to less than 1


class Outcome(NamedTuple):
    """What a step returns, on the device.

    Attributes:
        batch: this rank's part of the global batch. A graph overwrites it in the next step.
        loss: (), this rank's part of the loss.
        grad_norm: (), of the global gradient before clipping.
    """

    batch: MaskedBatch
    loss: torch.Tensor
    grad_norm: torch.Tensor


class Step:
    """Takes steps, operation by operation.

    Args:
        config: of the run.
        state: what the steps change. The caller counts them.
        reader: reads the inputs.
        tokenizer: of the corpora.
        token_weights: as `Masker` takes them.
        processes: all ranks.
        dtype: the dtype of matrix products.

    Attributes:
        phase: the current one. The attributes below depend on the shape of its batches.
        micro_batch_size: rows per forward pass.
        loss: the encoder with its loss.
        model: `loss`, wrapped by DDP in a process group.
        without_host: whether the device clips the gradient and skips steps, so that the host need not wait.
    """

    def __init__(
        self,
        config: Config,
        state: TrainState,
        reader: InputReader,
        tokenizer: Tokenizer,
        token_weights: torch.Tensor | None,
        processes: Processes,
        dtype: torch.dtype,
    ) -> None:
        self.config = config
        self.state = state
        self.reader = reader
        self.tokenizer = tokenizer
        self.token_weights = token_weights
        self.processes = processes
        self.device = processes.device
        self.dtype = dtype
        self.without_host = self.device.type == "cuda"
        self.phases = Phases(config)
        kernels.switch_on_all()  # another run of this process may have switched some off
        self.begin(self.phases.at(0))

    def begin(self, phase: Phase) -> None:
        """Begin a phase, with batches of another shape. All ranks call this."""
        self.phase, world_size = phase, self.processes.world_size
        config = self.phases.config_of(phase, world_size)
        length, rows = config.model.block_size, config.train.batch_size
        masker = Masker.from_config(config, length, self.tokenizer, config.seed, rows, self.device, self.token_weights)
        self.reader.begin(masker)
        choose_kernels(config.model, masker.slots, self.processes, self.dtype)
        if length < self.config.model.block_size:  # evaluations read whole rows in every phase
            choose_kernels(self.config.model, masker.slots, self.processes, self.dtype)
        self.micro_batch_size = config.micro_batch_size(world_size)
        self.loss = MaskedLoss(self.state.encoder, masker.max_masked(self.micro_batch_size, world_size))
        # Removes the hooks of the old DDP before a new one adds its own.
        self.model: MaskedLoss | DistributedDataParallel = self.loss
        self.model = self.wrap_loss()
        self.has_final_buckets = world_size <= MOST_COMMUTING
        self.compiling_is_decided = False

    @property
    def can_be_captured(self) -> bool:
        """Whether a graph can replay these steps.

        Not on a CPU, not with dropout, whose generator is seeded at every step, and not in debug mode, which looks at
        every operation.
        """
        return self.without_host and not self.config.model.dropout and not self.config.debug

    @property
    def next_lr(self) -> float:
        """The learning rate of the next step."""
        return learning_rate(self.state.step, self.config.train.max_iters, self.config.optim)

    def wrap_loss(self) -> MaskedLoss | DistributedDataParallel:
        """The loss, wrapped by DDP in a process group. All ranks call this."""
        if not self.processes.is_distributed:
            return self.loss
        return DistributedDataParallel(self.loss, gradient_as_bucket_view=True)

    def compile(self, last_step: int) -> None:
        """Compile the loss for the rest of the phase, if that is worth it, once. All ranks call this.

        Args:
            last_step: at which the run ends.

        Raises:
            UserError: on all ranks: it must be compiled, and cannot.
        """
        if self.compiling_is_decided:
            return
        self.compiling_is_decided = True
        world_size, steps_left = self.processes.world_size, min(last_step, self.phase.end) - self.state.step
        if should_compile(self.phases.config_of(self.phase, world_size), self.device, world_size, steps_left):
            micro_batch = self.next_batch().micro_batches(self.micro_batch_size)[0]
            with self.processes.raise_on_all_ranks():
                compile_loss(self.loss, micro_batch, self.dtype, is_required=self.config.compile == "on")

    def __call__(self, lr: float) -> Outcome:
        """Take the next step."""
        return self.run(self.read(lr).to(self.device), lr)

    def read(self, lr: float) -> StepInputs:
        """Read the inputs of the next step into the memory of the host."""
        return self.reader.read(self.state.step, lr)

    def run(self, inputs: StepInputs, lr: float) -> Outcome:
        """Take the step with these inputs, which are on the device. `lr` is for an update by the host."""
        batch = self.reader.batch(inputs)
        if not self.has_final_buckets:
            self.settle_buckets(batch)
        loss = self.forward_backward(batch)
        return Outcome(batch, loss, self.update(inputs.lr if self.without_host else lr))

    def settle_buckets(self, batch: MaskedBatch) -> None:
        """Let DDP choose its final buckets before the first step, with a gradient that is not used.

        After the first gradient, DDP orders its buckets anew. The order in which an all-reduce adds the gradients of
        more than two ranks depends on the place in a bucket, so the first step after a resume would be rounded
        differently from the same step of an undisturbed run.
        """
        self.forward_backward(batch)
        for optimizer in self.state.optimizers:
            optimizer.zero_grad()
        self.has_final_buckets = True

    def next_batch(self) -> MaskedBatch:
        """Read and mask this rank's part of the next step's global batch, without taking the step."""
        return self.reader.batch(self.read(math.nan).to(self.device))

    def forward_backward(self, batch: MaskedBatch) -> torch.Tensor:
        """Compute the gradient of a batch, summed over the ranks, and return this rank's part of the loss.

        The loss is the mean over the masked tokens of the global batch, so every micro-batch on every rank is divided
        by their number.
        """
        if self.config.model.dropout:  # seeded at every step, the generator needs no state in the checkpoint
            torch.manual_seed(derive_key(self.config.seed, self.state.step, self.processes.rank, "dropout"))
        count = self.processes.start_sum(batch.loss_weights.sum())
        micro_batches = batch.micro_batches(self.micro_batch_size)
        losses = []
        for index, micro_batch in enumerate(micro_batches):
            reached("micro-batch begins")
            with maybe_no_sync(self.model, is_last=index + 1 == len(micro_batches)):
                with autocast(self.device, self.dtype):
                    loss = self.model(**vars(micro_batch)) / count().clamp(min=SMALLEST_COUNT)
                # DDP averages the gradients over the ranks, but their sum is needed.
                total = loss if self.processes.world_size == 1 else loss * self.processes.world_size
                self.state.scaler.scale(total).backward()
            losses.append(loss.detach())
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def update(self, lr: float | torch.Tensor) -> torch.Tensor:
        """Update the parameters if the gradient is finite, clear the gradient, and return its norm before clipping."""
        state, parameters, clip = self.state, list(self.state.encoder.parameters()), self.config.optim.grad_clip
        if self.without_host:
            lr = torch.as_tensor(lr, dtype=torch.float32, device=self.device)
            return update_without_host(parameters, state.optimizers, state.scaler, lr, clip)
        return update(parameters, state.optimizers, state.scaler, float(lr), clip)

    def start_over(self) -> None:
        """After a failed capture, clear the gradients and reset scaler and DDP. All ranks call this."""
        for optimizer in self.state.optimizers:
            optimizer.zero_grad()
        # Keeps the scale, which the steps before the capture have created, and forgets whether a gradient was infinite.
        self.state.scaler.update(self.state.scaler.get_scale())
        self.model = self.loss  # its hooks end before those of another DDP begin
        self.model = self.wrap_loss()


class Graph(Protocol):
    """Operations that are captured once and replayed in the same memory."""

    def capture(self, body: Callable[[], Outcome]) -> Outcome:
        """Capture the operations of a function without running them, and return its result.

        Raises:
            Exception: it cannot be captured.
        """

    def replay(self) -> None:
        """Run the operations."""


class CUDAGraph:
    """A `Graph` of the current stream, which must not be CUDA's default stream."""

    def __init__(self) -> None:
        self.graph = torch.cuda.CUDAGraph()

    def capture(self, body: Callable[[], Outcome]) -> Outcome:
        """Capture the operations of a function. Other threads may call CUDA meanwhile: NCCL's, and the reader's."""
        stream = torch.cuda.current_stream()
        with torch.cuda.graph(self.graph, stream=stream, capture_error_mode="thread_local"):
            return body()

    def replay(self) -> None:
        """Start the operations on the current stream."""
        self.graph.replay()


class GraphStep:
    """Takes the steps of a `Step` by replaying a graph of one, after some operation by operation.

    A graph keeps every Python number and every address that it was captured with. What changes from step to step is
    therefore in tensors, and the inputs are copied into the memory of those of the captured step.

    If the capture fails on any rank, all of them go on operation by operation.

    Args:
        step: the step; `can_be_captured`.
        graph: an empty graph.
    """

    def __init__(self, step: Step, graph: Graph) -> None:
        self.step = step
        self.graph = graph
        self.steps_before_capture: float = WARM_UP_STEPS_WITH_DDP if step.processes.is_distributed else WARM_UP_STEPS
        self._captured: tuple[StepInputs, Outcome] | None = None

    def __call__(self, lr: float) -> Outcome:
        """Take the next step."""
        if self.steps_before_capture:
            self.steps_before_capture -= 1
            return self.step(lr)
        read = self.step.read(lr)
        if self._captured is None:
            self._captured = self._capture(read.to(self.step.device))
        if self._captured is None:
            self.steps_before_capture = math.inf
            return self.step.run(read.to(self.step.device), lr)
        inputs, outcome = self._captured
        inputs.buffer.copy_(read.buffer, non_blocking=True)
        self.graph.replay()
        loss, grad_norm = torch.stack([outcome.loss, outcome.grad_norm])  # the next step overwrites those of the graph
        return Outcome(outcome.batch, loss, grad_norm)

    def _capture(self, inputs: StepInputs) -> tuple[StepInputs, Outcome] | None:
        """Capture a step with these inputs, which are overwritten later; None if this fails on any rank."""
        outcome, failure = None, ""
        try:
            outcome = self.graph.capture(lambda: self.step.run(inputs, math.nan))
        except Exception as error:  # whatever it is, the step is right without a graph
            failure = f"{type(error).__name__}: {error}".splitlines()[0]
        failures = self.step.processes.all_gather(failure)
        if outcome and not any(failures):
            return inputs, outcome
        if self.step.processes.is_rank_zero:
            reason = next(filter(None, failures))
            warn(f"the step cannot be captured in a CUDA graph, so its operations are started one by one: {reason}")
        self.step.start_over()
        return None


def with_graph(step: Step) -> Step | GraphStep:
    """The step, replayed from a graph if it can be captured."""
    return GraphStep(step, CUDAGraph()) if step.can_be_captured else step


def leave_default_stream(device: torch.device) -> None:
    """On a GPU, use a stream that can be captured. DDP must be built on the stream on which it is captured later."""
    if device.type == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]
