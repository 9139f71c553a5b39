"""Sampling the masked tokens of rows in few or many passes. Each pass reads the tokens that earlier ones have sampled.

In random order, with as many passes as tokens, temperature 1 and the whole vocabulary, this is ancestral sampling from
the model, as from a masked diffusion model (MDLM, Sahoo et al. 2024, arXiv 2406.07524). With fewer passes, the tokens
of one pass are sampled independently of each other. In confidence order (MaskGIT, Chang et al. 2022, arXiv 2202.04200),
texts are more likely than samples from the model, since only the most likely of the sampled tokens are kept.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from mlm_dist.data.randomness import GOLDEN, derive_key, hash32
from mlm_dist.inference.predictor import Predictor
from mlm_dist.inference.request import Request

PLACES_AT_A_TIME = 64  # positions whose logits are held at once
COLDEST = 1e-6  # below this temperature, only the most likely token is left anyway


class Rows(NamedTuple):
    """Rows in which the same positions are masked.

    Attributes:
        tokens: (B, T) ids, T at most the model's block size.
        hidden: (n,) the masked positions to sample.
        start: position of the first token, in the text.
        samples: sample index of each row.
    """

    tokens: torch.Tensor
    hidden: torch.Tensor
    start: int
    samples: Sequence[int]


class Pass(NamedTuple):
    """What one forward pass does: how many masked tokens it unmasks, and how many unmasked ones it masks again."""

    write: int
    hide: int


def schedule(count: int, steps: int | None, remask: float) -> list[Pass]:
    """The passes that unmask `count` masked tokens.

    After pass s of S, ceil(count * s / S) of them are unmasked. Each pass masks again the fraction `remask` of those
    that were unmasked before it, but at most as many as are masked after it, so that no token is masked at the end.
    This is the schedule of ReMDM with a cap (Wang et al. 2025, arXiv 2503.00307). Each pass reads more unmasked tokens
    than the one before, so no two passes read the same input.
    """
    steps = min(count, steps or count)
    standing = [-(-count * step // steps) for step in range(steps + 1)]
    passes = []
    for before, after in itertools.pairwise(standing):
        hide = min(int(remask * before), count - after)
        passes.append(Pass(after - before + hide, hide))
    return passes


@torch.no_grad()
def unmask(predictor: Predictor, request: Request, rows: Rows) -> Iterator[torch.Tensor]:
    """Sample the masked tokens of rows.

    Yields:
        (B, T) the rows after each pass.
    """
    tokens, places = rows.tokens, rows.hidden
    hidden = torch.ones(len(tokens), len(places), dtype=torch.bool, device=tokens.device)
    surety = torch.zeros(hidden.shape, device=tokens.device)  # log-probability of each token when it was sampled
    for number, (write, hide) in enumerate(schedule(len(places), request.steps, request.remask)):
        lots = Lots(request.seed, number, rows)
        if request.order == "random":
            asked = lowest(lots.of("order"), hidden, write)
        else:
            asked = hidden.nonzero()[:, 1].view(len(tokens), -1)
        states = predictor.encoder.encode(tokens, places[asked])
        drawn, found = draw(predictor, request, states, lots.of("token").gather(1, asked))
        if request.order == "confidence":
            kept = found.argsort(dim=1, descending=True, stable=True)[:, :write]
            asked, drawn, found = asked.gather(1, kept), drawn.gather(1, kept), found.gather(1, kept)
        again = lowest(lots.of("again") if request.order == "random" else surety, ~hidden, hide)
        tokens = tokens.scatter(1, places[again], predictor.tokenizer.mask_id).scatter(1, places[asked], drawn)
        hidden = hidden.scatter(1, again, True).scatter(1, asked, False)
        surety = surety.scatter(1, asked, found)
        yield tokens


class Lots:
    """Hashes of (seed, sample, position, pass, purpose). Those of a row do not depend on the other rows."""

    def __init__(self, seed: int, number: int, rows: Rows) -> None:
        self.seed, self.number, self.samples = seed, number, rows.samples
        self.places = (rows.hidden + rows.start).to(torch.int32) * GOLDEN

    def of(self, purpose: str) -> torch.Tensor:
        """Hashes for each position to sample in each row, (B, n) int32."""
        salts = [derive_key(self.seed, sample, self.number, purpose) for sample in self.samples]
        return hash32(torch.tensor(salts, dtype=torch.int32, device=self.places.device)[:, None] + self.places)


def draw(
    predictor: Predictor, request: Request, states: torch.Tensor, hashes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample a token for each position.

    The Gumbel-max trick takes the token with the highest sum of log-probability and Gumbel noise. Rounding differs with
    the number of rows. It would shift every bound of a cumulative distribution, but here it matters only if two tokens
    tie.

    Args:
        predictor: the model.
        request: for temperature and top_p.
        states: (B, K, C), the input of the output layer at these positions.
        hashes: (B, K) int32.

    Returns:
        (B, K) token ids, and (B, K) their log-probabilities at temperature 1.
    """
    entries = torch.arange(predictor.tokenizer.vocab_size, dtype=torch.int32, device=states.device) * GOLDEN
    parts = []
    for start in range(0, hashes.numel(), PLACES_AT_A_TIME):
        part = slice(start, start + PLACES_AT_A_TIME)
        likely = predictor.log_probabilities(predictor.encoder.output(states.flatten(0, 1)[part]))
        scores = likely if request.top_p == 1 else nucleus(likely, request.temperature, request.top_p)
        if request.temperature > 0:
            scores = scores + request.temperature * gumbel(hash32(hashes.flatten()[part, None] + entries))
        best = scores.argmax(1, keepdim=True)
        parts.append((best, likely.gather(1, best)))
    ids, log_probabilities = (torch.cat(columns).view(hashes.shape) for columns in zip(*parts, strict=True))
    return ids, log_probabilities


def nucleus(likely: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """Set log-probabilities outside the nucleus to minus infinity: (P, V) -> (P, V).

    The nucleus is the smallest set of most likely tokens whose probabilities, after the temperature, add up to at least
    `top_p` (nucleus sampling; Holtzman et al. 2019, arXiv 1904.09751).
    """
    probabilities, ids = (likely / max(temperature, COLDEST)).softmax(1).sort(dim=1, descending=True, stable=True)
    beyond = probabilities.cumsum(1) - probabilities >= top_p
    beyond[:, 0] = False  # the sum before it is 0, up to rounding
    return likely.masked_fill(torch.zeros_like(beyond).scatter(1, ids, beyond), -torch.inf)


def gumbel(hashes: torch.Tensor) -> torch.Tensor:
    """Turn int32 hashes into samples of the standard Gumbel distribution, -log(-log(u)).

    The inner logarithm is computed as log(1 - v), where v has steps of 2**-31 near 0. A u with coarser steps near 1
    would never sample rare tokens (Zheng et al. 2024, arXiv 2409.02908).
    """
    v = ((hashes & 0x7FFFFFFF).float() + 0.5) * 2**-31
    return -(-torch.log1p(-v.clamp(max=1 - 2**-24))).log()


def lowest(keys: torch.Tensor, among: torch.Tensor, count: int) -> torch.Tensor:
    """The columns with the `count` lowest keys among those where `among` is true: (B, n), (B, n) -> (B, count)."""
    return keys.double().masked_fill(~among, torch.inf).argsort(dim=1, stable=True)[:, :count]
