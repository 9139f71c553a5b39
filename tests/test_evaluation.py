import dataclasses
import itertools
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from mlm_dist.config import Config, DataConfig, ModelConfig, TrainConfig
from mlm_dist.data.corpus import Corpus
from mlm_dist.distributed import Processes
from mlm_dist.errors import UserError
from mlm_dist.evaluation import Validator
from mlm_dist.model.encoder import Encoder

MODEL = ModelConfig(vocab_size=300, block_size=16, embedding_dim=16, heads=2, blocks=1)


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(1)
    return Encoder(MODEL)


def make_validator(corpus: Corpus, seed: int = 1, **train: Any) -> Validator:
    settings = TrainConfig(**({"batch_size": 16, "eval_interval": 5, "eval_rows": 50} | train))
    config = Config(seed=seed, data=DataConfig(path="unused"), model=MODEL, train=settings)
    return Validator(config, corpus, Processes("cpu"), torch.float32)


def evaluate(evaluation: Validator, encoder: Encoder) -> dict[str, float]:
    result = evaluation.evaluate(encoder)
    assert result is not None
    return result


def test_rows_and_masks_are_the_same_every_time_and_for_every_seed(corpus: Corpus, encoder: Encoder) -> None:
    evaluation = make_validator(corpus)
    first = evaluation.evaluate(encoder)
    assert evaluation.evaluate(encoder) == first
    assert make_validator(corpus, seed=2).evaluate(encoder) == first


def test_the_batch_size_does_not_change_the_result(corpus: Corpus, encoder: Encoder) -> None:
    results = [make_validator(corpus, micro_batch_size=size).evaluate(encoder) for size in (16, 4, 1)]
    for result in results[1:]:
        assert result == pytest.approx(results[0], abs=1e-6)


def test_ranks_share_the_rows_and_give_every_token_the_same_weight(corpus: Corpus, encoder: Encoder) -> None:
    whole = make_validator(corpus, eval_rows=47)
    sums = []
    for rank in range(3):
        processes = Processes("cpu")
        processes.rank, processes.world_size = rank, 3
        config = Config(model=MODEL, train=TrainConfig(batch_size=15, eval_interval=5, eval_rows=47))
        part = Validator(config, corpus, processes, torch.float32)
        loss_weights = sum(batch.loss_weights.sum().item() for batch in part.batches())
        sums.append((part.rows[part.batch_indices], evaluate(part, encoder)["val_loss"] * loss_weights, loss_weights))
    assert sorted(row for rows, _, _ in sums for row in rows) == sorted(whole.rows)
    mean = sum(loss for _, loss, _ in sums) / sum(loss_weights for _, _, loss_weights in sums)
    assert mean == pytest.approx(evaluate(whole, encoder)["val_loss"], abs=1e-6)


def test_the_loss_is_the_mean_over_masked_tokens(corpus: Corpus, encoder: Encoder) -> None:
    evaluation = make_validator(corpus)
    losses: list[float] = []
    hits: list[bool] = []
    for batch in evaluation.batches():
        log_probabilities = encoder(batch.inputs).double().log_softmax(-1)
        for row in range(len(batch.inputs)):
            for position, target, loss_weight in zip(
                batch.positions[row], batch.targets[row], batch.loss_weights[row], strict=True
            ):
                if loss_weight:
                    losses.append(-log_probabilities[row, position, target].item())
                    hits.append(bool(log_probabilities[row, position].argmax() == target))
    result = evaluate(evaluation, encoder)
    assert result["val_loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-6)
    assert result["val_accuracy"] == pytest.approx(sum(hits) / len(hits))


def test_evaluation_leaves_the_encoder_in_training_mode_without_gradients(corpus: Corpus, encoder: Encoder) -> None:
    encoder.train()
    make_validator(corpus).evaluate(encoder)
    assert encoder.training
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_there_is_no_dropout_in_evaluation(corpus: Corpus) -> None:
    encoder = Encoder(dataclasses.replace(MODEL, dropout=0.5))
    assert make_validator(corpus).evaluate(encoder) == make_validator(corpus).evaluate(encoder)


def test_the_rows_are_spread_evenly_over_the_validation_split(corpus: Corpus) -> None:
    evaluation = make_validator(corpus, eval_rows=10)
    gaps = [after - before for before, after in itertools.pairwise([*evaluation.rows, len(evaluation.matrix)])]
    assert len(gaps) == 10
    assert max(gaps) - min(gaps) <= 1


def test_a_stop_request_ends_an_evaluation_before_the_next_batch(corpus: Corpus, encoder: Encoder) -> None:
    evaluation = make_validator(corpus, eval_rows=50, micro_batch_size=16)
    stop_requests = iter([False, False, True])
    assert evaluation.evaluate(encoder, lambda: next(stop_requests)) is None
    assert not list(stop_requests)
    assert encoder.training


def test_all_ranks_check_for_a_stop_request_equally_often(corpus: Corpus, encoder: Encoder) -> None:
    # The ranks have 13, 12, 12 and 12 of the 49 rows, so that only rank 0 has a fourth micro-batch.
    counts = []
    for rank in range(4):
        processes = Processes("cpu")
        processes.rank, processes.world_size = rank, 4
        config = Config(model=MODEL, train=TrainConfig(batch_size=16, eval_interval=5, eval_rows=49))
        stop = Mock(return_value=False)
        Validator(config, corpus, processes, torch.float32).evaluate(encoder, stop)
        counts.append(stop.call_count)
    assert counts == [4, 4, 4, 4]


def test_evaluations_are_due_at_every_interval_and_never_if_it_is_0(corpus: Corpus) -> None:
    assert [step for step in range(1, 16) if make_validator(corpus).is_due(step)] == [5, 10, 15]
    assert not make_validator(corpus, eval_interval=0).is_due(5)


def test_a_corpus_without_validation_rows_is_refused_unless_evaluation_is_off(corpus: Corpus) -> None:
    without = dataclasses.replace(corpus, val=corpus.val[:5])
    with pytest.raises(UserError, match="val_fraction"):
        make_validator(without)
    make_validator(without, eval_interval=0)
