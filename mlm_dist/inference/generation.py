"""Generating text of any length with a trained model: from nothing, after a prompt, or in the gaps of a text."""

import itertools
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from mlm_dist.data.tokenizer import MASK
from mlm_dist.inference.marks import GAP
from mlm_dist.inference.predictor import MAX_BATCH_SIZE, Predictor, Window
from mlm_dist.inference.request import Request
from mlm_dist.inference.unmasking import Rows, unmask

SHADE = " ░░░"  # shown for a masked token, about as wide as most tokens

Watch = Callable[[str], None]


class Generation(NamedTuple):
    """A generated text.

    Attributes:
        text: the whole text, given and generated. Bytes that are not a complete character become U+FFFD.
        written: the generated text of each gap. The continuation of a prompt is one gap.
        tokens: token ids of the whole text.
        passes: number of forward passes.
    """

    text: str
    written: list[str]
    tokens: list[int]
    passes: int


class Template(NamedTuple):
    """A text to generate: its token ids, with mask tokens in the gaps, and the positions of each gap."""

    ids: list[int]
    gaps: list[slice]


class Stretch(NamedTuple):
    """Masked tokens that are generated together: their positions in the text, and the window the model reads."""

    positions: list[int]
    window: Window


def generate(predictor: Predictor, request: Request, watch: Watch | None = None) -> list[Generation]:
    """Generate the samples of a request.

    A text that fits the model's block size is generated as a whole. A longer text is generated from left to right in
    stretches of at most half a block, each in the window with the most known tokens.

    Args:
        predictor: the model.
        request: what to generate, and how.
        watch: called after each pass with the text so far, up to the end of the window, masked tokens shaded. The
            samples are then generated one at a time instead of in batches.
    """
    template = read_template(predictor, request)
    size = 1 if watch else MAX_BATCH_SIZE
    generations = []
    for first in range(0, request.samples, size):
        samples = range(first, min(first + size, request.samples))
        generations += generate_batch(predictor, request, template, samples, watch)
    return generations


def read_template(predictor: Predictor, request: Request) -> Template:
    """Encode the text of a request. A text without gaps gets one at its end."""
    sizes = request.gaps or [request.length or predictor.block_size]
    request.check_amount(sum(sizes))
    text = GAP.sub(lambda found: MASK * int(found[1]), request.text) if request.gaps else request.text + MASK * sizes[0]
    ids = predictor.tokenizer.encode_with_masks(text)
    positions = [position for position, token in enumerate(ids) if token == predictor.tokenizer.mask_id]
    ends = itertools.accumulate(sizes)
    return Template(
        ids, [slice(positions[end - size], positions[end - 1] + 1) for size, end in zip(sizes, ends, strict=True)]
    )


def generate_batch(
    predictor: Predictor, request: Request, template: Template, samples: Sequence[int], watch: Watch | None
) -> list[Generation]:
    """Generate the samples with these indices in one batch."""
    texts = torch.tensor(template.ids, device=predictor.device).repeat(len(samples), 1)
    passes = 0
    for positions, (start, stop) in plan(template.ids, predictor.tokenizer.mask_id, predictor.block_size):
        masked = torch.tensor(positions, device=predictor.device) - start
        for tokens in unmask(predictor, request, Rows(texts[:, start:stop], masked, start, samples)):
            texts[:, start:stop] = tokens
            passes += 1
            if watch:
                watch(shaded(predictor, texts[0, :stop].tolist()))
    decode = predictor.tokenizer.decode
    return [Generation(decode(ids), [decode(ids[gap]) for gap in template.gaps], ids, passes) for ids in texts.tolist()]


def plan(ids: list[int], mask_id: int, block_size: int) -> list[Stretch]:
    """Split masked tokens, from left to right, into stretches to generate together, each with its window."""
    length = len(ids)
    masked = [position for position, token in enumerate(ids) if token == mask_id]
    if length <= block_size:
        return [Stretch(masked, Window(0, length))]
    stretches = []
    while masked:
        end = masked[0] + max(1, block_size // 2)
        positions = [position for position in masked if position < end]
        masked = masked[len(positions) :]
        stretches.append(Stretch(positions, best_window(positions, masked, length, block_size)))
    return stretches


def best_window(positions: list[int], later: list[int], length: int, block_size: int) -> Window:
    """The window around a stretch with the fewest tokens that are generated later; the most central one if several.

    Args:
        positions: positions of the stretch.
        later: positions that stay masked for now.
        length: of the text, larger than `block_size`.
        block_size: length of the window.
    """
    starts = range(max(0, positions[-1] + 1 - block_size), min(positions[0], length - block_size) + 1)

    def unknown(start: int) -> int:
        return bisect_left(later, start + block_size)

    start = min(
        starts, key=lambda start: (unknown(start), abs(2 * start + block_size - 1 - positions[0] - positions[-1]))
    )
    return Window(start, start + block_size)


def shaded(predictor: Predictor, ids: list[int]) -> str:
    """Decode a text for display, with masked tokens shaded."""
    runs = itertools.groupby(ids, key=lambda token: token == predictor.tokenizer.mask_id)
    return "".join(SHADE * len(list(run)) if masked else predictor.tokenizer.decode(run) for masked, run in runs)
