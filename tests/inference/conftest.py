"""A model whose predictions are confident enough to differ."""

import pytest
import torch

from mlm_dist.config import ModelConfig
from mlm_dist.data.corpus import Corpus
from mlm_dist.inference.predictor import Predictor
from mlm_dist.model.encoder import Encoder


@pytest.fixture(scope="session")
def predictor(corpus: Corpus) -> Predictor:
    """A random encoder in fp64 with block size 16. Its vocabulary is larger than the tokenizer's."""
    torch.manual_seed(0)
    encoder = Encoder(ModelConfig(vocab_size=310, block_size=16, embedding_dim=16, heads=2, blocks=2)).double().eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(8)
    return Predictor(encoder, corpus.tokenizer, torch.device("cpu"))
