"""The peers do the same work as mlm_dist: with the same parameters, they compute the same loss."""

import pytest
import torch
import torch.nn.functional as F

from mlm_dist.benchmarks.peers import IGNORED, NaiveEncoder, mask_with_global_generator
from mlm_dist.config import Config, ModelConfig
from mlm_dist.model.encoder import Block, Encoder

SHAPE = ModelConfig(vocab_size=97, block_size=12, embedding_dim=24, heads=3, blocks=2, tie_embeddings=False)


def with_parameters_of(encoder: Encoder) -> NaiveEncoder:
    naive = NaiveEncoder(SHAPE)
    state = dict(encoder.state_dict())
    renamed = {
        "norm.weight": state["final_norm.weight"],
        "norm.bias": state["final_norm.bias"],
        **{name: state[name] for name in state if name.split(".")[0] in naive.state_dict() or "embedding" in name},
        **{name: state[name] for name in ("output.weight", "output.bias")},
    }
    for i, block in enumerate(encoder.blocks):
        assert isinstance(block, Block)
        prefix = f"blocks.{i}."
        for h in range(SHAPE.heads):
            head = block.attention.head(h)
            for part in ("query", "key", "value"):
                renamed[f"{prefix}heads.{h}.{part}.weight"] = getattr(head, part).weight
        for kind in ("weight", "bias"):
            renamed |= {
                f"{prefix}projection.{kind}": state[f"{prefix}attention.projection.{kind}"],
                f"{prefix}feed_forward.0.{kind}": state[f"{prefix}feed_forward.expand.{kind}"],
                f"{prefix}feed_forward.2.{kind}": state[f"{prefix}feed_forward.contract.{kind}"],
                f"{prefix}first_norm.{kind}": state[f"{prefix}attention_norm.{kind}"],
                f"{prefix}second_norm.{kind}": state[f"{prefix}feed_forward_norm.{kind}"],
            }
    naive.load_state_dict(renamed)
    return naive


def test_the_naive_peer_with_the_same_parameters_computes_the_same_loss() -> None:
    torch.manual_seed(0)
    encoder = Encoder(SHAPE)
    inputs, labels = torch.randint(0, 97, (5, 12)), torch.randint(0, 97, (5, 12))
    labels[torch.rand(5, 12) < 0.8] = IGNORED
    expected = F.cross_entropy(encoder(inputs).flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    # The LayerNorms of the naive encoder use torch's default eps, which causes the small difference.
    torch.testing.assert_close(with_parameters_of(encoder)(inputs, labels), expected, rtol=1e-3, atol=0)


def test_peers_mask_like_bert() -> None:
    torch.manual_seed(0)
    tokens = torch.full((400, 64), 7)
    inputs, labels = mask_with_global_generator(tokens, Config().with_vocab_size(50258), mask_id=50257)
    predicted = labels != IGNORED
    assert predicted.float().mean().item() == pytest.approx(0.15, abs=0.01)
    assert (labels[predicted] == 7).all()
    assert (inputs[~predicted] == 7).all()
    assert (inputs[predicted] == 50257).float().mean().item() == pytest.approx(0.8, abs=0.03)
    assert (inputs[predicted] == 7).float().mean().item() == pytest.approx(0.1, abs=0.03)
