"""A model that is sure enough of itself for its answers to differ."""

import pytest
import torch

from mlm_dist.config import ModelConfig
from mlm_dist.data.corpus import Corpus
from mlm_dist.inference.predictor import Predictor
from mlm_dist.model.encoder import Encoder


@pytest.fixture(scope="session")
def predictor(corpus: Corpus) -> Predictor:
    """An encoder of random weights, in fp64, for rows of 16 of the sample's tokens. It has entries to spare."""
    torch.manual_seed(0)
    encoder = Encoder(ModelConfig(vocab_size=310, block_size=16, embedding_dim=16, heads=2, blocks=2)).double().eval()
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.mul_(8)
    return Predictor(encoder, corpus.tokenizer, torch.device("cpu"))
