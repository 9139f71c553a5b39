from xml.etree import ElementTree

import pytest
import torch

from mlm_dist.errors import UserError
from mlm_dist.inference.model import TrainedModel
from mlm_dist.model.encoder import LAYER_NORM_EPS, Block, Encoder
from mlm_dist.plots.attention import (
    Attention,
    compute_attention,
    inches_per_token,
    lay_out_attention,
    size_of_attention,
)
from mlm_dist.plots.style import new_figure, render

TEXT = "The [MASK] lamp"


@pytest.fixture(scope="module")
def attention(model: TrainedModel) -> Attention:
    return compute_attention(model, TEXT)


def blocks_of(model: TrainedModel) -> list[Block]:
    assert isinstance(model.encoder, Encoder)
    blocks = [block for block in model.encoder.blocks if isinstance(block, Block)]
    assert len(blocks) == len(model.encoder.blocks)
    return blocks


@torch.no_grad()
def block_inputs(model: TrainedModel) -> list[torch.Tensor]:
    """The normalized input of each block's attention, computed from the definition: (1, T, C) each."""
    ids = model.tokenizer.encode_with_masks(TEXT)
    encoder = model.encoder
    assert isinstance(encoder, Encoder)
    x = encoder.token_embedding.weight[ids][None] + encoder.position_embedding.weight[: len(ids)]
    inputs = []
    for block in blocks_of(model):
        variance, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
        norm = block.attention_norm
        inputs.append((x - mean) / (variance + LAYER_NORM_EPS).sqrt() * norm.weight + norm.bias)
        x = block(x)
    return inputs


def test_there_is_a_map_for_each_head_of_each_block(model: TrainedModel, attention: Attention) -> None:
    length = len(model.tokenizer.encode_with_masks(TEXT))
    assert attention.maps.shape == (2, 2, length, length)
    assert len(attention.tokens) == length
    assert attention.tokens.count("[MASK]") == 1


def test_the_attention_of_a_token_sums_to_1(attention: Attention) -> None:
    assert attention.maps.min() >= 0
    assert attention.maps.sum(-1) == pytest.approx(1, abs=1e-5)


@torch.no_grad()
def test_the_maps_are_the_softmax_of_queries_times_keys(model: TrainedModel, attention: Attention) -> None:
    for i, (block, x) in enumerate(zip(blocks_of(model), block_inputs(model), strict=True)):
        weight = block.attention.query_key_value.weight
        for head in range(2):
            rows = slice(8 * head, 8 * head + 8)
            query, key = x[0] @ weight[:16][rows].T, x[0] @ weight[16:32][rows].T
            expected = (query @ key.T / 8**0.5).softmax(-1)
            torch.testing.assert_close(torch.tensor(attention.maps[i, head]).float(), expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_maps_reproduce_the_output_of_each_attention_layer(model: TrainedModel, attention: Attention) -> None:
    for i, (block, x) in enumerate(zip(blocks_of(model), block_inputs(model), strict=True)):
        layer = block.attention
        maps = torch.tensor(attention.maps[i]).float()
        joined = torch.cat([maps[head] @ layer.head(head).value(x[0]) for head in range(2)], dim=-1)
        torch.testing.assert_close(layer.projection(joined), layer(x)[0], atol=1e-5, rtol=1e-4)


def test_the_model_is_not_changed(model: TrainedModel, attention: Attention) -> None:
    assert not any(module._forward_pre_hooks for module in model.encoder.modules())
    assert (compute_attention(model, TEXT).maps == attention.maps).all()


def test_a_text_must_fit_the_context_window(model: TrainedModel) -> None:
    assert compute_attention(model, "~" * 16).maps.shape[-1] == 16
    with pytest.raises(UserError, match="the text has 17 tokens, but the context window is 16: use a shorter text"):
        compute_attention(model, "~" * 17)


def test_an_empty_text_is_reported(model: TrainedModel) -> None:
    with pytest.raises(UserError, match="the text is empty"):
        compute_attention(model, "")


def plot(attention: Attention) -> tuple[list[str], tuple[float, float]]:
    size = size_of_attention(attention)
    with new_figure(*size) as figure:
        lay_out_attention(figure, attention)
        svg = ElementTree.fromstring(render(figure, "svg"))
    return ["".join(text.itertext()) for text in svg.iter("{http://www.w3.org/2000/svg}text")], size


def test_each_head_has_a_title_and_the_tokens_label_the_edges(attention: Attention) -> None:
    texts, _ = plot(attention)
    assert [text for text in texts if text.startswith("block")] == [
        f"block {block}, head {head}" for block in range(2) for head in range(2)
    ]
    assert texts.count("[MASK]") == 4  # beside two maps and below two maps


def test_each_map_of_a_long_text_has_readable_labels() -> None:
    tokens = [f"token{i}" for i in range(40)]
    attention = Attention(tokens, torch.eye(40).repeat(2, 2, 1, 1).numpy())
    texts, size = plot(attention)
    assert texts.count("token7") == 8
    assert inches_per_token(attention) > 0.1
    assert max(size) < 100
