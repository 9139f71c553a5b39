from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch

from mlm_dist.inference.filling import fill
from mlm_dist.inference.generation import SHADE, Generation, generate, plan, shaded
from mlm_dist.inference.predictor import Predictor
from mlm_dist.inference.request import Order, Request
from mlm_dist.model.encoder import Encoder

MASK = 9
GAPS = "Zoë [GAP:3] «a» [GAP:2]."
LONG = "Aunt Zoë went up [GAP:12] the stairs and came down again and saw the [GAP:30] window of the hall.[GAP:3]"

OPTIONS: list[dict[str, Any]] = [
    {},
    {"steps": 2},
    {"temperature": 0.5},
    {"temperature": 0},
    {"top_p": 0.5},
    {"remask": 0.4},
    {"steps": 3, "temperature": 2.0, "top_p": 0.9, "remask": 0.5},
]


@pytest.fixture
def encoder_inputs(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The inputs of the encoder, one per forward pass."""
    inputs: list[torch.Tensor] = []
    encode = Encoder.encode

    def record(self: Encoder, tokens: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        inputs.append(tokens.clone())
        return encode(self, tokens, positions)

    monkeypatch.setattr(Encoder, "encode", record)
    return inputs


def split(predictor: Predictor, text: str) -> Iterator[int | None]:
    """Ids of a text with gaps; None for each token to generate."""
    first, *others = text.replace(" [GAP", "[GAP").split("[GAP:")
    yield from predictor.tokenizer.encode(first).tolist()
    for other in others:
        size, fixed = other.split("]", 1)
        yield from [None] * int(size)
        yield from predictor.tokenizer.encode(fixed).tolist()


def assert_generated(predictor: Predictor, text: str, generation: Generation) -> None:
    """The given tokens are unchanged, every gap is filled, and the text matches the tokens."""
    decode, special = predictor.tokenizer.decode, set(predictor.tokenizer.ids_without_text)
    fixed = list(split(predictor, text))
    assert len(generation.tokens) == len(fixed)
    for token, given in zip(generation.tokens, fixed, strict=True):
        assert token == given or (given is None and token not in special and token < predictor.tokenizer.vocab_size)
    assert generation.text == decode(generation.tokens)
    pieces = text.replace(" [GAP", "[GAP").split("[GAP:")
    rest = generation.text
    for piece in [pieces[0], *(piece.split("]", 1)[1] for piece in pieces[1:])]:
        assert piece in rest
        rest = rest[rest.index(piece) + len(piece) :]


@pytest.mark.parametrize("order", ["random", "confidence"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("text", ["[GAP:9]", GAPS, LONG], ids=["nothing fixed", "two gaps", "longer than the block"])
def test_the_given_text_is_kept_and_every_gap_is_filled(
    predictor: Predictor, text: str, options: dict[str, Any], order: Order
) -> None:
    request = Request(text, samples=8, order=order, **options)
    generations = generate(predictor, request)
    assert len(generations) == 8
    for generation in generations:
        assert_generated(predictor, text, generation)
    assert generate(predictor, request) == generations
    other = generate(predictor, Request(text, samples=8, order=order, seed=1, **options))
    greedy = order == "confidence" and options.get("temperature") == 0
    assert (other == generations) == greedy
    assert len({generation.text for generation in [*generations, *other]}) > 1 or greedy


def test_a_prompt_is_continued(predictor: Predictor) -> None:
    (generation,) = generate(predictor, Request("The lamp", length=5))
    assert_generated(predictor, "The lamp[GAP:5]", generation)
    assert generation == generate(predictor, Request("The lamp[GAP:5]"))[0]
    assert generation == generate(predictor, Request("The lamp ", length=5))[0]  # the model generates the space
    assert generation.text == "The lamp" + generation.written[0]


def test_an_empty_request_generates_one_block(predictor: Predictor) -> None:
    (generation,) = generate(predictor, Request())
    assert len(generation.tokens) == predictor.block_size
    assert generation.written == [generation.text]


def test_the_generated_text_of_each_gap_is_returned(predictor: Predictor) -> None:
    (generation,) = generate(predictor, Request("One [GAP:2][GAP:3] two [GAP:1] three"))
    fixed = list(split(predictor, "One[GAP:2][GAP:3] two[GAP:1] three"))
    new = [token for token, given in zip(generation.tokens, fixed, strict=True) if given is None]
    decode = predictor.tokenizer.decode
    assert generation.written == [decode(new[:2]), decode(new[2:5]), decode(new[5:])]


def test_the_space_before_a_gap_belongs_to_the_gap(predictor: Predictor) -> None:
    assert generate(predictor, Request("The [GAP:3]!")) == generate(predictor, Request("The[GAP:3]!"))


def test_text_that_looks_like_a_special_token_stays_text(predictor: Predictor) -> None:
    (generation,) = generate(predictor, Request("<|endoftext|> [GAP:2]"))
    assert generation.text.startswith("<|endoftext|>")
    assert predictor.tokenizer.end_id not in generation.tokens


@pytest.mark.parametrize("order", ["random", "confidence"])
def test_a_sample_does_not_depend_on_the_number_of_samples(
    predictor: Predictor, order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = generate(predictor, Request(GAPS, samples=7, order=order, remask=0.3))
    assert generate(predictor, Request(GAPS, samples=2, order=order, remask=0.3)) == many[:2]
    monkeypatch.setattr("mlm_dist.inference.generation.MAX_BATCH_SIZE", 3)
    monkeypatch.setattr("mlm_dist.inference.unmasking.MAX_POSITIONS", 2)
    assert generate(predictor, Request(GAPS, samples=7, order=order, remask=0.3)) == many


def test_greedy_generation_in_confidence_order_equals_fill(predictor: Predictor) -> None:
    gaps = "[GAP:1] went [GAP:1] the [GAP:2] stairs"
    (generation,) = generate(predictor, Request(gaps, order="confidence", temperature=0))
    masks = gaps.replace("[GAP:1]", "[MASK]").replace("[GAP:2]", "[MASK*2]")
    assert generation.text == fill(predictor, masks, 1).text


@pytest.mark.parametrize("order", ["random", "confidence"])
@pytest.mark.parametrize("remask", [0.0, 0.5])
@pytest.mark.parametrize(
    ("text", "steps", "passes"), [(GAPS, None, 5), (GAPS, 2, 2), (GAPS, 99, 5), (LONG, None, 45), (LONG, 1, 7)]
)
def test_every_pass_reads_a_new_input_with_masks(
    predictor: Predictor,
    encoder_inputs: list[torch.Tensor],
    order: Order,
    remask: float,
    text: str,
    steps: int | None,
    passes: int,
) -> None:
    generations = generate(predictor, Request(text, samples=5, order=order, remask=remask, steps=steps))
    assert len(encoder_inputs) == passes
    assert {generation.passes for generation in generations} == {passes}
    assert all((tokens == predictor.tokenizer.mask_id).any(1).all() for tokens in encoder_inputs)
    for before, after in pairwise(encoder_inputs):
        assert before.shape != after.shape or (before != after).any(1).all()


def test_a_batch_is_one_forward_pass(predictor: Predictor, encoder_inputs: list[torch.Tensor]) -> None:
    generate(predictor, Request(GAPS, samples=64))
    assert {len(tokens) for tokens in encoder_inputs} == {64}


def test_a_text_of_one_block_is_one_stretch() -> None:
    assert plan([1, MASK, 2, MASK], MASK, 4) == [([1, 3], (0, 4))]


def test_a_continuation_reads_as_many_earlier_tokens_as_possible() -> None:
    prompt = [1] * 10
    assert plan(prompt + [MASK] * 6, MASK, 8) == [
        ([10, 11, 12, 13], (6, 14)),
        ([14, 15], (8, 16)),
    ]


def test_a_gap_in_a_long_text_is_in_the_middle_of_its_window() -> None:
    assert plan([1] * 20 + [MASK] * 2 + [1] * 20, MASK, 8) == [([20, 21], (17, 25))]


def test_the_window_avoids_tokens_that_are_still_masked() -> None:
    ids = [1] * 20 + [MASK] * 6 + [1] * 20
    assert plan(ids, MASK, 8) == [([20, 21, 22, 23], (16, 24)), ([24, 25], (21, 29))]


@pytest.mark.parametrize("block_size", [1, 2, 3, 8, 16])
@pytest.mark.parametrize("seed", range(5))
def test_each_masked_token_is_generated_once_in_a_window_that_contains_it(block_size: int, seed: int) -> None:
    torch.manual_seed(seed)
    ids = torch.where(torch.rand(70) < torch.rand(70).cummax(0).values, MASK, 1).tolist()
    masked = [position for position, token in enumerate(ids) if token == MASK]
    stretches = plan(ids, MASK, block_size)
    assert [position for positions, _ in stretches for position in positions] == masked
    for positions, (start, stop) in stretches:
        assert 0 <= start <= positions[0] <= positions[-1] < stop <= len(ids)
        assert stop - start == block_size


def test_the_last_watched_frame_is_the_text(predictor: Predictor) -> None:
    frames: list[str] = []
    generations = generate(predictor, Request(LONG, samples=2, remask=0.4), frames.append)
    assert generations == generate(predictor, Request(LONG, samples=2, remask=0.4))
    assert len(frames) == 90
    assert frames[0].startswith("Aunt Zoë went up")
    assert [frames[44], frames[89]] == [generation.text for generation in generations]
    shades = [frame.count(SHADE) for frame in frames]
    assert shades[:8] == [7, 6, 5, 4, 3, 2, 1, 0]


def test_masked_tokens_are_shaded(predictor: Predictor) -> None:
    mask = predictor.tokenizer.mask_id
    ids = predictor.tokenizer.encode("The «lamp»").tolist()
    assert shaded(predictor, [mask, *ids, mask, mask]) == f"{SHADE}The «lamp»{SHADE}{SHADE}"


def test_samples_at_two_positions_are_independent(predictor: Predictor) -> None:
    texts = [generation.tokens for generation in generate(predictor, Request(samples=64, length=2, temperature=100))]
    assert len({tuple(tokens) for tokens in texts}) > 60
    assert Counter(first == second for first, second in texts)[True] < 4
