"""Texts written by a trained model: from nothing, after a prompt, or in the gaps of a text, of any length."""

import itertools
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from mlm_dist.data.tokenizer import MASK
from mlm_dist.inference.marks import GAP
from mlm_dist.inference.predictor import ROWS_AT_A_TIME, Predictor, Window
from mlm_dist.inference.request import Request
from mlm_dist.inference.unmasking import Rows, unmask

SHADE = " ░░░"  # a hidden token, about as wide as most

Watch = Callable[[str], None]


class Generation(NamedTuple):
    """A text that the model has written.

    Attributes:
        text: what was fixed and what was written. Bytes that are no whole character are U+FFFD in it.
        written: what stands in each gap; after a prompt there is one.
        tokens: ids of the text.
        passes: forward passes that it took.
    """

    text: str
    written: list[str]
    tokens: list[int]
    passes: int


class Template(NamedTuple):
    """A text that is to be written: its ids, mask tokens in the gaps, and where in them each gap lies."""

    ids: list[int]
    gaps: list[slice]


class Stretch(NamedTuple):
    """Hidden tokens that are written together: their places in the text, and what the model sees with them."""

    places: list[int]
    window: Window


def generate(predictor: Predictor, request: Request, watch: Watch | None = None) -> list[Generation]:
    """Write the samples that are asked for.

    A text that the model sees whole is written in one go. Of a longer one, stretches of at most half a block are
    written from left to right, each in the window that has most known tokens in it.

    Args:
        predictor: the model.
        request: what is to be written, and how.
        watch: is called after each pass with the text so far, as far as it is seen, a hidden token being a shade. The
            samples are then written one after the other, and otherwise in batches.
    """
    template = read_template(predictor, request)
    size = 1 if watch else ROWS_AT_A_TIME
    generations = []
    for first in range(0, request.samples, size):
        samples = range(first, min(first + size, request.samples))
        generations += write(predictor, request, template, samples, watch)
    return generations


def read_template(predictor: Predictor, request: Request) -> Template:
    """Encode the text of a request; one without gaps has a gap at its end."""
    sizes = request.gaps or [request.length or predictor.block_size]
    request.check_amount(sum(sizes))
    text = GAP.sub(lambda found: MASK * int(found[1]), request.text) if request.gaps else request.text + MASK * sizes[0]
    ids = predictor.tokenizer.encode_with_masks(text)
    places = [place for place, token in enumerate(ids) if token == predictor.tokenizer.mask_id]
    ends = itertools.accumulate(sizes)
    return Template(
        ids, [slice(places[end - size], places[end - 1] + 1) for size, end in zip(sizes, ends, strict=True)]
    )


def write(
    predictor: Predictor, request: Request, template: Template, samples: Sequence[int], watch: Watch | None
) -> list[Generation]:
    """Write the samples of these numbers in one batch."""
    texts = torch.tensor(template.ids, device=predictor.device).repeat(len(samples), 1)
    passes = 0
    for places, (start, stop) in plan(template.ids, predictor.tokenizer.mask_id, predictor.block_size):
        hidden = torch.tensor(places, device=predictor.device) - start
        for seen in unmask(predictor, request, Rows(texts[:, start:stop], hidden, start, samples)):
            texts[:, start:stop] = seen
            passes += 1
            if watch:
                watch(shaded(predictor, texts[0, :stop].tolist()))
    decode = predictor.tokenizer.decode
    return [Generation(decode(ids), [decode(ids[gap]) for gap in template.gaps], ids, passes) for ids in texts.tolist()]


def plan(ids: list[int], mask_id: int, block_size: int) -> list[Stretch]:
    """Which hidden tokens are written together, from left to right, and what is seen with them."""
    length = len(ids)
    hidden = [place for place, token in enumerate(ids) if token == mask_id]
    if length <= block_size:
        return [Stretch(hidden, Window(0, length))]
    stretches = []
    while hidden:
        end = hidden[0] + max(1, block_size // 2)
        places = [place for place in hidden if place < end]
        hidden = hidden[len(places) :]
        stretches.append(Stretch(places, best_window(places, hidden, length, block_size)))
    return stretches


def best_window(places: list[int], later: list[int], length: int, block_size: int) -> Window:
    """The window around a stretch that has fewest tokens in it that are written later; of several, the most central.

    Args:
        places: of the stretch.
        later: places that stay hidden.
        length: of the text, more than a block.
        block_size: how much is seen.
    """
    starts = range(max(0, places[-1] + 1 - block_size), min(places[0], length - block_size) + 1)

    def unknown(start: int) -> int:
        return bisect_left(later, start + block_size)

    start = min(starts, key=lambda start: (unknown(start), abs(2 * start + block_size - 1 - places[0] - places[-1])))
    return Window(start, start + block_size)


def shaded(predictor: Predictor, ids: list[int]) -> str:
    """A text of which some tokens are hidden, as it is shown."""
    runs = itertools.groupby(ids, key=lambda token: token == predictor.tokenizer.mask_id)
    return "".join(SHADE * len(list(run)) if hidden else predictor.tokenizer.decode(run) for hidden, run in runs)
