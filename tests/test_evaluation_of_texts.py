import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import mlm_dist
from mlm_dist.config import MaskingConfig
from mlm_dist.data.corpus import Corpus
from mlm_dist.data.preparation import SAMPLE_TEXT, prepare_corpus
from mlm_dist.data.splitting import hold_out
from mlm_dist.distributed import Processes
from mlm_dist.errors import UserError
from mlm_dist.evaluation import Evaluation, encode_texts, evaluate_batches, evaluate_text, find_tokens, text_batches
from mlm_dist.inference.model import TrainedModel
from mlm_dist.model.encoder import Encoder
from mlm_dist.run.metrics import read_events
from mlm_dist.texts.document_list import find_documents
from mlm_dist.texts.reading import Reading
from tests.conftest import at_rate, tiny_flags, verb

TEXT = "Aunt Zoë went up the stairs.\nThe ferry came in under the harbour wall, and nobody saw it.\n"


def evaluate(
    model: TrainedModel, path: Path | None, processes: Processes, batch_size: int, masking: MaskingConfig | None = None
) -> Evaluation:
    return evaluate_text(model.encoder, model.config, model.tokenizer, path, processes, batch_size, masking)


@pytest.fixture(scope="module")
def model(run_dir: Path) -> TrainedModel:
    return mlm_dist.load(run_dir, "cpu")


@pytest.mark.parametrize("documents", ["joined", "isolated"])
def test_results_on_the_corpus_of_the_run_equal_those_of_the_run(
    documents: str, paragraphs: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    flags = tiny_flags(paragraphs, run_dir, train__max_iters=3, train__eval_rows=100_000, data__documents=documents)
    result = verb("train", *flags)
    assert result.returncode == 0, result.stderr
    last_event = [event for event in read_events(run_dir / "metrics.jsonl") if "val_loss" in event][-1]
    found = evaluate(mlm_dist.load(run_dir, "cpu"), None, Processes("cpu"), 64)
    assert last_event["step"] == 3
    assert found.loss == pytest.approx(last_event["val_loss"], rel=1e-6)
    assert found.accuracy == last_event["val_accuracy"]


def test_the_path_of_the_corpus_of_the_run_gives_the_same_results(model: TrainedModel, corpus_folder: Path) -> None:
    processes = Processes("cpu")
    assert evaluate(model, corpus_folder, processes, 64) == evaluate(model, None, processes, 64)


@pytest.mark.parametrize("batch_size", [5, 33, 1000])
def test_the_batch_size_does_not_change_the_results(model: TrainedModel, batch_size: int) -> None:
    expected = evaluate(model, SAMPLE_TEXT, Processes("cpu"), 64)
    found = evaluate(model, SAMPLE_TEXT, Processes("cpu"), batch_size)
    assert found == pytest.approx(expected, rel=1e-6)


def test_ranks_share_all_rows_of_a_text_including_a_short_last_row(model: TrainedModel) -> None:
    tokens = encode_texts(SAMPLE_TEXT, Reading(), model.tokenizer)
    assert len(tokens) % 16

    def rows(rank: int, world_size: int) -> list[list[int]]:
        processes = Processes("cpu")
        processes.rank, processes.world_size = rank, world_size
        batches = text_batches(tokens, model.config, model.tokenizer, processes, 10)
        return [row for batch in batches for row in batch.inputs.tolist()]

    expected = rows(0, 1)
    assert sorted(row for rank in range(3) for row in rows(rank, 3)) == sorted(expected)
    assert sum(map(len, expected)) == len(tokens)


def test_a_text_shorter_than_a_row_is_evaluated(model: TrainedModel, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("The lamp.")
    found = evaluate(model, tmp_path / "short.txt", Processes("cpu"), 64)
    assert found.tokens >= 1
    assert found.loss > 0


def test_a_text_without_a_masked_token_is_refused(model: TrainedModel, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a", encoding="utf-8")
    with pytest.raises(UserError, match="the text is too short: no token is masked"):
        evaluate(model, tmp_path / "text.txt", Processes("cpu"), 4)


def test_every_text_is_encoded_with_an_end_token(model: TrainedModel, tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(TEXT)
    tokenizer = model.tokenizer
    expected = [*tokenizer.encode(TEXT), tokenizer.end_id] * 2
    assert encode_texts(tmp_path, Reading(), tokenizer).tolist() == expected


def test_a_text_is_split_into_documents_as_those_of_the_run(model: TrainedModel, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    data = dataclasses.replace(model.config.data, split="line")
    config = dataclasses.replace(model.config, data=data)
    tokens = find_tokens(config, model.tokenizer, tmp_path / "text.txt", "never")
    assert isinstance(tokens, np.ndarray)
    assert tokens.tolist().count(model.tokenizer.end_id) == len(TEXT.splitlines()) == 2


def test_the_original_texts_and_the_corpus_are_not_needed(run_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy)
    config = (copy / "config.yaml").read_text()
    path = json.dumps(str(tmp_path / "gone"))
    lines = [f"  path: {path}" if line.startswith("  path:") else line for line in config.splitlines()]
    (copy / "config.yaml").write_text("\n".join(lines))
    model = mlm_dist.load(copy, "cpu")
    (tmp_path / "text.txt").write_text(TEXT)
    assert evaluate(model, tmp_path / "text.txt", Processes("cpu"), 64).tokens > 1
    with pytest.raises(UserError, match=r"gone.*no such corpus or text"):
        evaluate(model, None, Processes("cpu"), 64)


def test_a_corpus_with_another_tokenizer_is_refused(model: TrainedModel, tmp_path: Path) -> None:
    other = tmp_path / "other"
    prepare_corpus(hold_out(find_documents([SAMPLE_TEXT]), 0.1), other, "bpe", vocab_size=310)
    with pytest.raises(UserError, match=r"other.*a different tokenizer"):
        find_tokens(model.config, model.tokenizer, other, "once")


def test_a_corpus_without_validation_tokens_is_refused(
    model: TrainedModel, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = dataclasses.replace(corpus, val=corpus.val[:0])
    monkeypatch.setattr(Corpus, "open", lambda folder, verify: empty)
    with pytest.raises(UserError, match="has no validation tokens"):
        find_tokens(model.config, model.tokenizer, corpus.folder, "once")


def test_a_missing_text_is_reported(model: TrainedModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.txt: there is no such file"):
        evaluate(model, tmp_path / "nowhere.txt", Processes("cpu"), 64)


def test_with_sampled_mask_rates_the_loss_is_the_mean_over_all_generation_orders(model: TrainedModel) -> None:
    # Exact: the mean over all orders of the negative log-likelihood of generating the row token by token.
    ids = model.tokenizer.encode("The lamp went out").tolist()[:5]
    torch.manual_seed(6)
    encoder = Encoder(dataclasses.replace(model.config.model, block_size=5)).eval()
    for parameter in encoder.parameters():
        parameter.data *= 5  # so that the predictions depend on the visible tokens
    subsets = torch.arange(1 << 5)[:, None] >> torch.arange(5) & 1
    inputs = torch.tensor(ids).where(subsets == 0, model.tokenizer.mask_id)
    with torch.no_grad():
        losses = -encoder(inputs).log_softmax(-1)[:, torch.arange(5), ids]
    orders = list(itertools.permutations(range(5)))
    exact = 0.0
    for order in orders:
        masked = 31
        for position in order:
            exact += losses[masked, position].item() / len(orders)
            masked ^= 1 << position

    config = dataclasses.replace(model.config, model=encoder.config, masking=at_rate([0.0, 1.0]))
    processes, rows = Processes("cpu"), np.tile(np.array(ids, dtype=np.uint16), 20_000)
    batches = text_batches(rows, config, model.tokenizer, processes, 500)
    found = evaluate_batches(encoder, batches, torch.zeros(model.tokenizer.vocab_size), processes, torch.float32)
    assert found is not None
    assert found.tokens == 5 * 20_000
    unweighted = sum(losses[masked] @ subsets[masked].float() for masked in range(32)) / subsets.sum()
    assert unweighted.item() != pytest.approx(exact / 5, abs=0.1)
    assert found.loss == pytest.approx(exact / 5, abs=0.02)  # three standard errors
    assert losses[31].mean().item() != pytest.approx(exact / 5, abs=0.1)  # not the loss of a row of masks only


def test_the_mask_rate_can_differ_from_that_of_the_run(model: TrainedModel) -> None:
    processes = Processes("cpu")
    assert evaluate(model, SAMPLE_TEXT, processes, 64, at_rate(0.15)) == evaluate(model, SAMPLE_TEXT, processes, 64)
    half, sampled = (evaluate(model, SAMPLE_TEXT, processes, 64, at_rate(rate)) for rate in (0.5, [0.0, 1.0]))
    tokens = encode_texts(SAMPLE_TEXT, Reading(), model.tokenizer)
    maskable = int((tokens != model.tokenizer.end_id).sum())
    assert half.tokens == pytest.approx(maskable / 2, rel=0.01)
    assert sampled.tokens == maskable
    assert sampled.loss == pytest.approx(evaluate(model, SAMPLE_TEXT, processes, 7, at_rate([0.0, 1.0])).loss, rel=1e-6)
