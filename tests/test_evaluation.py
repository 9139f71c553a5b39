import dataclasses
import itertools
from typing import Any

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


def held_out(corpus: Corpus, seed: int = 1, **train: Any) -> Validator:
    settings = TrainConfig(**({"batch_size": 16, "eval_interval": 5, "eval_rows": 50} | train))
    config = Config(seed=seed, data=DataConfig(path="unused"), model=MODEL, train=settings)
    return Validator(config, corpus, Processes("cpu"), torch.float32)


def test_the_rows_and_masks_are_the_same_every_time_and_for_every_seed(corpus: Corpus, encoder: Encoder) -> None:
    evaluation = held_out(corpus)
    first = evaluation.evaluate(encoder)
    assert evaluation.evaluate(encoder) == first
    assert held_out(corpus, seed=2).evaluate(encoder) == first


def test_the_batch_size_changes_nothing(corpus: Corpus, encoder: Encoder) -> None:
    results = [held_out(corpus, micro_batch_size=size).evaluate(encoder) for size in (16, 4, 1)]
    for result in results[1:]:
        assert result == pytest.approx(results[0], abs=1e-6)


def test_ranks_share_the_rows_evenly_and_weigh_tokens_alike(corpus: Corpus, encoder: Encoder) -> None:
    whole = held_out(corpus, eval_rows=47)
    sums = []
    for rank in range(3):
        processes = Processes("cpu")
        processes.rank, processes.world_size = rank, 3
        config = Config(model=MODEL, train=TrainConfig(batch_size=15, eval_interval=5, eval_rows=47))
        part = Validator(config, corpus, processes, torch.float32)
        weights = sum(batch.loss_weights.sum().item() for batch in part.batches())
        sums.append((part.rows[part.batch_indices], part.evaluate(encoder)["val_loss"] * weights, weights))
    assert sorted(row for rows, _, _ in sums for row in rows) == sorted(whole.rows)
    mean = sum(loss for _, loss, _ in sums) / sum(weights for _, _, weights in sums)
    assert mean == pytest.approx(whole.evaluate(encoder)["val_loss"], abs=1e-6)


def test_the_loss_is_the_mean_over_masked_tokens(corpus: Corpus, encoder: Encoder) -> None:
    evaluation = held_out(corpus)
    losses: list[float] = []
    hits: list[bool] = []
    for batch in evaluation.batches():
        probabilities = encoder(batch.inputs).double().log_softmax(-1)
        for row in range(len(batch.inputs)):
            for place, target, weight in zip(
                batch.positions[row], batch.targets[row], batch.loss_weights[row], strict=True
            ):
                if weight:
                    losses.append(-probabilities[row, place, target].item())
                    hits.append(bool(probabilities[row, place].argmax() == target))
    result = evaluation.evaluate(encoder)
    assert result["val_loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-6)
    assert result["val_accuracy"] == pytest.approx(sum(hits) / len(hits))


def test_evaluating_leaves_the_encoder_in_training_without_gradients(corpus: Corpus, encoder: Encoder) -> None:
    encoder.train()
    held_out(corpus).evaluate(encoder)
    assert encoder.training
    assert all(weight.grad is None for weight in encoder.parameters())


def test_nothing_is_dropped_while_evaluating(corpus: Corpus) -> None:
    encoder = Encoder(dataclasses.replace(MODEL, dropout=0.5))
    assert held_out(corpus).evaluate(encoder) == held_out(corpus).evaluate(encoder)


def test_the_rows_are_spread_evenly_over_the_held_out_text(corpus: Corpus) -> None:
    evaluation = held_out(corpus, eval_rows=10)
    gaps = [after - before for before, after in itertools.pairwise([*evaluation.rows, len(evaluation.matrix)])]
    assert len(gaps) == 10
    assert max(gaps) - min(gaps) <= 1


def test_an_evaluation_that_is_asked_to_stop_gives_up_before_the_next_batch(corpus: Corpus, encoder: Encoder) -> None:
    evaluation = held_out(corpus, eval_rows=50, micro_batch_size=16)
    answers = iter([False, False, True])
    assert evaluation.evaluate(encoder, lambda: next(answers)) is None
    assert not list(answers)
    assert encoder.training


def test_all_ranks_ask_whether_to_stop_equally_often(corpus: Corpus, encoder: Encoder) -> None:
    # 49 rows are 13, 12, 12 and 12, so rank 0 has a batch of 4 more than the others.
    counts = []
    for rank in range(4):
        processes = Processes("cpu")
        processes.rank, processes.world_size = rank, 4
        config = Config(model=MODEL, train=TrainConfig(batch_size=16, eval_interval=5, eval_rows=49))
        asked: list[bool] = []
        Validator(config, corpus, processes, torch.float32).evaluate(encoder, lambda asked=asked: asked.append(False))  # type: ignore
        counts.append(len(asked))
    assert counts == [4, 4, 4, 4]


def test_evaluations_fall_due_every_interval_and_never_at_0(corpus: Corpus) -> None:
    assert [step for step in range(1, 16) if held_out(corpus).is_due(step)] == [5, 10, 15]
    assert not held_out(corpus, eval_interval=0).is_due(5)


def test_a_corpus_that_holds_nothing_out_is_refused_unless_evaluation_is_off(corpus: Corpus) -> None:
    without = dataclasses.replace(corpus, val=corpus.val[:5])
    with pytest.raises(UserError, match="val_fraction"):
        held_out(without)
    held_out(without, eval_interval=0)
