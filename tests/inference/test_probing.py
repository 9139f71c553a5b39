from pathlib import Path

import numpy as np
import pytest
import torch

import mlm_dist
from mlm_dist.config import ModelConfig
from mlm_dist.data.corpus import Corpus
from mlm_dist.errors import UserError
from mlm_dist.inference import predictor
from mlm_dist.inference.model import TrainedModel
from mlm_dist.inference.probe_report import to_text
from mlm_dist.inference.probing import Accuracy, accuracy, compare
from mlm_dist.inference.scoring import Score
from mlm_dist.model.encoder import Encoder
from mlm_dist.texts.minimal_pairs import MinimalPair
from tests.huggingface.conftest import make_run

PAIRS = [
    MinimalPair("The lamp went out.", "The lamp out went.", "order", "syntax"),
    MinimalPair("Nobody saw it.", "Nobody it saw.", "order", "syntax"),
    MinimalPair("He came in.", "He come in, unbelievably, under the harbour wall.", "agreement", "syntax"),
    MinimalPair("She was seen.", "She was slept at the ferry.", "passive", "arguments"),
]


@pytest.fixture(scope="session")
def model(run_dir: Path) -> TrainedModel:
    return mlm_dist.load(run_dir, "cpu")


def compared(*scores: tuple[tuple[float, int], tuple[float, int]]) -> list[tuple[float, float]]:
    """The accuracies by sums and by means, overall, of one pair per scores."""
    return [
        (probe.overall.summed.value, probe.overall.per_token.value)
        for good, bad in scores
        for probe in [compare(1, 16, False, PAIRS[:1], [(Score(*good), Score(*bad))])]
    ]


def test_a_pair_is_right_if_its_acceptable_sentence_is_more_likely_and_a_tie_counts_one_half() -> None:
    assert compared(((-4, 2), (-5, 2)), ((-5, 2), (-4, 2))) == [(1, 1), (0, 0)]
    assert compared(((-6, 3), (-5, 2))) == [(0, 1)]  # the mean does not favour the shorter sentence
    assert compared(((-4, 2), (-4 - 1e-6, 2)), ((-4 - 1e-4, 2), (-4, 2))) == [(0.5, 0.5), (0, 0)]


def test_results_are_by_file_by_phenomenon_and_over_all() -> None:
    scores = [(Score(good, 2), Score(-4.0, 2)) for good in (-3.0, -4.0, -5.0, -3.0)]
    probe = compare(7, 16, False, PAIRS, scores)
    assert {name: (group.pairs, group.summed.value) for name, group in probe.files.items()} == {
        "order": (2, 0.75),
        "agreement": (1, 0.0),
        "passive": (1, 1.0),
    }
    assert {name: (group.pairs, group.per_token.value) for name, group in probe.phenomena.items()} == {
        "syntax": (3, 0.5),
        "arguments": (1, 1.0),
    }
    assert (probe.step, probe.overall.pairs, probe.overall.summed.value, probe.long_sentences) == (7, 4, 0.625, 0)


def test_the_interval_is_that_of_samples_drawn_with_replacement() -> None:
    results = np.repeat([0.0, 0.5, 1.0], [30, 10, 60])
    found = accuracy(results)
    assert found == accuracy(results[::-1])
    generator = np.random.default_rng(1)
    means = generator.choice(results, (10_000, 100)).mean(1)
    assert found.value == pytest.approx(0.65)
    assert (found.low, found.high) == pytest.approx(np.quantile(means, (0.025, 0.975)), abs=0.006)
    assert accuracy(np.ones(5)) == Accuracy(1, 1, 1)


def test_a_constant_model_gets_exactly_one_half(corpus: Corpus, tmp_path: Path) -> None:
    encoder = Encoder(ModelConfig(vocab_size=300, block_size=16, embedding_dim=16, heads=2, blocks=1))
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
    model = make_run(tmp_path / "run", encoder.config, corpus.tokenizer, encoder)
    probe = model.probe(PAIRS)
    assert [group.per_token for group in probe.files.values()] == [Accuracy(0.5, 0.5, 0.5)] * 3
    good, bad = (model.score([pair[side] for pair in PAIRS]) for side in (0, 1))
    same_length = [pair for pair, a, b in zip(PAIRS, good, bad, strict=True) if a.tokens == b.tokens]
    assert same_length
    assert model.probe(same_length, within_word=True).overall.summed == Accuracy(0.5, 0.5, 0.5)


@pytest.mark.parametrize("within_word", [False, True])
def test_a_model_is_probed_by_its_scores(model: TrainedModel, within_word: bool) -> None:
    expected = [
        model.score([pair.good], within_word)[0].log_likelihood > model.score([pair.bad], within_word)[0].log_likelihood
        for pair in PAIRS
    ]
    probe = model.probe(PAIRS, within_word)
    assert probe.overall.summed.value == sum(expected) / len(PAIRS)
    assert probe.step == 30


def test_results_do_not_depend_on_the_batch_size(model: TrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = model.probe(PAIRS * 5)
    monkeypatch.setattr(predictor, "MAX_BATCH_SIZE", 3)
    monkeypatch.setattr("mlm_dist.inference.scoring.TOKENS_AT_ONCE", 0)
    monkeypatch.setattr("mlm_dist.inference.scoring.ROWS_COMPARED", 7)
    assert model.probe(PAIRS * 5) == probe


def test_sentences_that_are_scored_in_windows_are_counted(model: TrainedModel) -> None:
    probe = model.probe(PAIRS)
    lengths = [score.tokens for pair in PAIRS for score in model.score([pair.good, pair.bad])]
    assert probe.long_sentences == sum(length > 16 for length in lengths) == 1
    assert "sentences of more than 16 tokens: 1; each of their tokens is predicted from a window" in to_text(probe, 16)


def test_no_pairs_are_an_error(model: TrainedModel) -> None:
    with pytest.raises(UserError, match="there are no minimal pairs"):
        model.probe([])
