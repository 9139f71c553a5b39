"""Loss weights by token frequency."""

import numpy as np
import pytest
import torch

from mlm_dist.config import Config, ModelConfig, TrainConfig
from mlm_dist.data import token_frequency, word_count
from mlm_dist.data.corpus import Corpus
from mlm_dist.data.masking import Masker
from mlm_dist.data.sampler import Selection
from mlm_dist.data.token_frequency import scaled_weights, token_frequencies, weights_by_frequency
from mlm_dist.errors import UserError

CPU = torch.device("cpu")
FIRST, SECOND = np.array([0, 1, 1, 3], dtype=np.uint16), np.array([1, 1, 4, 4, 4], dtype=np.uint32)


@pytest.mark.parametrize("block", [1, 3, 100])
def test_frequencies_are_fractions_of_the_training_tokens(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_frequency, "BLOCK", block)
    monkeypatch.setattr(word_count, "BLOCK", block)
    assert token_frequencies([FIRST], [7.0], 6).tolist() == [0.25, 0.5, 0, 0.25, 0, 0]
    mixed = token_frequencies([FIRST, SECOND], [1.0, 3.0], 6)
    assert mixed == pytest.approx([0.0625, 0.125 + 0.3, 0, 0.0625, 0.45, 0])
    assert mixed.sum() == pytest.approx(1)


@pytest.mark.parametrize("exponent", [0.25, 0.5, 1.0])
def test_rare_tokens_have_a_larger_weight_and_the_mean_is_1(exponent: float) -> None:
    frequencies = token_frequencies([FIRST], [1.0], 5)
    weights = scaled_weights(frequencies, exponent).double().numpy()
    assert weights[0] / weights[1] == pytest.approx(2**exponent)
    assert (weights[[2, 4]] == weights[0]).all()  # those that never occur
    assert frequencies @ weights == pytest.approx(1, rel=1e-6)


def test_a_masker_multiplies_loss_weights_by_those_of_the_targets(corpus: Corpus) -> None:
    rows = torch.from_numpy(np.array(corpus.train[: 8 * 16]).astype(np.int64)).view(8, 16)
    selection = Selection.of_epoch(0, 0, np.arange(8), np.arange(8))
    weights = scaled_weights(token_frequencies([corpus.train], [1.0], 300), 0.5)
    plain, weighted = (
        Masker.from_config(Config(), 16, corpus.tokenizer, 1, 8, CPU, given)(rows, selection)
        for given in (None, weights)
    )
    assert torch.equal(weighted.loss_weights, plain.loss_weights * weights[plain.targets])
    assert torch.equal(weighted.inputs, plain.inputs)
    assert torch.equal(weighted.digest(), plain.digest())
    assert weighted.loss_weights[plain.loss_weights > 0].unique().numel() > 3


def test_weights_are_refused_in_fp16_and_are_none_without_an_exponent() -> None:
    model, weighted = ModelConfig(vocab_size=5), TrainConfig(loss_frequency_exponent=0.5)
    config = Config(model=model, train=weighted)
    found = weights_by_frequency(config, [FIRST], torch.bfloat16, CPU)
    assert found is not None and found.tolist() == scaled_weights(token_frequencies([FIRST], [1.0], 5), 0.5).tolist()
    assert weights_by_frequency(Config(model=model), [FIRST], torch.float16, CPU) is None
    with pytest.raises(UserError, match="loss_frequency_exponent needs another precision than fp16"):
        weights_by_frequency(config, [FIRST], torch.float16, CPU)
