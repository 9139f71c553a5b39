"""Masked tokens are sampled from the requested distribution."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import pytest
import torch

from mlm_dist.config import ModelConfig
from mlm_dist.data.tokenizer import Tokenizer
from mlm_dist.inference.predictor import Predictor
from mlm_dist.inference.request import Order, Request
from mlm_dist.inference.unmasking import Hashes, Rows, gumbel, schedule, unmask
from mlm_dist.model.encoder import Encoder

LETTERS = range(4)
END, MASK = 4, 5
SAMPLES = 8192


@pytest.fixture(scope="module")
def letters() -> Predictor:
    """A model of texts of four letters, in which each letter depends on the others."""
    ranks = {letter: rank for rank, letter in enumerate((b"a", b"b", b"c", b"d"))}
    tokenizer = Tokenizer.build("letters", r".", ranks, {"<|endoftext|>": END, "[MASK]": MASK})
    torch.manual_seed(1)
    encoder = Encoder(ModelConfig(vocab_size=6, block_size=4, embedding_dim=8, heads=2, blocks=1)).double().eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(15)
    return Predictor(encoder, tokenizer, torch.device("cpu"))


def sample_row(predictor: Predictor, row: Sequence[int], **options: Any) -> torch.Tensor:
    """Samples of the masked tokens of a row, (SAMPLES, n)."""
    masked = torch.tensor([position for position, token in enumerate(row) if token == MASK])
    rows = Rows(torch.tensor([row]).repeat(SAMPLES, 1), masked, 0, range(SAMPLES))
    *_, last = unmask(predictor, Request(**options), rows)
    return last[:, masked]


def probabilities(predictor: Predictor, row: Sequence[int], position: int) -> list[float]:
    """The expected probability of each letter at one position."""
    logits = predictor.encoder(torch.tensor([row]))[0, position, list(LETTERS)].detach()
    found: list[float] = logits.softmax(0).tolist()
    return found


def chi_square(sampled: torch.Tensor, expected: dict[tuple[int, ...], float]) -> float:
    """Pearson's chi-squared statistic of the sampled frequencies against the expected probabilities."""
    counts = {outcome: int((sampled == torch.tensor(outcome)).all(1).sum()) for outcome in expected}
    assert sum(counts.values()) == len(sampled)
    return sum((counts[o] - len(sampled) * p) ** 2 / (len(sampled) * p) for o, p in expected.items() if p)


# The statistic exceeds these bounds with probability 0.001, with 3 and with 15 degrees of freedom.
BOUND_3, BOUND_15 = 16.27, 37.70


def test_one_pass_per_token_in_random_order_samples_from_the_joint_distribution(letters: Predictor) -> None:
    masked = [MASK, 1, MASK]
    first, second = probabilities(letters, masked, 0), probabilities(letters, masked, 2)
    independent: dict[tuple[int, ...], float] = {(a, b): first[a] * second[b] for a, b in product(LETTERS, LETTERS)}
    joint: dict[tuple[int, ...], float] = {
        (a, b): 0.5 * first[a] * probabilities(letters, [a, 1, MASK], 2)[b]
        + 0.5 * second[b] * probabilities(letters, [MASK, 1, b], 0)[a]
        for a, b in product(LETTERS, LETTERS)
    }
    assert chi_square(sample_row(letters, masked), joint) < BOUND_15
    assert chi_square(sample_row(letters, masked, steps=1), independent) < BOUND_15
    # Otherwise the test could not distinguish the two distributions.
    assert chi_square(sample_row(letters, masked), independent) > 10 * BOUND_15


def test_samples_are_those_of_capped_logits(letters: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    free = probabilities(letters, [2, MASK], 1)
    monkeypatch.setattr(letters.encoder, "config", replace(letters.encoder.config, logit_softcap=0.5))
    capped = probabilities(letters, [2, MASK], 1)
    sampled = sample_row(letters, [2, MASK])
    assert chi_square(sampled, {(letter,): p for letter, p in enumerate(capped)}) < BOUND_3
    assert chi_square(sampled, {(letter,): p for letter, p in enumerate(free)}) > 10 * BOUND_3


@pytest.mark.parametrize("order", ["random", "confidence"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_temperature_divides_the_logits(letters: Predictor, order: Order, temperature: float) -> None:
    powers = torch.tensor(probabilities(letters, [2, MASK], 1)) ** (1 / temperature)
    expected: dict[tuple[int, ...], float] = {(letter,): p for letter, p in enumerate((powers / powers.sum()).tolist())}
    assert chi_square(sample_row(letters, [2, MASK], order=order, temperature=temperature), expected) < BOUND_3


def test_top_p_keeps_the_smallest_set_with_that_total_probability(letters: Predictor) -> None:
    found = probabilities(letters, [2, MASK], 1)
    expected: dict[tuple[int, ...], float]
    best = sorted(LETTERS, key=lambda letter: -found[letter])
    for kept in (1, 2, 3):
        mass = sum(found[letter] for letter in best[:kept])
        for top_p in (mass - 1e-4, mass - 0.9 * found[best[kept - 1]]):
            expected = {(letter,): found[letter] / mass if letter in best[:kept] else 0.0 for letter in LETTERS}
            sampled = sample_row(letters, [2, MASK], top_p=top_p)
            assert set(sampled.flatten().tolist()) == set(best[:kept])
            assert chi_square(sampled, expected) < BOUND_3


def test_top_p_is_applied_after_the_temperature(letters: Predictor) -> None:
    found = torch.tensor(probabilities(letters, [2, MASK], 1)).sort().values
    assert found[1:].sum() > 0.9  # top_p excludes the rarest letter unless all four are equally likely
    assert len(sample_row(letters, [2, MASK], top_p=0.9).unique()) == 3
    assert len(sample_row(letters, [2, MASK], top_p=0.9, temperature=100).unique()) == 4


def test_temperature_0_and_a_small_top_p_take_the_most_likely_token(letters: Predictor) -> None:
    greedy = sample_row(letters, [MASK, 1, MASK], order="confidence", temperature=0)
    assert len(greedy.unique(dim=0)) == 1
    small = sample_row(letters, [MASK, 1, MASK], order="confidence", top_p=1e-9, temperature=1.5)
    assert torch.equal(small, greedy)


def test_confidence_order_keeps_the_most_likely_token(letters: Predictor) -> None:
    row = [1, MASK, MASK, MASK]
    masked = torch.arange(1, 4)
    rows = Rows(torch.tensor([row]).repeat(64, 1), masked, 0, range(64))
    first, *_ = unmask(letters, Request(order="confidence"), rows)
    alone = sample_row(letters, row, order="confidence", steps=1)[:64]  # the same samples, all of them kept
    likely = torch.tensor([probabilities(letters, row, position) for position in (1, 2, 3)])
    most_confident = likely.gather(1, alone.T).argmax(0)
    expected = rows.tokens.scatter(1, masked[most_confident][:, None], alone.gather(1, most_confident[:, None]))
    assert torch.equal(first, expected)
    assert len(most_confident.unique()) > 1


def test_random_order_starts_at_a_uniform_position(letters: Predictor) -> None:
    rows = Rows(torch.full((SAMPLES, 4), MASK), torch.arange(4), 0, range(SAMPLES))
    first, *_ = unmask(letters, Request(), rows)
    started = (first != MASK).nonzero()[:, 1:]
    assert len(started) == SAMPLES
    assert chi_square(started, {(position,): 0.25 for position in range(4)}) < BOUND_3


def test_the_schedule_unmasks_equal_parts_per_pass() -> None:
    assert [step.unmask for step in schedule(10, 4, 0)] == [3, 2, 3, 2]
    assert [step.unmask for step in schedule(3, None, 0)] == [1, 1, 1]
    assert [step.unmask for step in schedule(3, 100, 0)] == [1, 1, 1]
    assert [step.unmask for step in schedule(3, 1, 0)] == [3]


@pytest.mark.parametrize("remask", [0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize(("count", "steps"), [(1, None), (7, None), (64, 10), (64, None), (5, 5)])
def test_the_schedule_ends_with_every_token_unmasked(count: int, steps: int | None, remask: float) -> None:
    unmasked = 0
    passes = schedule(count, steps, remask)
    for i, (to_unmask, to_remask) in enumerate(passes, 1):
        assert to_remask <= remask * unmasked
        assert to_remask < to_unmask <= count - unmasked
        unmasked += to_unmask - to_remask
        assert unmasked == -(-count * i // len(passes))
    assert unmasked == count
    assert passes[-1].remask == 0
    assert sum(step.remask for step in passes) > 0 or remask == 0 or count * remask < 5


@pytest.mark.parametrize("order", ["random", "confidence"])
def test_remasking_samples_some_tokens_again(letters: Predictor, order: Order) -> None:
    rows = Rows(torch.full((32, 4), MASK), torch.arange(4), 0, range(32))
    states = [rows.tokens, *unmask(letters, Request(order=order, remask=0.5), rows)]
    known = [(state != MASK).sum(1).unique().tolist() for state in states]
    assert known == [[0], [1], [2], [3], [4]]
    remasked = [(before != MASK) & (after == MASK) for before, after in pairwise(states)]
    assert [again.sum(1).unique().tolist() for again in remasked] == [[0], [0], [1], [0]]


def test_confidence_order_remasks_the_least_confident_token(letters: Predictor) -> None:
    rows = Rows(torch.full((64, 4), MASK), torch.arange(4), 0, range(64))
    empty, one, two, three, _ = [rows.tokens, *unmask(letters, Request(order="confidence", remask=0.5), rows)]
    for before, after, then, later in zip(empty.tolist(), one.tolist(), two.tolist(), three.tolist(), strict=True):
        confidence = {}
        for seen, after_pass in ((before, after), (after, then)):
            (position,) = [position for position in range(4) if seen[position] == MASK != after_pass[position]]
            confidence[position] = probabilities(letters, seen, position)[after_pass[position]]
        (masked,) = [position for position in range(4) if then[position] != MASK == later[position]]
        assert masked == min(confidence, key=lambda position: confidence[position])


def test_each_sample_has_its_own_hashes() -> None:
    hashes = set()
    for seed, i, purpose, start in product((0, 1), (0, 1), ("order", "token"), (0, 8)):
        rows = Rows(torch.zeros(3, 8, dtype=torch.int64), torch.tensor([1, 2, 5]), start, (0, 1, 7))
        hashes |= set(Hashes(seed, i, rows).of(purpose).flatten().tolist())
    assert len(hashes) == 2 * 2 * 2 * 2 * 3 * 3


def test_hashes_depend_on_the_position_in_the_text() -> None:
    rows = Rows(torch.zeros(1, 8, dtype=torch.int64), torch.tensor([5]), 3, [0])
    moved = rows._replace(masked=torch.tensor([2]), start=6)
    assert torch.equal(Hashes(0, 0, rows).of("token"), Hashes(0, 0, moved).of("token"))


def test_rare_tokens_can_be_sampled() -> None:
    noise = gumbel(torch.arange(1000, dtype=torch.int32))
    assert noise[0] > 22  # a token of probability exp(-22) can be sampled
    assert (noise.diff() < 0).all()  # and no two values near it are equal


def test_the_noise_is_finite_for_every_hash() -> None:
    assert gumbel(torch.tensor([0, -1, 2**31 - 1, -(2**31)], dtype=torch.int32)).isfinite().all()


def test_noise_has_the_moments_of_the_gumbel_distribution() -> None:
    hashes = torch.arange(-(2**31), 2**31, 2**13 + 1, dtype=torch.int64).to(torch.int32)
    noise = gumbel(hashes).double()
    assert noise.mean().item() == pytest.approx(0.57722, abs=0.005)
    assert noise.var().item() == pytest.approx(1.64493, abs=0.01)
