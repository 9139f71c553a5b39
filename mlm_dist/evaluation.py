"""Masked evaluation, during training and afterwards, on fixed rows with fixed masks, split over the ranks."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from mlm_dist.config import Config, MaskingConfig
from mlm_dist.data.corpus import MANIFEST, Corpus, Verify, token_dtype
from mlm_dist.data.encoding import encode_in_order
from mlm_dist.data.masking import MaskedBatch, Masker, load_batch
from mlm_dist.data.preparation import find_or_prepare
from mlm_dist.data.sampler import Indices, Selection
from mlm_dist.data.shards import StoredRows, StoredTokens, Tokens
from mlm_dist.data.tokenizer import Tokenizer
from mlm_dist.distributed import Processes
from mlm_dist.errors import UserError
from mlm_dist.fault_points import reached
from mlm_dist.model.loss import loss_and_hits
from mlm_dist.model.masked_model import MaskedModel
from mlm_dist.precision import autocast
from mlm_dist.texts.document_list import find_documents
from mlm_dist.texts.reading import Reading

# Not the seed of the run: runs with different seeds are evaluated with the same masks.
SEED = 0
EPOCH = 0


class Evaluation(NamedTuple):
    """How well a model predicts masked tokens. With sampled mask rates, each masked token counts with its loss weight.

    Attributes:
        loss: nats per masked token; with sampled mask rates, nats per token of the text.
        accuracy: fraction of masked tokens that are the most likely token.
        top5_accuracy: fraction of masked tokens that are among the five most likely tokens.
        tokens: number of masked tokens; with sampled mask rates, of tokens.
        bytes_per_token: mean length of these tokens, in bytes.
    """

    loss: float
    accuracy: float
    top5_accuracy: float
    tokens: int
    bytes_per_token: float

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return float(np.exp(self.loss))

    @property
    def bits_per_byte(self) -> float:
        """The loss per byte of the masked tokens, in bits; comparable between models with different vocabularies."""
        return self.loss / math.log(2) / max(1.0, self.bytes_per_token)


class Validator:
    """Evaluates a model on the validation rows of a run.

    Raises:
        UserError: there is no validation row, although the config asks for evaluations.
    """

    def __init__(self, config: Config, corpus: Corpus, processes: Processes, dtype: torch.dtype) -> None:
        self.processes = processes
        self.dtype = dtype
        self.byte_lengths = torch.from_numpy(corpus.tokenizer.byte_lengths)
        self.matrix = corpus.rows("val", config.model.block_size)
        self.interval = config.train.eval_interval
        self.batch_size = config.micro_batch_size(processes.world_size)
        if self.interval and not len(self.matrix):
            raise UserError(
                f"{corpus.folder} has {len(corpus.val)} validation tokens, less than one row: prepare it with a larger "
                f"val_fraction, or turn evaluation off with train.eval_interval 0"
            )
        count = min(config.train.eval_rows, len(self.matrix))
        self.rows = np.linspace(0, len(self.matrix), count, endpoint=False).astype(np.int64)
        self.batch_indices = np.arange(processes.rank, count, processes.world_size)
        self.batch_count = math.ceil(count / processes.world_size / self.batch_size)  # of the rank with the most
        self.last_step = config.train.max_iters
        self.masker = Masker.from_config(
            config, config.model.block_size, corpus.tokenizer, SEED, max(1, count), processes.device
        )

    def is_due(self, step: int) -> bool:
        """Whether to evaluate after a step."""
        return self.interval > 0 and step % self.interval == 0

    def batches(self) -> Iterator[MaskedBatch]:
        """Read and mask the rows of this rank."""
        indices = self.batch_indices
        yield from masked_batches(
            self.matrix, self.rows[indices], indices, self.masker, self.batch_size, self.last_step
        )

    def evaluate(self, encoder: MaskedModel, stop: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
        """Compute `val_loss`, in nats per masked token, and `val_accuracy` over the rows of all ranks.

        Args:
            encoder: the model.
            stop: called before every batch, on all ranks, with the same result on all.

        Returns:
            None if `stop` returned true.
        """
        # None where another rank has one more batch.
        batches = (batch for _, batch in itertools.zip_longest(range(self.batch_count), self.batches()))
        result = evaluate_batches(encoder, batches, self.byte_lengths, self.processes, self.dtype, stop)
        return result and {"val_loss": result.loss, "val_accuracy": result.accuracy}


class MixtureValidator:
    """Evaluates a model on the validation rows of every corpus of a run, and of corpora that are only watched.

    Raises:
        UserError: as `Validator`, for any of the corpora.
    """

    def __init__(self, config: Config, corpora: Sequence[Corpus], processes: Processes, dtype: torch.dtype) -> None:
        self.build = partial(Validator, config, processes=processes, dtype=dtype)
        self.validators = [self.build(corpus) for corpus in corpora]
        self.watched: dict[str, Validator] = {}
        self.weights = config.data.weights
        self.paths = [part["path"] for part in config.data.parts]
        self.interval = config.train.eval_interval
        self.is_due = self.validators[0].is_due

    def watch(self, path: str, corpus: Corpus) -> None:
        """Also evaluate on the validation rows of a corpus that the run is not trained on."""
        self.watched[path] = self.build(corpus)

    def evaluate(self, encoder: MaskedModel, stop: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
        """Compute `val_loss` and `val_accuracy` as `Validator.evaluate`.

        With several corpora, they are the means over the corpora by their weights, and `val_loss/PATH` and
        `val_accuracy/PATH` are those of each, and of each that is watched.
        """
        results = []
        for validator in [*self.validators, *self.watched.values()]:
            result = validator.evaluate(encoder, stop)
            if result is None:
                return None
            results.append(result)
        trained, watched = results[: len(self.validators)], results[len(self.validators) :]
        by_path = dict(zip(self.watched, watched, strict=True))
        if len(trained) > 1:
            by_path = dict(zip(self.paths, trained, strict=True)) | by_path
        together = {key: weighted_mean([r[key] for r in trained], self.weights) for key in trained[0]}
        return together | {f"{key}/{path}": value for path, r in by_path.items() for key, value in r.items()}


def weighted_mean(values: Sequence[float], weights: Sequence[float]) -> float:
    """The mean of the values of corpora, by the weights of the corpora."""
    total = sum(weights)
    return sum(weight / total * value for value, weight in zip(values, weights, strict=True))


@torch.no_grad()
def evaluate_batches(
    encoder: MaskedModel,
    batches: Iterable[MaskedBatch | None],
    byte_lengths: torch.Tensor,
    processes: Processes,
    dtype: torch.dtype,
    stop: Callable[[], bool] = lambda: False,
) -> Evaluation | None:
    """Evaluate a model on the batches of all ranks.

    Args:
        encoder: the model.
        batches: the batches of this rank, as many as on every other rank; None for no batch.
        byte_lengths: (V,) the bytes of each token.
        processes: all ranks.
        dtype: the dtype of matrix products.
        stop: called before every batch, also before one that is None, with the same result on all ranks.

    Returns:
        None if `stop` returned true.
    """
    was_training = encoder.training
    encoder.eval()
    byte_lengths = byte_lengths.to(processes.device, torch.float32)
    sums = torch.zeros(5, dtype=torch.float64, device=processes.device)
    for batch in batches:
        if stop():
            encoder.train(was_training)
            return None
        if batch is None:
            continue
        with autocast(processes.device, dtype):
            reached("evaluation batch begins")
            hidden = encoder.encode(batch.inputs, batch.positions, batch.documents)
            softcap = encoder.config.logit_softcap
            found = loss_and_hits(hidden, encoder.output, batch.targets, batch.loss_weights, softcap)
        sizes = byte_lengths[batch.targets] * batch.loss_weights
        sums += torch.stack([*found, batch.loss_weights.sum(), sizes.sum()])
    encoder.train(was_training)
    loss, top_1, top_5, count, size = processes.sum_(sums).tolist()
    tokens = max(count, 1)
    return Evaluation(loss / tokens, top_1 / tokens, top_5 / tokens, round(count), size / tokens)


def with_one_corpus(config: Config) -> list[Config]:
    """For each corpus of a run, the config of the run with this corpus alone."""
    data = [dataclasses.replace(config.data, path=part["path"]) for part in config.data.parts]
    return [dataclasses.replace(config, data=one) for one in data]


def with_encoding(config: Config, encoding: str) -> Config:
    """The config of a run for other texts, which have this character encoding."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, encoding=encoding))


def mean_evaluation(results: Sequence[Evaluation], weights: Sequence[float]) -> Evaluation:
    """The means of the results of corpora, by the weights of the corpora, with the tokens of all."""
    losses, accuracies, top5_accuracies, tokens, sizes = zip(*results, strict=True)
    loss, accuracy, top5_accuracy, size = (
        weighted_mean(part, weights) for part in (losses, accuracies, top5_accuracies, sizes)
    )
    return Evaluation(loss, accuracy, top5_accuracy, sum(tokens), size)


def evaluate_text(
    encoder: MaskedModel,
    config: Config,
    tokenizer: Tokenizer,
    path: Path | None,
    processes: Processes,
    batch_size: int,
    masking: MaskingConfig | None = None,
) -> Evaluation:
    """Evaluate a trained model on a whole text, in fp32, with its rows split over the ranks.

    The loss may differ slightly from that of a run in bf16 on `train.eval_rows`.

    Args:
        encoder: the model, the same on all ranks.
        config: the config of its run.
        tokenizer: the tokenizer of its run.
        path: a prepared corpus, for its validation split, or texts in any format that `prepare` reads. None: the corpus
            of the config, which has a single one.
        processes: all ranks.
        batch_size: rows per forward pass of a rank.
        masking: replaces the masking of the run. With a `mask_prob_range` of [0, 1], the loss is an upper bound on the
            negative log-likelihood of the text, in nats per token.

    Raises:
        UserError: there is no such corpus or text, it is too short, or the corpus has a different tokenizer.
    """
    with processes.raise_on_all_ranks():
        tokens = find_tokens(config, tokenizer, path, "once" if processes.is_local_rank_zero else "never")
    config = dataclasses.replace(config, masking=masking or config.masking)
    batches = text_batches(tokens, config, tokenizer, processes, batch_size)
    byte_lengths = torch.from_numpy(tokenizer.byte_lengths)
    result = evaluate_batches(encoder, batches, byte_lengths, processes, torch.float32)
    assert result is not None  # there is no `stop`
    if not result.tokens:
        raise UserError(f"{path or config.data.paths}: the text is too short: no token is masked; give a longer one")
    return result


def find_tokens(config: Config, tokenizer: Tokenizer, path: Path | None, verify: Verify) -> StoredTokens:
    """The token ids to evaluate on, as in `evaluate_text`; `verify` as in `Corpus.open`."""
    if path is not None and not (path / MANIFEST).exists():
        return encode_texts(path, Reading.from_config(config.data), tokenizer)
    try:
        folder = path or find_or_prepare(config.data, config.model.vocab_size)
    except UserError as error:
        raise UserError(f"the corpus of the run: {error}; or give another corpus or text with --data") from error
    corpus = Corpus.open(folder, verify)
    if not tokenizer.extends(corpus.tokenizer):
        raise UserError(f"{folder} was prepared with a different tokenizer: give the text itself")
    if not len(corpus.val):
        raise UserError(f"{folder} has no validation tokens: give a text, or a corpus with validation tokens")
    # Training drops a last row that is too short, and the results should be the same.
    length = config.model.block_size
    return corpus.val[: len(corpus.val) // length * length] if len(corpus.val) >= length else corpus.val


def encode_texts(path: Path, reading: Reading, tokenizer: Tokenizer) -> Tokens:
    """The token ids of texts, each document followed by `<|endoftext|>`."""
    documents = find_documents([path], reading=reading)
    ids = [encoded.ids for encoded in encode_in_order(documents.pieces(), tokenizer)]
    return np.concatenate(ids).astype(token_dtype(tokenizer.vocab_size))


def text_batches(
    tokens: StoredTokens, config: Config, tokenizer: Tokenizer, processes: Processes, batch_size: int
) -> Iterator[MaskedBatch]:
    """The rows of a text that this rank evaluates, masked; the last row of the text may be shorter."""
    length = config.model.block_size
    count, rest = divmod(len(tokens), length)
    parts = [(tokens[: count * length].reshape(count, length), range(count)[processes.rank :: processes.world_size])]
    if rest and count % processes.world_size == processes.rank:
        parts.append((tokens[count * length :].reshape(1, rest), range(1)))
    for matrix, indices in parts:
        rows = np.array(indices, dtype=np.int64)
        masker = Masker.from_config(config, matrix.shape[1], tokenizer, SEED, max(1, len(matrix)), processes.device)
        yield from masked_batches(matrix, rows, rows, masker, batch_size, config.train.max_iters)


def masked_batches(
    matrix: StoredRows, rows: Indices, batch_indices: Indices, masker: Masker, batch_size: int, last_step: int
) -> Iterator[MaskedBatch]:
    """Read and mask rows, `batch_size` at a time.

    Args:
        matrix: (rows of the corpus, T) token ids.
        rows: (N,) indices of the rows to read.
        batch_indices: (N,) the stratum of each row's sampled mask rate.
        masker: masks rows of T tokens.
        batch_size: rows per batch.
        last_step: the end of a mask-rate schedule. The mask rate is the one of this step.
    """
    for start in range(0, len(rows), batch_size):
        part = slice(start, start + batch_size)
        yield load_batch(matrix, Selection.of_epoch(last_step, EPOCH, rows[part], batch_indices[part]), masker)
