"""A text that a model is asked to write: what is fixed, where it has gaps, and how they are to be filled.

Nothing here needs torch, so that a mistake is answered at once.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from mlm_dist.errors import UserError
from mlm_dist.inference.marks import GAP, LIKE_A_MASK, MASKED_WORD, misspelt_gap

Order = Literal["random", "confidence"]

DIGITS = 8  # of n in `[GAP:n]`; more are more than is ever written all the same
MOST_TOKENS = 1_000_000
HOTTEST = 100.0


@dataclass(frozen=True)
class Request:
    """What is to be written, and how.

    Attributes:
        text: what is fixed. `[GAP:n]` in it stands for n tokens to be written; one without gaps is continued.
        length: tokens to be written after a text without gaps; None: as many as the model sees at once.
        samples: how often to write it, each time otherwise.
        order: in which tokens are written. `random`: the places are drawn, and a token for each. `confidence`: a token
            is drawn for every hidden place, and those that the model finds likeliest are kept.
        steps: forward passes in which the tokens that are seen together are written; None: one for each token.
        temperature: by which logits are divided. 1: the model's own distribution; 0: always the likeliest token.
        top_p: tokens are drawn of the fewest that have this much probability together.
        remask: fraction of the written tokens that each pass hides again, to be written anew.
        seed: the same seed gives the same text.

    Raises:
        UserError: a value is out of bounds, or the text has gaps that cannot be read.
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
        require(0 <= self.temperature <= HOTTEST, "temperature", self.temperature, f"from 0 to {HOTTEST:g}")
        require(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        require(0 <= self.remask < 1, "remask", self.remask, "at least 0 and below 1")
        require(self.seed >= 0, "seed", self.seed, "0 or more")
        self._check_gaps()
        self.check_amount(sum(self.gaps) or self.length or 1)

    @property
    def gaps(self) -> list[int]:
        """How many tokens are to be written in each gap of the text."""
        return [int(number[:DIGITS]) for number in GAP.findall(self.text)]

    def check_amount(self, tokens: int) -> None:
        """Raise `UserError` if so many tokens in each sample are more than are written at once."""
        if self.samples * tokens > MOST_TOKENS:
            raise UserError(
                f"at most {MOST_TOKENS:,} tokens are written at once, in all --samples together: ask for fewer"
            )

    def _check_gaps(self) -> None:
        if complaint := misspelt_gap(self.text):
            raise UserError(complaint)
        if found := (MASKED_WORD if self.gaps else LIKE_A_MASK).search(self.text):
            raise UserError(f"{found[0]} is for `fill`: here [GAP:1] stands for a token to be written")
        if self.gaps and self.length is not None:
            raise UserError(f"--length is {self.length}, but the text has gaps, which say themselves how long they are")


def require(holds: bool, name: str, value: object, bounds: str) -> None:
    """Raise `UserError` about an option that is out of its bounds."""
    if not holds:
        raise UserError(f"--{name} is {value}: it must be {bounds}")
