"""The inputs of a step: the rows of this rank, what their masks depend on, and the learning rate.

They lie in one buffer, so that a single copy brings them to a GPU, where a captured graph reads them from always the
same memory. The corpus is copied there too if it fits, and then only the starts of the rows travel. Otherwise, and if
there are several corpora, a thread reads the rows of the next steps from the memory maps, into pinned memory, while a
step runs.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from mlm_dist.data.masking import MaskedBatch, Masker, MaskInputs
from mlm_dist.data.rows import TrainingRows
from mlm_dist.data.sampler import GlobalBatchSampler
from mlm_dist.data.shards import StoredTokens, Tokens

DEVICE_SHARE = 0.1  # of the free memory of a GPU, which the corpus may take
STEPS_AHEAD = 2
UPLOAD_BYTES = 1 << 26


class StepInputs(NamedTuple):
    """The inputs of a step of this rank, of B rows of T tokens.

    Attributes:
        buffer: (bytes,) uint8, whose memory the others share.
        mask: what the masks depend on.
        starts: (B,) int64, the index of the first token of each row in the corpus, if that is on the device.
        lr: () float32, the learning rate.
        tokens: (B, T) token ids, signed integers with the bits of the corpus; (B, 0) if the corpus is on the device.
    """

    buffer: torch.Tensor
    mask: MaskInputs
    starts: torch.Tensor
    lr: torch.Tensor
    tokens: torch.Tensor

    @classmethod
    def in_buffer(cls, buffer: torch.Tensor, rows: int, dtype: torch.dtype) -> "StepInputs":
        """The inputs in a buffer. The largest elements come first, so that all are aligned."""
        rest = len(buffer) - inputs_bytes(rows, 0, dtype)
        rates, starts, hashes, lr, tokens = torch.split(buffer, [8 * rows, 8 * rows, 4 * rows, 4, rest])
        mask = MaskInputs(hashes.view(torch.int32), rates.view(torch.float64))
        shape = rows, rest // (rows * dtype.itemsize)
        return cls(buffer, mask, starts.view(torch.int64), lr.view(torch.float32)[0], tokens.view(dtype).view(shape))

    def to(self, device: torch.device) -> "StepInputs":
        """The inputs in memory of the device. On a CPU they stay where they are."""
        moved = self.buffer.to(device, non_blocking=True)
        return StepInputs.in_buffer(moved, len(self.tokens), self.tokens.dtype)


def inputs_bytes(rows: int, length: int, dtype: torch.dtype) -> int:
    """Bytes of the inputs of a step, with `length` tokens of each row."""
    return 20 * rows + 4 + rows * length * dtype.itemsize


class InputReader:
    """Reads the inputs of steps, and turns them into batches on the device.

    Args:
        rows: of the corpora.
        sampler: selects the rows of a step.
        device: of the batches.

    Attributes:
        on_device: the corpus, if it is on the device.
    """

    def __init__(self, rows: TrainingRows, sampler: GlobalBatchSampler, device: torch.device) -> None:
        self.rows = rows
        self.sampler = sampler
        self.device = device
        tokens, *others = rows.corpora
        self.id_bits = (1 << 8 * rows.dtype.itemsize) - 1
        self.dtype = {2: torch.int16, 4: torch.int32}[rows.dtype.itemsize]
        fits = not others and fits_on(self.device, tokens.nbytes)
        self.on_device = upload(tokens, self.dtype, self.device) if fits else None

    def begin(self, masker: Masker) -> None:
        """Read the rows of the next steps for a masker. If its rows are shorter, each row is cut into several."""
        self.masker = masker
        self.pieces = self.rows.block_size // masker.block_size
        self.columns = torch.arange(masker.block_size, device=self.device)
        self._read = ReadAhead(self._read_now) if self.device.type == "cuda" else self._read_now

    def read(self, step: int, lr: float) -> StepInputs:
        """Read the inputs of a step into the memory of the host."""
        inputs = self._read(step)
        inputs.lr.fill_(lr)
        return inputs

    def batch(self, inputs: StepInputs) -> MaskedBatch:
        """Mask the rows of a step. The inputs are on the device, and no operation of this waits for it."""
        stored = inputs.tokens
        if self.on_device is not None:
            stored = self.on_device.take((inputs.starts[:, None] + self.columns) % len(self.on_device))
        return self.masker.mask(stored.long() & self.id_bits, inputs.mask)

    def _read_now(self, step: int) -> StepInputs:
        selection = self.sampler.select(step)
        pieces = selection.pieces(self.pieces, self.sampler.rows_at(step))
        count, length = len(pieces.rows), 0 if self.on_device is not None else self.masker.block_size
        size = inputs_bytes(count, length, self.dtype)
        buffer = torch.empty(size, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        inputs = StepInputs.in_buffer(buffer, count, self.dtype)
        for view, value in zip(inputs.mask, self.masker.inputs(pieces), strict=True):
            view.copy_(value)
        if self.on_device is None:
            tokens = as_signed(self.rows.read(selection)).reshape(len(selection.rows), self.pieces, -1)
            inputs.tokens.copy_(torch.from_numpy(tokens.swapaxes(0, 1).reshape(count, -1)))
        else:
            first = torch.arange(self.pieces)[:, None] * self.masker.block_size
            inputs.starts.copy_((first + torch.from_numpy(self.rows.starts(selection))).flatten())
        return inputs


class ReadAhead:
    """Reads the inputs of the next steps in a thread. While it waits for the disk, it holds no lock.

    Args:
        read: reads the inputs of a step.
    """

    def __init__(self, read: Callable[[int], StepInputs]) -> None:
        self.read = read
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rows")
        self._pending: dict[int, Future[StepInputs]] = {}

    def __call__(self, step: int) -> StepInputs:
        """The inputs of a step, and a start on those of the steps after it."""
        steps = range(step, step + STEPS_AHEAD + 1)
        self._pending = {s: self._pending.get(s) or self._thread.submit(self.read, s) for s in steps}
        return self._pending.pop(step).result()


def fits_on(device: torch.device, size: int) -> bool:
    """Whether the corpus, of `size` bytes, is copied to the device: to a GPU with ten times as much free memory."""
    return device.type == "cuda" and size <= DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]


def as_signed(tokens: Tokens) -> npt.NDArray[np.signedinteger[Any]]:
    """The bits of token ids as signed integers, because torch gathers no unsigned ones."""
    return tokens.view(f"<i{tokens.itemsize}")


def upload(tokens: StoredTokens, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Copy memory maps to a device as signed integers, some megabytes at a time."""
    uploaded = torch.empty(len(tokens), dtype=dtype, device=device)
    size = UPLOAD_BYTES // dtype.itemsize
    for start in range(0, len(tokens), size):
        uploaded[start : start + size] = torch.from_numpy(as_signed(np.array(tokens[start : start + size])))
    return uploaded
