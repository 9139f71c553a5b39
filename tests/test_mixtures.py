"""A run on a mixture of corpora reports the loss of each, and a wrong mixture is refused in a line."""

import json
import math
import shutil
from pathlib import Path

import pytest

import mlm_dist
from mlm_dist.data.corpus import Corpus
from mlm_dist.data.preparation import SAMPLE_TEXT, encode_corpus
from mlm_dist.data.splitting import hold_out
from mlm_dist.data.tokenizer import Tokenizer
from mlm_dist.distributed import Processes
from mlm_dist.evaluation import evaluate_text
from mlm_dist.run.metrics import Event, read_events
from mlm_dist.texts.document_list import find_documents
from tests.conftest import tiny_flags, verb


def mixture(*parts: tuple[Path, float]) -> str:
    return json.dumps([{"path": str(path), "weight": weight} for path, weight in parts])


@pytest.fixture(scope="module")
def run(corpus_folder: Path, paragraphs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two corpora, the first with three quarters of the rows."""
    run_dir = tmp_path_factory.mktemp("mixture") / "run"
    flags = tiny_flags(corpus_folder, run_dir, data__path=mixture((corpus_folder, 3), (paragraphs, 1)))
    result = verb("train", *flags, "--report_to=tensorboard")
    assert result.returncode == 0, result.stderr
    return run_dir


def evaluations(run_dir: Path) -> list[Event]:
    return [event for event in read_events(run_dir / "metrics.jsonl") if "val_loss" in event]


def test_the_validation_loss_is_reported_for_each_corpus_and_together(
    run: Path, corpus_folder: Path, paragraphs: Path
) -> None:
    assert len(evaluations(run)) == 4
    for event in evaluations(run):
        for key in ("val_loss", "val_accuracy"):
            first, second = event[f"{key}/{corpus_folder}"], event[f"{key}/{paragraphs}"]
            assert key == "val_accuracy" or first != second
            assert event[key] == pytest.approx(0.75 * first + 0.25 * second)


def test_the_loss_of_each_corpus_is_that_of_a_run_on_it(run: Path, paragraphs: Path, tmp_path: Path) -> None:
    result = verb("train", *tiny_flags(paragraphs, tmp_path / "run", train__max_iters=1))
    assert result.returncode == 0, result.stderr
    alone, together = evaluations(tmp_path / "run")[0], evaluations(run)[0]  # both before the first step
    assert together[f"val_loss/{paragraphs}"] == alone["val_loss"]


def test_the_verbs_read_a_run_on_a_mixture(run: Path, corpus_folder: Path, tmp_path: Path) -> None:
    assert verb("fill", "--run", run, "The [MASK].").returncode == 0
    assert verb("export", "--run", run, "--out", tmp_path / "exported").returncode == 0
    assert "sample, corpus" in (tmp_path / "exported" / "README.md").read_text(encoding="utf-8")


def test_a_run_on_a_mixture_is_evaluated_on_each_corpus_and_together(
    run: Path, corpus_folder: Path, paragraphs: Path
) -> None:
    paths = (corpus_folder, paragraphs)
    alone = [json.loads(verb("evaluate", "--run", run, "--data", path, "--json").stdout) for path in paths]
    figures = json.loads(verb("evaluate", "--run", run, "--json").stdout)
    for path, expected in zip(paths, alone, strict=True):
        assert {name: figures[f"{name}/{path}"] for name in expected} == expected
    for name in ("loss", "accuracy", "top5_accuracy"):
        assert figures[name] == pytest.approx(0.75 * alone[0][name] + 0.25 * alone[1][name])
    assert figures["tokens"] == alone[0]["tokens"] + alone[1]["tokens"]
    assert figures["perplexity"] == pytest.approx(math.exp(figures["loss"]))

    headings = [f"{corpus_folder}, weight 3", f"{paragraphs}, weight 1", "together, by weight"]
    blocks = verb("evaluate", "--run", run).stdout.split("\n\n")
    for block, heading, expected in zip(blocks, headings, [*alone, figures], strict=True):
        assert block.startswith(f"{heading}\nloss            {expected['loss']:.4f} nats per masked token\n")


def test_an_evaluation_names_the_corpus_of_a_mixture_that_is_missing(run: Path, paragraphs: Path) -> None:
    moved = paragraphs.rename(paragraphs.with_name("moved"))
    result = verb("evaluate", "--run", run)
    moved.rename(paragraphs)
    assert result.returncode == 2
    [line] = result.stderr.splitlines()
    assert f"the corpus of the run: data.path {paragraphs}: there is no such corpus" in line


@pytest.mark.parametrize("kind", ["other tokenizer", "missing", "twice", "no rows", "wrong"])
def test_a_wrong_mixture_is_refused_in_a_line(
    kind: str, corpus: Corpus, corpus_folder: Path, paragraphs: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    if kind == "other tokenizer":
        assert verb("prepare", SAMPLE_TEXT, "--tokenizer", "bpe", "--vocab_size", 290, "--out", other).returncode == 0
    if kind == "no rows":
        (tmp_path / "short.txt").write_text("So short.", encoding="utf-8")
        other.mkdir()
        encode_corpus(find_documents([tmp_path / "short.txt"]), other, corpus.tokenizer)
    values, words = {
        "other tokenizer": (mixture((corpus_folder, 1), (other, 1)), "other has another tokenizer (bpe) than"),
        "missing": (mixture((corpus_folder, 1), (other, 1)), "other: there is no such corpus or text"),
        "twice": (mixture((paragraphs, 1), (paragraphs, 2)), "twice: give it once, with the sum of the weights"),
        "no rows": (
            mixture((corpus_folder, 1), (other, 1)),
            "less than a row of model.block_size 16",
        ),
        "wrong": (mixture((corpus_folder, -1)), "--data.path is ["),
    }[kind]
    result = verb("train", *tiny_flags(corpus_folder, tmp_path / "run", data__path=values))
    assert result.returncode == 2
    [line] = result.stderr.splitlines()
    assert words in line
    assert not (tmp_path / "run").exists()


def test_a_run_on_a_mixture_does_not_continue_with_other_weights(
    run: Path, corpus_folder: Path, paragraphs: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    changed = mixture((corpus_folder, 1), (paragraphs, 1))
    result = verb("train", *tiny_flags(corpus_folder, copy, data__path=changed, train__max_iters=40))
    assert result.returncode == 2
    assert "was trained with data.weights [3.0, 1.0], not [1.0, 1.0]" in result.stderr


@pytest.fixture(scope="module")
def extended(corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample with the tokenizer of `corpus_folder`, extended by 40 tokens."""
    out = tmp_path_factory.mktemp("extended") / "corpus"
    result = verb("prepare", SAMPLE_TEXT, "--extend", corpus_folder, "--add_tokens", 40, "--out", out)
    assert result.returncode == 0, result.stderr
    return out


def test_a_corpus_trains_with_one_whose_tokenizer_extends_its_own(
    corpus_folder: Path, extended: Path, tmp_path: Path
) -> None:
    flags = tiny_flags(
        corpus_folder,
        tmp_path / "run",
        data__path=mixture((corpus_folder, 1), (extended, 1)),
        model__vocab_size="null",
        masking__replacement="80/10/10",  # a random token may be one that only the extension has
        train__eval_rows=100_000,
    )
    for steps in (1, 2):  # the second command continues the run
        result = verb("train", *flags, f"--train.max_iters={steps}")
        assert result.returncode == 0, result.stderr
    model = mlm_dist.load(tmp_path / "run", "cpu")
    assert model.config.model.vocab_size == 340
    assert model.tokenizer.fingerprint == Corpus.open(extended).tokenizer.fingerprint
    last = evaluations(tmp_path / "run")[-1]
    for folder in (corpus_folder, extended):
        found = evaluate_text(model.encoder, model.config, model.tokenizer, folder, Processes("cpu"), 64)
        assert found.loss == pytest.approx(last[f"val_loss/{folder}"], rel=1e-6)


def test_two_extensions_of_a_tokenizer_do_not_train_together(
    corpus_folder: Path, extended: Path, paragraphs: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("Quite other words, learned from another text. " * 50, encoding="utf-8")
    flags = ["--extend", corpus_folder, "--add_tokens", 20, "--out", tmp_path / "other"]
    assert verb("prepare", tmp_path / "text.txt", *flags).returncode == 0
    parts = mixture((corpus_folder, 1), (extended, 1), (tmp_path / "other", 1))
    result = verb("train", *tiny_flags(corpus_folder, tmp_path / "run", data__path=parts))
    assert result.returncode == 2
    [line] = result.stderr.splitlines()
    assert f"other has another tokenizer (bpe+20) than {extended} (bpe+40)" in line
    assert f"prepare its texts again with --tokenizer {extended}" in line
    smaller = tiny_flags(corpus_folder, tmp_path / "run", data__path=mixture((paragraphs, 1), (extended, 1)))
    result = verb("train", *smaller, "--model.vocab_size=320")
    assert result.returncode == 2
    assert f"{paragraphs}, {extended} has a vocabulary of 340, more than model.vocab_size 320" in result.stderr


def test_a_corpus_in_16_bits_trains_with_one_in_32(corpus: Corpus, corpus_folder: Path, tmp_path: Path) -> None:
    ranks = corpus.tokenizer.ranks | {b" Keeper": 65_600}  # ids without a token make the vocabulary large
    large = Tokenizer.build("large", corpus.tokenizer.pattern, ranks, corpus.tokenizer.special_tokens)
    (tmp_path / "large").mkdir()
    manifest = encode_corpus(hold_out(find_documents([SAMPLE_TEXT]), 0.1), tmp_path / "large", large)
    assert (corpus.manifest.dtype.itemsize, manifest.dtype.itemsize) == (2, 4)
    flags = tiny_flags(corpus_folder, tmp_path / "run", data__path=mixture((corpus_folder, 1), (tmp_path / "large", 1)))
    result = verb("train", *flags, "--model.vocab_size=null", "--train.max_iters=2")
    assert result.returncode == 0, result.stderr
    assert mlm_dist.load(tmp_path / "run", "cpu").tokenizer.encode(" Keeper").tolist() == [65_600]
