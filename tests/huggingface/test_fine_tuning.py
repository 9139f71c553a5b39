"""What was learned without labels helps to learn with few of them, through transformers alone."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

import mlm_dist
from mlm_dist.data.preparation import prepare_corpus
from mlm_dist.data.splitting import hold_out
from mlm_dist.data.texts import find_documents
from mlm_dist.huggingface.export import export_model
from tests.conftest import tiny_flags, verb

SEEDS = 3
LABELLED = 8
HELD_OUT = 400
STEPS = 30


class Authors:
    """Two authors who say the same things, each with words of their own for them.

    There are 100 things, and any of them leads to one of four others. Each thing has two names, of which an author
    takes the own one in four of five cases. So a passage tells its author by all its words together, and nobody has
    to know labels to see which words go together.
    """

    def __init__(self) -> None:
        draw = random.Random(0)
        syllables = [consonant + vowel for consonant in "bdfgklmnprst" for vowel in "aeiou"]
        names = draw.sample([first + second for first in syllables for second in syllables], 200)
        self.names = [names[:100], names[100:]]
        self.next = [draw.sample(range(100), 4) for _ in range(100)]

    def passage(self, author: int, draw: random.Random, words: int = 30) -> str:
        thing, said = draw.randrange(100), []
        for _ in range(words):
            said.append(self.names[author if draw.random() < 0.8 else 1 - author][thing])
            thing = draw.choice(self.next[thing])
        return " ".join(said)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """So small a model is fastest on one core, and leaves the others to their work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pretrain(authors: Authors, folder: Path) -> Path:
    """Train on passages without labels, and export."""
    draw = random.Random(1)
    (folder / "texts").mkdir()
    for author in range(2):
        text = "\n".join(authors.passage(author, draw, words=60) for _ in range(1500))
        (folder / "texts" / f"{author}.txt").write_text(text, encoding="utf-8")
    documents = hold_out(find_documents([folder / "texts"]), 0.05)
    prepare_corpus(documents, folder / "corpus", "bpe", vocab_size=1000)
    shape = {"vocab_size": 1000, "block_size": 32, "embedding_dim": 64, "heads": 4, "blocks": 2}
    pace = {"train__batch_size": 64, "train__max_iters": 250, "checkpoint__interval": 250, "train__eval_interval": 0}
    rates = {"optim__name": "muon", "optim__lr": 3e-3, "optim__warmup_iters": 20}
    overrides = {f"model__{key}": value for key, value in shape.items()} | pace | rates
    result = verb("train", *tiny_flags(folder / "corpus", folder / "run", **overrides))
    assert result.returncode == 0, result.stderr
    export_model(mlm_dist.load(folder / "run", "cpu"), folder / "out")
    return folder / "out"


def accuracy(model: PreTrainedModel, tokenizer: object, authors: Authors, seed: int) -> float:
    """Fine-tune on few labelled passages, and tell the authors of others."""

    def batch(draw: random.Random, count: int) -> dict[str, torch.Tensor]:
        labels = [number % 2 for number in range(count)]
        passages = [authors.passage(author, draw) for author in labels]
        encoded = tokenizer(passages, truncation=True, padding=True, return_tensors="pt")  # type: ignore[operator]
        return {**encoded, "labels": torch.tensor(labels)}

    labelled, held_out = batch(random.Random(seed), LABELLED), batch(random.Random("held out"), HELD_OUT)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    for _ in range(STEPS):
        model(**labelled).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        return (model(**held_out).logits.argmax(-1) == held_out["labels"]).float().mean().item()


def test_a_pretrained_model_learns_authors_from_few_passages(tmp_path: Path) -> None:
    authors = Authors()
    out = pretrain(authors, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(out)
    pretrained, fresh = [], []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(out)
        pretrained.append(accuracy(model, tokenizer, authors, seed))
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(out))
        fresh.append(accuracy(model, tokenizer, authors, seed))
    print(f"\npretrained {[f'{share:.1%}' for share in pretrained]}, fresh {[f'{share:.1%}' for share in fresh]}")
    assert min(pretrained) > 0.95
    assert sum(pretrained) / SEEDS > sum(fresh) / SEEDS + 0.1
