"""How hidden tokens are written: that they follow the distribution that is asked for."""

from collections.abc import Sequence
from itertools import pairwise, product

import pytest
import torch

from mlm_dist.config import ModelConfig
from mlm_dist.data.tokenizer import Tokenizer
from mlm_dist.inference.predictor import Predictor
from mlm_dist.inference.request import Order, Request
from mlm_dist.inference.unmasking import Lots, Rows, gumbel, schedule, unmask
from mlm_dist.model.encoder import Encoder

LETTERS = range(4)
END, MASK = 4, 5
DRAWS = 8192


@pytest.fixture(scope="module")
def letters() -> Predictor:
    """A model of four letters, in whose texts each letter has to do with the others."""
    ranks = {letter: rank for rank, letter in enumerate((b"a", b"b", b"c", b"d"))}
    tokenizer = Tokenizer.build("letters", r".", ranks, {"<|endoftext|>": END, "[MASK]": MASK})
    torch.manual_seed(1)
    encoder = Encoder(ModelConfig(vocab_size=6, block_size=4, embedding_dim=8, heads=2, blocks=1)).double().eval()
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.mul_(15)
    return Predictor(encoder, tokenizer, torch.device("cpu"))


def written(predictor: Predictor, row: Sequence[int], **options: object) -> torch.Tensor:
    """(DRAWS, n) what is written in the hidden places of a row, in as many samples."""
    hidden = torch.tensor([place for place, token in enumerate(row) if token == MASK])
    rows = Rows(torch.tensor([row]).repeat(DRAWS, 1), hidden, 0, range(DRAWS))
    *_, last = unmask(predictor, Request(**options), rows)  # type: ignore[arg-type]
    return last[:, hidden]


def probabilities(predictor: Predictor, row: Sequence[int], place: int) -> list[float]:
    """The definition: how likely each letter is in a place."""
    logits = predictor.encoder(torch.tensor([row]))[0, place, list(LETTERS)].detach()
    found: list[float] = logits.softmax(0).tolist()
    return found


def chi_square(drawn: torch.Tensor, expected: dict[tuple[int, ...], float]) -> float:
    """Pearson's statistic of how far the frequencies are from what is expected of them."""
    counts = {outcome: int((drawn == torch.tensor(outcome)).all(1).sum()) for outcome in expected}
    assert sum(counts.values()) == len(drawn)
    return sum((counts[o] - len(drawn) * p) ** 2 / (len(drawn) * p) for o, p in expected.items() if p)


# Bounds that a statistic exceeds once in a thousand times, with 3 and with 15 degrees of freedom.
BOUND_3, BOUND_15 = 16.27, 37.70


def test_one_pass_a_token_in_random_order_samples_from_the_joint_distribution(letters: Predictor) -> None:
    hidden = [MASK, 1, MASK]
    first, second = probabilities(letters, hidden, 0), probabilities(letters, hidden, 2)
    apart = {(a, b): first[a] * second[b] for a, b in product(LETTERS, LETTERS)}
    joint = {
        (a, b): 0.5 * first[a] * probabilities(letters, [a, 1, MASK], 2)[b]
        + 0.5 * second[b] * probabilities(letters, [MASK, 1, b], 0)[a]
        for a, b in product(LETTERS, LETTERS)
    }
    assert chi_square(written(letters, hidden), joint) < BOUND_15
    assert chi_square(written(letters, hidden, steps=1), apart) < BOUND_15
    assert chi_square(written(letters, hidden), apart) > 10 * BOUND_15  # or the test could not tell them apart


@pytest.mark.parametrize("order", ["random", "confidence"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_temperature_divides_the_logits(letters: Predictor, order: Order, temperature: float) -> None:
    powers = torch.tensor(probabilities(letters, [2, MASK], 1)) ** (1 / temperature)
    expected = {(letter,): p for letter, p in enumerate((powers / powers.sum()).tolist())}
    assert chi_square(written(letters, [2, MASK], order=order, temperature=temperature), expected) < BOUND_3


def test_top_p_keeps_the_fewest_tokens_that_have_it_together(letters: Predictor) -> None:
    found = probabilities(letters, [2, MASK], 1)
    best = sorted(LETTERS, key=lambda letter: -found[letter])
    for kept in (1, 2, 3):
        mass = sum(found[letter] for letter in best[:kept])
        for top_p in (mass - 1e-4, mass - 0.9 * found[best[kept - 1]]):
            expected = {(letter,): found[letter] / mass if letter in best[:kept] else 0.0 for letter in LETTERS}
            drawn = written(letters, [2, MASK], top_p=top_p)
            assert set(drawn.flatten().tolist()) == set(best[:kept])
            assert chi_square(drawn, expected) < BOUND_3


def test_top_p_comes_after_the_temperature(letters: Predictor) -> None:
    found = torch.tensor(probabilities(letters, [2, MASK], 1)).sort().values
    assert found[1:].sum() > 0.9  # so that the rarest letter falls out, unless all four are made alike
    assert len(written(letters, [2, MASK], top_p=0.9).unique()) == 3
    assert len(written(letters, [2, MASK], top_p=0.9, temperature=100).unique()) == 4


def test_temperature_0_and_a_small_top_p_take_the_likeliest(letters: Predictor) -> None:
    greedy = written(letters, [MASK, 1, MASK], order="confidence", temperature=0)
    assert len(greedy.unique(dim=0)) == 1
    small = written(letters, [MASK, 1, MASK], order="confidence", top_p=1e-9, temperature=1.5)
    assert torch.equal(small, greedy)


def test_confidence_keeps_what_was_likeliest(letters: Predictor) -> None:
    row = [1, MASK, MASK, MASK]
    hidden = torch.arange(1, 4)
    rows = Rows(torch.tensor([row]).repeat(64, 1), hidden, 0, range(64))
    first, *_ = unmask(letters, Request(order="confidence"), rows)
    alone = written(letters, row, order="confidence", steps=1)[:64]  # the same draws, all of them kept
    asked = torch.tensor([probabilities(letters, row, place) for place in (1, 2, 3)])
    surest = asked.gather(1, alone.T).argmax(0)
    expected = rows.tokens.scatter(1, hidden[surest][:, None], alone.gather(1, surest[:, None]))
    assert torch.equal(first, expected)
    assert len(surest.unique()) > 1


def test_random_order_begins_anywhere_alike(letters: Predictor) -> None:
    rows = Rows(torch.full((DRAWS, 4), MASK), torch.arange(4), 0, range(DRAWS))
    first, *_ = unmask(letters, Request(), rows)
    begun = (first != MASK).nonzero()[:, 1:]
    assert len(begun) == DRAWS
    assert chi_square(begun, {(place,): 0.25 for place in range(4)}) < BOUND_3


def test_the_schedule_writes_a_share_a_pass() -> None:
    assert [step.write for step in schedule(10, 4, 0)] == [3, 2, 3, 2]
    assert [step.write for step in schedule(3, None, 0)] == [1, 1, 1]
    assert [step.write for step in schedule(3, 100, 0)] == [1, 1, 1]
    assert [step.write for step in schedule(3, 1, 0)] == [3]


@pytest.mark.parametrize("remask", [0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize(("count", "steps"), [(1, None), (7, None), (64, 10), (64, None), (5, 5)])
def test_the_schedule_ends_with_everything_written(count: int, steps: int | None, remask: float) -> None:
    standing = 0
    passes = schedule(count, steps, remask)
    for number, (write, hide) in enumerate(passes, 1):
        assert hide <= remask * standing
        assert hide < write <= count - standing
        standing += write - hide
        assert standing == -(-count * number // len(passes))
    assert standing == count
    assert passes[-1].hide == 0
    assert sum(step.hide for step in passes) > 0 or remask == 0 or count * remask < 5


@pytest.mark.parametrize("order", ["random", "confidence"])
def test_remasking_writes_some_tokens_anew(letters: Predictor, order: Order) -> None:
    rows = Rows(torch.full((32, 4), MASK), torch.arange(4), 0, range(32))
    states = [rows.tokens, *unmask(letters, Request(order=order, remask=0.5), rows)]
    known = [(state != MASK).sum(1).unique().tolist() for state in states]
    assert known == [[0], [1], [2], [3], [4]]
    hidden_again = [(before != MASK) & (after == MASK) for before, after in pairwise(states)]
    assert [again.sum(1).unique().tolist() for again in hidden_again] == [[0], [0], [1], [0]]


def test_confidence_hides_again_what_was_least_sure(letters: Predictor) -> None:
    rows = Rows(torch.full((64, 4), MASK), torch.arange(4), 0, range(64))
    empty, one, two, three, _ = [rows.tokens, *unmask(letters, Request(order="confidence", remask=0.5), rows)]
    for before, after, then, later in zip(empty.tolist(), one.tolist(), two.tolist(), three.tolist(), strict=True):
        surety = {}
        for seen, came in ((before, after), (after, then)):
            (place,) = [place for place in range(4) if seen[place] == MASK != came[place]]
            surety[place] = probabilities(letters, seen, place)[came[place]]
        (hidden,) = [place for place in range(4) if then[place] != MASK == later[place]]
        assert hidden == min(surety, key=lambda place: surety[place])


def test_each_draw_has_lots_of_its_own() -> None:
    lots = set()
    for seed, number, purpose, start in product((0, 1), (0, 1), ("order", "token"), (0, 8)):
        rows = Rows(torch.zeros(3, 8, dtype=torch.int64), torch.tensor([1, 2, 5]), start, (0, 1, 7))
        lots |= set(Lots(seed, number, rows).of(purpose).flatten().tolist())
    assert len(lots) == 2 * 2 * 2 * 2 * 3 * 3


def test_lots_are_those_of_the_place_in_the_text() -> None:
    rows = Rows(torch.zeros(1, 8, dtype=torch.int64), torch.tensor([5]), 3, [0])
    moved = rows._replace(hidden=torch.tensor([2]), start=6)
    assert torch.equal(Lots(0, 0, rows).of("token"), Lots(0, 0, moved).of("token"))


def test_rare_tokens_come_too() -> None:
    noise = gumbel(torch.arange(1000, dtype=torch.int32))
    assert noise[0] > 22  # a token of probability exp(-22) can come
    assert (noise.diff() < 0).all()  # and no two numbers near there are the same


def test_no_hash_gives_what_is_no_number() -> None:
    assert gumbel(torch.tensor([0, -1, 2**31 - 1, -(2**31)], dtype=torch.int32)).isfinite().all()


def test_noise_has_the_moments_of_the_gumbel_distribution() -> None:
    hashes = torch.arange(-(2**31), 2**31, 2**13 + 1, dtype=torch.int64).to(torch.int32)
    noise = gumbel(hashes).double()
    assert noise.mean().item() == pytest.approx(0.57722, abs=0.005)
    assert noise.var().item() == pytest.approx(1.64493, abs=0.01)
