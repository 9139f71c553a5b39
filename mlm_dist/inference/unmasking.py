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

MAX_POSITIONS = 64  # whose logits are in memory at once
MIN_TEMPERATURE = 1e-6  # below it, only the most likely token is left anyway


class Rows(NamedTuple):
    """Rows in which the same positions are masked.

    Attributes:
        tokens: (B, T) ids, T at most the model's block size.
        masked: (n,) the masked positions to sample.
        start: position of the first token, in the text.
        samples: sample index of each row.
    """

    tokens: torch.Tensor
    masked: torch.Tensor
    start: int
    samples: Sequence[int]


class Pass(NamedTuple):
    """What one forward pass does: how many masked tokens it unmasks, and how many unmasked ones it masks again."""

    unmask: int
    remask: int


def schedule(count: int, steps: int | None, remask: float) -> list[Pass]:
    """The passes that unmask `count` masked tokens.

    After pass s of S, ceil(count * s / S) of them are unmasked. Each pass masks again the fraction `remask` of those
    that were unmasked before it, but at most as many as are masked after it, so that no token is masked at the end.
    This is the schedule of ReMDM with a cap (Wang et al. 2025, arXiv 2503.00307). Each pass reads more unmasked tokens
    than the one before, so no two passes read the same input.
    """
    steps = min(count, steps or count)
    unmasked = [-(-count * step // steps) for step in range(steps + 1)]
    passes = []
    for before, after in itertools.pairwise(unmasked):
        again = min(int(remask * before), count - after)
        passes.append(Pass(after - before + again, again))
    return passes


@torch.no_grad()
def unmask(predictor: Predictor, request: Request, rows: Rows) -> Iterator[torch.Tensor]:
    """Sample the masked tokens of rows.

    Yields:
        (B, T) the rows after each pass.
    """
    tokens, positions = rows.tokens, rows.masked
    masked = torch.ones(len(tokens), len(positions), dtype=torch.bool, device=tokens.device)
    confidence = torch.zeros(masked.shape, device=tokens.device)  # log-probability of each token when it was sampled
    for i, (to_unmask, to_remask) in enumerate(schedule(len(positions), request.steps, request.remask)):
        hashes = Hashes(request.seed, i, rows)
        if request.order == "random":
            chosen = lowest(hashes.of("order"), masked, to_unmask)
        else:
            chosen = masked.nonzero()[:, 1].view(len(tokens), -1)
        states = predictor.encoder.encode(tokens, positions[chosen])
        sampled, log_probs = sample(predictor, request, states, hashes.of("token").gather(1, chosen))
        if request.order == "confidence":
            kept = log_probs.argsort(dim=1, descending=True, stable=True)[:, :to_unmask]
            chosen, sampled, log_probs = chosen.gather(1, kept), sampled.gather(1, kept), log_probs.gather(1, kept)
        again = lowest(hashes.of("again") if request.order == "random" else confidence, ~masked, to_remask)
        tokens = tokens.scatter(1, positions[again], predictor.tokenizer.mask_id)
        tokens = tokens.scatter(1, positions[chosen], sampled)
        masked = masked.scatter(1, again, True).scatter(1, chosen, False)
        confidence = confidence.scatter(1, chosen, log_probs)
        yield tokens


class Hashes:
    """Hashes of (seed, sample, position, pass, purpose). Those of a row do not depend on the other rows."""

    def __init__(self, seed: int, pass_index: int, rows: Rows) -> None:
        self.seed, self.pass_index, self.samples = seed, pass_index, rows.samples
        self.positions = (rows.masked + rows.start).to(torch.int32) * GOLDEN

    def of(self, purpose: str) -> torch.Tensor:
        """Hashes for each position to sample in each row, (B, n) int32."""
        keys = [derive_key(self.seed, sample, self.pass_index, purpose) for sample in self.samples]
        return hash32(torch.tensor(keys, dtype=torch.int32, device=self.positions.device)[:, None] + self.positions)


def sample(
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
    token_hashes = torch.arange(predictor.tokenizer.vocab_size, dtype=torch.int32, device=states.device) * GOLDEN
    parts = []
    for start in range(0, hashes.numel(), MAX_POSITIONS):
        part = slice(start, start + MAX_POSITIONS)
        log_probs = predictor.log_probabilities(predictor.encoder.logits(states.flatten(0, 1)[part]))
        scores = log_probs if request.top_p == 1 else nucleus(log_probs, request.temperature, request.top_p)
        if request.temperature > 0:
            scores = scores + request.temperature * gumbel(hash32(hashes.flatten()[part, None] + token_hashes))
        best = scores.argmax(1, keepdim=True)
        parts.append((best, log_probs.gather(1, best)))
    ids, log_probs = (torch.cat(columns).view(hashes.shape) for columns in zip(*parts, strict=True))
    return ids, log_probs


def nucleus(log_probs: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """Set log-probabilities outside the nucleus to minus infinity: (P, V) -> (P, V).

    The nucleus is the smallest set of most likely tokens whose probabilities, after the temperature, add up to at least
    `top_p` (nucleus sampling; Holtzman et al. 2019, arXiv 1904.09751).
    """
    probabilities, ids = (
        (log_probs / max(temperature, MIN_TEMPERATURE)).softmax(1).sort(dim=1, descending=True, stable=True)
    )
    outside = probabilities.cumsum(1) - probabilities >= top_p
    outside[:, 0] = False  # the sum before it is 0, up to rounding
    return log_probs.masked_fill(torch.zeros_like(outside).scatter(1, ids, outside), -torch.inf)


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
