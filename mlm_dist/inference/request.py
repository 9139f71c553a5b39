"""A request to generate text: the given text, its gaps, and how to generate.

This module does not import torch, so that user errors are reported at once.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from mlm_dist.errors import UserError
from mlm_dist.inference.marks import GAP, MASK_LOOKALIKE, MASKED_WORD, misspelt_gap

Order = Literal["random", "confidence"]

MAX_DIGITS = 8  # digits of n in `[GAP:n]` that are read; a longer number exceeds MAX_TOKENS anyway
MAX_TOKENS = 1_000_000
MAX_TEMPERATURE = 100.0


@dataclass(frozen=True)
class Request:
    """What to generate, and how.

    Attributes:
        text: the given text. Each `[GAP:n]` in it is replaced by n generated tokens. A text without gaps is continued.
        length: number of tokens to generate after a text without gaps; None: the model's block size.
        samples: number of texts to generate, each with random numbers of its own.
        order: in which tokens are generated. `random`: positions are sampled, and a token for each. `confidence`: a
            token is sampled for every masked position, and the most likely ones are kept.
        steps: number of forward passes for the tokens that are generated together; None: one per token.
        temperature: divides the logits. 1: the model's own distribution; 0: always the most likely token.
        top_p: sample from the smallest set of most likely tokens whose probabilities add up to at least this.
        remask: fraction of the generated tokens that each pass masks again, so that they are generated anew.
        seed: the same seed gives the same text.

    Raises:
        UserError: a value is out of bounds, a gap is misspelt, the text has a `[MASK]`, or `length` is given for a text
            with gaps.
    """

    text: str = ""
    length: int | None = None
    samples: int = 1
    order: Order = "random"
    steps: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    remask: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        counts = {"length": self.length, "samples": self.samples, "steps": self.steps}
        for name, count in counts.items():
            require(count is None or count >= 1, name, count, "at least 1")
        require(self.order in get_args(Order), "order", self.order, " or ".join(get_args(Order)))
        require(
            0 <= self.temperature <= MAX_TEMPERATURE, "temperature", self.temperature, f"from 0 to {MAX_TEMPERATURE:g}"
        )
        require(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        require(0 <= self.remask < 1, "remask", self.remask, "at least 0 and below 1")
        require(self.seed >= 0, "seed", self.seed, "0 or more")
        self._check_gaps()
        self.check_amount(sum(self.gaps) or self.length or 1)

    @property
    def gaps(self) -> list[int]:
        """The number of tokens to generate in each gap of the text."""
        return [int(number[:MAX_DIGITS]) for number in GAP.findall(self.text)]

    def check_amount(self, tokens: int) -> None:
        """Raise `UserError` if this many tokens per sample exceed the limit for all samples."""
        if self.samples * tokens > MAX_TOKENS:
            raise UserError(
                f"at most {MAX_TOKENS:,} tokens can be generated at once, over all --samples: request fewer"
            )

    def _check_gaps(self) -> None:
        if hint := misspelt_gap(self.text):
            raise UserError(hint)
        if found := (MASKED_WORD if self.gaps else MASK_LOOKALIKE).search(self.text):
            raise UserError(f"{found[0]} is for `fill`: to generate one token, write [GAP:1]")
        if self.gaps and self.length is not None:
            raise UserError(
                f"--length is {self.length}, but the text has gaps, which have their own lengths: omit --length"
            )


def require(valid: bool, name: str, value: object, bounds: str) -> None:
    """Raise `UserError` if an option is out of its bounds."""
    if not valid:
        raise UserError(f"--{name} is {value}: it must be {bounds}")
