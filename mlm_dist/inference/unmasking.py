"""Writing the hidden tokens of rows in few or many passes, each of which sees what the earlier ones have written.

In random order, with as many passes as tokens, temperature 1 and all of the vocabulary, this is ancestral sampling from
the model, as of a masked diffusion model (MDLM, Sahoo et al. 2024, arXiv 2406.07524). With fewer passes the tokens of
one pass do not know of each other. In the order of confidence (MaskGIT, Chang et al. 2022, arXiv 2202.04200) texts are
likelier than the model's own, since of what was drawn the likeliest is kept.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from mlm_dist.data.randomness import GOLDEN, derive_key, hash32
from mlm_dist.inference.predictor import Predictor
from mlm_dist.inference.request import Request

PLACES_AT_A_TIME = 64  # whose logits are held at once
COLDEST = 1e-6  # below this temperature only the likeliest token is left all the same


class Rows(NamedTuple):
    """Rows of which the same places are hidden.

    Attributes:
        tokens: (B, T) ids, T at most the model's block.
        hidden: (n,) the hidden places that are to be written.
        start: index, in the text, of the first token.
        samples: number of the sample of each row.
    """

    tokens: torch.Tensor
    hidden: torch.Tensor
    start: int
    samples: Sequence[int]


class Pass(NamedTuple):
    """What one forward pass does: how many hidden tokens it writes, and how many written ones it hides again."""

    write: int
    hide: int


def schedule(count: int, steps: int | None, remask: float) -> list[Pass]:
    """The passes in which `count` hidden tokens are written.

    After pass s of S, ceil(count * s / S) of them stand. Each pass hides again the fraction `remask` of those that
    stood before it, but never more than are to be hidden after it, so that all stand in the end: the schedule of ReMDM
    with a cap (Wang et al. 2025, arXiv 2503.00307). Each pass sees more tokens than the last, so none sees the same.
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
    """Write the hidden tokens of rows.

    Yields:
        (B, T) the rows after each pass.
    """
    tokens, places = rows.tokens, rows.hidden
    hidden = torch.ones(len(tokens), len(places), dtype=torch.bool, device=tokens.device)
    surety = torch.zeros(hidden.shape, device=tokens.device)  # of each written token, when it was drawn
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
    """Hashes of (seed, sample, place, pass, purpose), which no other row has a part in."""

    def __init__(self, seed: int, number: int, rows: Rows) -> None:
        self.seed, self.number, self.samples = seed, number, rows.samples
        self.places = (rows.hidden + rows.start).to(torch.int32) * GOLDEN

    def of(self, purpose: str) -> torch.Tensor:
        """(B, n) int32, for each hidden place of each row."""
        salts = [derive_key(self.seed, sample, self.number, purpose) for sample in self.samples]
        return hash32(torch.tensor(salts, dtype=torch.int32, device=self.places.device)[:, None] + self.places)


def draw(
    predictor: Predictor, request: Request, states: torch.Tensor, hashes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a token for each place.

    By the Gumbel-max trick: the token with the highest sum of log-probability and Gumbel noise. Rounding, which differs
    with the number of rows, moves each bound of a cumulative distribution; this it changes only where two tokens tie.

    Args:
        predictor: the model.
        request: temperature and top_p.
        states: (B, K, C), what the output layer reads there.
        hashes: (B, K) int32.

    Returns:
        (B, K) ids, and (B, K) the logarithm of each one's probability at temperature 1.
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
    """Log-probabilities (P, V) with minus infinity for all but the fewest tokens that have `top_p` together.

    After the temperature; nucleus sampling (Holtzman et al. 2019, arXiv 1904.09751).
    """
    probabilities, ids = (likely / max(temperature, COLDEST)).softmax(1).sort(dim=1, descending=True, stable=True)
    beyond = probabilities.cumsum(1) - probabilities >= top_p
    beyond[:, 0] = False  # the sum before it is 0 but for rounding
    return likely.masked_fill(torch.zeros_like(beyond).scatter(1, ids, beyond), -torch.inf)


def gumbel(hashes: torch.Tensor) -> torch.Tensor:
    """Turn int32 hashes into numbers of the standard Gumbel distribution, -log(-log(u)).

    The logarithm inside is log(1 - v), and v has steps of 2**-31 near 0: with numbers u whose steps near 1 are coarser,
    rare tokens would never come (Zheng et al. 2024, arXiv 2409.02908).
    """
    v = ((hashes & 0x7FFFFFFF).float() + 0.5) * 2**-31
    return -(-torch.log1p(-v.clamp(max=1 - 2**-24))).log()


def lowest(keys: torch.Tensor, among: torch.Tensor, count: int) -> torch.Tensor:
    """(B, count) the columns with the lowest keys, (B, n), among those that count, (B, n)."""
    return keys.double().masked_fill(~among, torch.inf).argsort(dim=1, stable=True)[:, :count]
