"""How well a trained model guesses masked tokens of texts, masked as they are in the evaluations of a run."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from mlm_dist.config import Config, MaskingConfig, MaskProb
from mlm_dist.data.batches import load_batch
from mlm_dist.data.corpus import MANIFEST, Corpus, Tokens, Verify, token_dtype
from mlm_dist.data.masking import MaskedBatch, Masker
from mlm_dist.data.preparation import encode_in_order, find_or_prepare, read_all
from mlm_dist.data.sampler import Selection
from mlm_dist.data.texts import find_documents
from mlm_dist.data.tokenizer import Tokenizer
from mlm_dist.distributed import Processes
from mlm_dist.errors import UserError
from mlm_dist.evaluation import EPOCH, SEED, Evaluation, measure
from mlm_dist.inference.model import TrainedModel


def evaluate(
    model: TrainedModel, path: Path | None, processes: Processes, batch_size: int, mask_prob: MaskProb | None = None
) -> Evaluation:
    """Measure a model on a text that the processes share.

    In fp32, and on all of the text, so the loss may differ a little from that of a run in bf16 on `train.eval_rows`.

    Args:
        model: the same on all ranks.
        path: a prepared corpus, of which the held-out part is taken, or a text file or a folder of *.txt files, which
            are taken whole. None: the corpus of the run.
        processes: that share the rows.
        batch_size: rows that each reads at a time.
        mask_prob: what to hide, token by token and always by the mask token, in place of what the run has hidden. With
            a range of [0, 1] the loss is a bound of the text's negative log-likelihood, in nats a token.

    Raises:
        UserError: there is no such corpus or text, nothing in it, or the corpus has other tokens than the run.
    """
    with processes.together():
        tokens = find_tokens(model.config, model.tokenizer, path, "once" if processes.is_first_here else "never")
    masking = model.config.masking if mask_prob is None else MaskingConfig(mask_prob)
    config = dataclasses.replace(model.config, masking=masking)
    batches = masked_batches(tokens, config, model.tokenizer, processes, batch_size)
    result = measure(model.encoder, batches, processes, torch.float32)
    assert result is not None  # nothing has asked it to stop
    if not result.tokens:
        raise UserError(f"{path or model.config.data.path}: no token of so short a text is hidden: give more of it")
    return result


def find_tokens(config: Config, tokenizer: Tokenizer, path: Path | None, verify: Verify) -> Tokens:
    """The token ids to evaluate on, as `evaluate` says; `verify` as for `Corpus.open`."""
    if path is not None and not (path / MANIFEST).exists():
        return encode_texts(path, tokenizer)
    try:
        folder = path or find_or_prepare(config.data, config.model.vocab_size)
    except UserError as error:
        raise UserError(f"the run's own corpus: {error}; --data names another corpus or text") from error
    corpus = Corpus.open(folder, verify)
    if corpus.tokenizer.fingerprint != tokenizer.fingerprint:
        raise UserError(f"{folder} was prepared with other tokens than the run's: give the text itself")
    if not len(corpus.val):
        raise UserError(f"{folder} holds out nothing: give a text, or a corpus with a held-out part")
    # The run leaves out what is too short for a row, and the figures are to be those of the run.
    whole_rows = corpus.rows("val", config.model.block_size).reshape(-1)
    return whole_rows if len(whole_rows) else corpus.val


def encode_texts(path: Path, tokenizer: Tokenizer) -> Tokens:
    """The token ids of texts, each followed by `<|endoftext|>`."""
    end = np.array([tokenizer.end_id], dtype=np.uint32)
    ids: list[Tokens] = []
    last = 0
    for number, _, piece in encode_in_order(read_all(find_documents([path]), "utf-8"), tokenizer):
        ids += [end, piece] if number != last else [piece]
        last = number
    return np.concatenate([*ids, end]).astype(token_dtype(tokenizer.vocab_size))


def masked_batches(
    tokens: Tokens, config: Config, tokenizer: Tokenizer, processes: Processes, batch_size: int
) -> Iterator[MaskedBatch]:
    """A rank's share of the rows of a text, masked; the last row may be a shorter one."""
    length = config.model.block_size
    count, rest = divmod(len(tokens), length)
    stretches = [
        (tokens[: count * length].reshape(count, length), range(count)[processes.rank :: processes.world_size])
    ]
    if rest and count % processes.world_size == processes.rank:
        stretches.append((tokens[None, count * length :], range(1)))
    for matrix, numbers in stretches:
        rows = np.array(numbers, dtype=np.int64)
        masker = Masker.of(config, matrix.shape[1], tokenizer, SEED, max(1, len(matrix)), processes.device)
        for start in range(0, len(rows), batch_size):
            places = rows[start : start + batch_size]
            selection = Selection(config.train.max_iters, EPOCH, places, places)
            yield load_batch(matrix, selection, masker, processes.device)
