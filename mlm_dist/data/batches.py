"""From row numbers to masked batches on the device: one gather from the memory map, then the masker."""

import torch

from mlm_dist.data.corpus import Tokens
from mlm_dist.data.masking import MaskedBatch, Masker
from mlm_dist.data.sampler import Selection


def load_batch(matrix: Tokens, selection: Selection, masker: Masker, device: torch.device) -> MaskedBatch:
    """Read rows and hide some of their tokens.

    Args:
        matrix: (rows of the corpus, T) token ids.
        selection: which of them to read, and when: the masker hides other tokens of a row at another time.
        masker: works on `device`.
        device: where the batch is wanted.
    """
    rows = selection.rows
    parts = [torch.from_numpy(part) for part in (matrix[rows].astype("int64"), rows, masker.rate(selection))]
    if device.type == "cuda":
        # From pinned memory the copy runs while the GPU still works on the step before.
        parts = [part.pin_memory().to(device, non_blocking=True) for part in parts]
    tokens, numbers, rates = parts
    return masker(tokens, numbers, selection.epoch, rates)
