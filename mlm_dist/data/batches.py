"""From row numbers to masked batches on the device: one gather from the memory map, then the masker."""

import torch

from mlm_dist.data.corpus import Tokens
from mlm_dist.data.masking import MaskedBatch, Masker
from mlm_dist.data.sampler import Rows


def load_batch(matrix: Tokens, rows: Rows, epoch: int, masker: Masker, device: torch.device) -> MaskedBatch:
    """Read rows and hide some of their tokens.

    Args:
        matrix: (rows of the corpus, T) token ids.
        rows: (B,) which of them to read.
        epoch: for the masker, which hides other tokens of a row in each.
        masker: works on `device`.
        device: where the batch is wanted.
    """
    tokens = torch.from_numpy(matrix[rows].astype("int64"))
    numbers = torch.from_numpy(rows)
    if device.type == "cuda":
        # From pinned memory the copy runs while the GPU still works on the step before.
        tokens = tokens.pin_memory().to(device, non_blocking=True)
        numbers = numbers.pin_memory().to(device, non_blocking=True)
    return masker(tokens, numbers, epoch)
