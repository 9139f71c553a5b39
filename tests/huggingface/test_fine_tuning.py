"""A pretrained model learns better from few labels than a freshly initialized one, using only transformers."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import mlm_dist
from mlm_dist.data.preparation import prepare_corpus
from mlm_dist.data.splitting import hold_out
from mlm_dist.huggingface.export import export_model
from mlm_dist.texts.document_list import find_documents
from tests.conftest import tiny_flags, verb

SEEDS = 3
LABELLED = 8
VALIDATION = 400
STEPS = 30


class Authors:
    """Two authors who write about the same 100 concepts, each with their own names for them.

    Each concept is followed by one of four others. An author uses their own name for it with probability 0.8, and else
    that of the other author. So a single word says little about the author, but all words of a passage do, and which
    names belong to the same author can be learned without labels.
    """

    def __init__(self) -> None:
        rng = random.Random(0)
        syllables = [consonant + vowel for consonant in "bdfgklmnprst" for vowel in "aeiou"]
        names = rng.sample([first + second for first in syllables for second in syllables], 200)
        self.names = [names[:100], names[100:]]
        self.next = [rng.sample(range(100), 4) for _ in range(100)]

    def passage(self, author: int, rng: random.Random, words: int = 30) -> str:
        concept, passage = rng.randrange(100), []
        for _ in range(words):
            passage.append(self.names[author if rng.random() < 0.8 else 1 - author][concept])
            concept = rng.choice(self.next[concept])
        return " ".join(passage)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A model this small is fastest on one core, and the other cores stay free for other tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pretrain(authors: Authors, folder: Path) -> Path:
    """Train on passages without labels, and export the model."""
    rng = random.Random(1)
    (folder / "texts").mkdir()
    for author in range(2):
        text = "\n".join(authors.passage(author, rng, words=60) for _ in range(1500))
        (folder / "texts" / f"{author}.txt").write_text(text, encoding="utf-8")
    documents = hold_out(find_documents([folder / "texts"]), 0.05)
    prepare_corpus(documents, folder / "corpus", "bpe", vocab_size=1000)
    shape = {"vocab_size": 1000, "block_size": 32, "embedding_dim": 64, "heads": 4, "blocks": 2}
    training = {
        "train__batch_size": 64,
        "train__max_iters": 250,
        "checkpoint__interval": 250,
        "train__eval_interval": 0,
    }
    optimizer = {"optim__name": "muon", "optim__lr": 3e-3, "optim__warmup_iters": 20}
    overrides = {f"model__{key}": value for key, value in shape.items()} | training | optimizer
    result = verb("train", *tiny_flags(folder / "corpus", folder / "run", **overrides))
    assert result.returncode == 0, result.stderr
    export_model(mlm_dist.load(folder / "run", "cpu"), folder / "out")
    return folder / "out"


def fine_tune(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, authors: Authors, seed: int) -> float:
    """Fine-tune on few labelled passages. Returns the accuracy on others."""

    def batch(rng: random.Random, count: int) -> dict[str, torch.Tensor]:
        labels = [i % 2 for i in range(count)]
        passages = [authors.passage(author, rng) for author in labels]
        encoded = tokenizer(passages, truncation=True, padding=True, return_tensors="pt")
        return {**encoded, "labels": torch.tensor(labels)}

    labelled, validation = batch(random.Random(seed), LABELLED), batch(random.Random("held out"), VALIDATION)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    for _ in range(STEPS):
        model(**labelled).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        correct: torch.Tensor = model(**validation).logits.argmax(-1) == validation["labels"]
    return correct.float().mean().item()


@pytest.mark.slow
def test_a_pretrained_model_learns_authors_from_few_passages(tmp_path: Path) -> None:
    authors = Authors()
    out = pretrain(authors, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(out)
    pretrained, fresh = [], []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(out)
        pretrained.append(fine_tune(model, tokenizer, authors, seed))
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(out))
        fresh.append(fine_tune(model, tokenizer, authors, seed))
    print(f"\npretrained {[f'{result:.1%}' for result in pretrained]}, fresh {[f'{result:.1%}' for result in fresh]}")
    assert min(pretrained) > 0.95
    assert sum(pretrained) / SEEDS > sum(fresh) / SEEDS + 0.1
