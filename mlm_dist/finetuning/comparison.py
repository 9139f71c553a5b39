"""Learning a task with a trained encoder, with the same encoder untrained, and without an encoder."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import torch

from mlm_dist.distributed import Processes
from mlm_dist.finetuning.baselines import majority, tf_idf
from mlm_dist.finetuning.examples import LabelledTask, Split
from mlm_dist.finetuning.frozen import States, pool, probe_states
from mlm_dist.finetuning.full import Recipe, Sequences, Texts, fine_tune
from mlm_dist.finetuning.outcome import Outcome
from mlm_dist.finetuning.result_folder import ResultFolder
from mlm_dist.finetuning.sequences import encode_texts, sequence_tokenizer
from mlm_dist.inference.model import TrainedModel
from mlm_dist.inference.predictor import Predictor
from mlm_dist.inference.task_report import MAJORITY, TFIDF, TRAINED, UNTRAINED
from mlm_dist.model.encoder import as_encoder
from mlm_dist.model.masked_model import MaskedModel
from mlm_dist.model.registry import build_model
from mlm_dist.output import warn

Learn = Callable[[MaskedModel, Split, int], Outcome]
"""Learns the task with an encoder and a seed. All ranks call it."""


class Contestant(NamedTuple):
    """One of those that are compared.

    Attributes:
        name: its name.
        varies: whether it depends on the seed.
        learn: learns the task with a seed. All ranks call it.
    """

    name: str
    varies: bool
    learn: Callable[[int], Outcome]


@dataclass(frozen=True)
class Method:
    """How encoders learn the task.

    Attributes:
        recipe: of full fine-tuning; None: a linear probe on pooled states, which do not change.
        layer: as in `TrainedModel.embed`.
    """

    recipe: Recipe | None
    layer: int | None


def contestants(model: TrainedModel, task: LabelledTask, method: Method, processes: Processes) -> Iterator[Contestant]:
    """Those that are compared: three baselines and the trained encoder.

    Raises:
        UserError: the model cannot be fine-tuned.
    """
    learn = frozen(model, task, method.layer) if method.recipe is None else full(model, task, method.recipe, processes)
    own_dev, classes = task.dev is None, len(task.classes)

    def untrained(seed: int) -> Outcome:
        torch.manual_seed(seed)
        encoder = build_model(replace(model.config.model, dropout=0.0)).to(model.device).eval()
        return learn(encoder, task.split(seed), seed)

    yield Contestant(
        MAJORITY, own_dev, lambda seed: processes.on_rank_zero(lambda: majority(task.split(seed), classes))
    )
    yield Contestant(TFIDF, own_dev, lambda seed: processes.on_rank_zero(lambda: tf_idf(task.split(seed), classes)))
    yield Contestant(UNTRAINED, True, untrained)
    varies = own_dev or method.recipe is not None
    yield Contestant(TRAINED, varies, lambda seed: learn(model.encoder, task.split(seed), seed))


def frozen(model: TrainedModel, task: LabelledTask, layer: int | None) -> Learn:
    """Learning by a linear probe on pooled states. Those of the trained encoder are computed once."""

    def states_of(encoder: MaskedModel) -> States:
        return pool(Predictor(encoder, model.tokenizer, model.device), task, layer)

    of_trained = cache(lambda: states_of(model.encoder))

    def learn(encoder: MaskedModel, split: Split, _seed: int) -> Outcome:
        states = of_trained() if encoder is model.encoder else states_of(encoder)
        return probe_states(states, split, task.classes, model.config.model.blocks if layer is None else layer)

    return learn


def full(model: TrainedModel, task: LabelledTask, recipe: Recipe, processes: Processes) -> Learn:
    """Learning by full fine-tuning.

    Raises:
        UserError: the model is not an `Encoder`, or its tokenizer cannot be converted.
    """
    as_encoder(model.encoder, "full fine-tuning")
    converted = sequence_tokenizer(model.tokenizer)
    parts = [part for part in (task.train, task.dev, task.test) if part]
    every = [*dict.fromkeys(texts for part in parts for texts in part.texts)]
    ids, cut = encode_texts(converted, every, model.config.model.block_size)
    if cut:
        warn(f"{cut:,} texts have more than {model.config.model.block_size} tokens: they are cut")
    sequences: Sequences = dict(zip(every, ids, strict=True))
    texts = Texts(sequences, model.tokenizer, converted)

    def learn(encoder: MaskedModel, split: Split, seed: int) -> Outcome:
        whole = as_encoder(encoder, "full fine-tuning")
        return fine_tune(whole, texts, split, task.classes, recipe, seed, processes)

    return learn


def compare(
    every: Sequence[Contestant], seeds: int, folder: ResultFolder, processes: Processes
) -> dict[str, list[Outcome]]:
    """Let each contestant learn the task with each seed, or once if it does not depend on it.

    What the folder already has is not learned again. All ranks call this.
    """
    results: dict[str, list[Outcome]] = {}
    for name, varies, learn in every:
        results[name] = []
        for seed in range(seeds if varies else 1):
            outcome = processes.on_rank_zero(lambda: folder.read(name, seed))  # noqa: B023 (called at once)
            if outcome is None:
                outcome = learn(seed)
                best = max((earlier.dev for earlier in results[name]), default=-math.inf)
                with processes.raise_on_all_ranks():
                    if processes.is_rank_zero:
                        folder.write(name, seed, outcome if name == TRAINED else outcome._replace(save=None), best)
            results[name].append(outcome._replace(save=None))
    return results
