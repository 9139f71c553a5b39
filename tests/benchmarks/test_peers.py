"""The peers do the same work as our encoder: with its weights they come to its loss."""

import pytest
import torch
import torch.nn.functional as F

from mlm_dist.benchmarks.peers import IGNORED, SeedEncoder, mask_from_the_global_generator
from mlm_dist.config import Config, ModelConfig
from mlm_dist.model.encoder import Block, Encoder

SHAPE = ModelConfig(vocab_size=97, block_size=12, embedding_dim=24, heads=3, blocks=2, tie_embeddings=False)


def with_the_weights_of(encoder: Encoder) -> SeedEncoder:
    seed = SeedEncoder(SHAPE)
    weights = dict(encoder.state_dict())
    renamed = {
        "norm.weight": weights["final_norm.weight"],
        "norm.bias": weights["final_norm.bias"],
        **{name: weights[name] for name in weights if name.split(".")[0] in seed.state_dict() or "embedding" in name},
        **{name: weights[name] for name in ("output.weight", "output.bias")},
    }
    for number, block in enumerate(encoder.blocks):
        assert isinstance(block, Block)
        prefix = f"blocks.{number}."
        for index in range(SHAPE.heads):
            head = block.attention.head(index)
            for part in ("query", "key", "value"):
                renamed[f"{prefix}heads.{index}.{part}.weight"] = getattr(head, part).weight
        for kind in ("weight", "bias"):
            renamed |= {
                f"{prefix}projection.{kind}": weights[f"{prefix}attention.projection.{kind}"],
                f"{prefix}feed_forward.0.{kind}": weights[f"{prefix}feed_forward.expand.{kind}"],
                f"{prefix}feed_forward.2.{kind}": weights[f"{prefix}feed_forward.contract.{kind}"],
                f"{prefix}first_norm.{kind}": weights[f"{prefix}attention_norm.{kind}"],
                f"{prefix}second_norm.{kind}": weights[f"{prefix}feed_forward_norm.{kind}"],
            }
    seed.load_state_dict(renamed)
    return seed


def test_the_seed_with_our_weights_comes_to_our_loss() -> None:
    torch.manual_seed(0)
    encoder = Encoder(SHAPE)
    inputs, labels = torch.randint(0, 97, (5, 12)), torch.randint(0, 97, (5, 12))
    labels[torch.rand(5, 12) < 0.8] = IGNORED
    expected = F.cross_entropy(encoder(inputs).flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    # LayerNorms of the seed have torch's eps, which makes up the small difference.
    torch.testing.assert_close(with_the_weights_of(encoder)(inputs, labels), expected, rtol=1e-3, atol=0)


def test_peers_mask_as_bert_does() -> None:
    torch.manual_seed(0)
    tokens = torch.full((400, 64), 7)
    inputs, labels = mask_from_the_global_generator(tokens, Config().with_vocab_size(50258), mask_id=50257)
    predicted = labels != IGNORED
    assert predicted.float().mean().item() == pytest.approx(0.15, abs=0.01)
    assert (labels[predicted] == 7).all()
    assert (inputs[~predicted] == 7).all()
    assert (inputs[predicted] == 50257).float().mean().item() == pytest.approx(0.8, abs=0.03)
    assert (inputs[predicted] == 7).float().mean().item() == pytest.approx(0.1, abs=0.03)
