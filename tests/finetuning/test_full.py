import copy
import math
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
import torch.nn.functional as F

import mlm_dist
from mlm_dist.data.tokenizer import Tokenizer
from mlm_dist.distributed import Processes
from mlm_dist.errors import UserError
from mlm_dist.finetuning import full
from mlm_dist.finetuning.classifier import Classifier
from mlm_dist.finetuning.examples import Examples, Split
from mlm_dist.finetuning.full import Recipe, Texts, compute_gradient, fine_tune, is_unused, pad, predict, relative_rate
from mlm_dist.finetuning.sequences import encode_texts, sequence_tokenizer
from mlm_dist.model.encoder import Encoder

CPU = torch.device("cpu")
RECIPE = Recipe(lr=1e-3, batch_size=4, epochs=4, patience=1)


@pytest.fixture(scope="module")
def encoder(run_dir: Path) -> Encoder:
    encoder = mlm_dist.load(run_dir, "cpu").encoder
    assert isinstance(encoder, Encoder)
    return encoder


@pytest.fixture(scope="module")
def tokenizer(run_dir: Path) -> Tokenizer:
    return mlm_dist.load(run_dir, "cpu").tokenizer


@pytest.fixture(scope="module")
def converted(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    return sequence_tokenizer(tokenizer)


def split_of(tokenizer: Tokenizer, converted: tokenizers.Tokenizer) -> tuple[Split, Texts]:
    words: list[tuple[str, ...]] = [(f"{'sea' if index % 2 else 'land'} {index}",) for index in range(30)]
    every = Examples(words, np.arange(30) % 2)
    parts = [every.take(np.arange(start, start + 10)) for start in (0, 10, 20)]
    ids, _ = encode_texts(converted, words, 16)
    return Split(*parts), Texts(dict(zip(words, ids, strict=True)), tokenizer, converted)


def test_padding_does_not_change_the_outputs(encoder: Encoder) -> None:
    torch.manual_seed(1)
    classifier = Classifier(encoder, 3).eval()
    rows = [[5, 6, 7], [9, 8, 7, 6, 5, 4, 3, 2], [4]]
    together = classifier(*pad(rows, CPU))
    alone = torch.cat([classifier(*pad([row], CPU)) for row in rows])
    assert (together - alone).abs().max() < 1e-6
    assert (alone[0] - alone[1]).abs().max() > 1e-4


def test_texts_are_sequences_that_begin_as_a_document(converted: tokenizers.Tokenizer, tokenizer: Tokenizer) -> None:
    a, b = (tokenizer.encode(text).tolist() for text in ("A lamp", "Ned."))
    end = tokenizer.end_id
    ids, cut = encode_texts(converted, [("A lamp",), ("A lamp", "Ned."), ("lamp " * 30, "Ned.")], 16)
    assert ids[:2] == [[end, *a], [end, *a, end, *b]]
    assert (len(ids[2]), ids[2][-len(b) - 1 :], cut) == (16, [end, *b], 1)


def test_the_learning_rate_rises_and_falls_to_zero() -> None:
    rates = [relative_rate(step, 40) for step in range(41)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[-1] == 0
    assert all(np.diff(rates[4:]) < 0)
    assert relative_rate(0, 1) == 1


@pytest.mark.parametrize("is_score", [False, True])
def test_the_gradient_is_that_of_the_mean_loss(encoder: Encoder, is_score: bool) -> None:
    torch.manual_seed(1)
    classifier = Classifier(encoder, 1 if is_score else 3).eval()
    rows, targets = [[5, 6, 7], [9, 8], [4]], np.array([0.5, -1.0, 2.0]) if is_score else np.array([0, 2, 1])
    trained = [p for name, p in classifier.named_parameters() if not is_unused(name, encoder)]
    compute_gradient(classifier, rows, targets, np.arange(3), trained, Processes("cpu"))
    found = [p.grad for p in trained]
    classifier.zero_grad()
    outputs, expected = classifier(*pad(rows, CPU)), torch.from_numpy(targets)
    loss = F.mse_loss(outputs[:, 0], expected.float()) if is_score else F.cross_entropy(outputs, expected)
    loss.backward()
    assert all(torch.equal(one, p.grad) for one, p in zip(found, trained, strict=True))  # type: ignore[arg-type]
    classifier.zero_grad(set_to_none=True)


def test_the_parameters_of_the_best_pass_are_kept_and_patience_ends_it(
    encoder: Encoder, tokenizer: Tokenizer, converted: tokenizers.Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    split, texts = split_of(tokenizer, converted)
    kept: list[dict[str, torch.Tensor]] = []
    dev = iter([0.5, 0.75, 0.75, 0.9])

    def value(*_: object) -> float:
        return next(dev)

    def watch(classifier: Classifier, *arguments: object) -> object:
        kept.append({name: value.clone() for name, value in classifier.state_dict().items()})
        return predict(classifier, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(full, "value_of", value)
    monkeypatch.setattr(full, "predict", watch)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    outcome = fine_tune(encoder, texts, split, ("land", "sea"), RECIPE, 0, Processes("cpu"))
    assert (outcome.dev, outcome.chosen) == (0.75, {"epoch": 2})
    assert len(kept) == 4  # three passes, and the test set with the parameters of the second
    assert all(torch.equal(kept[1][name], kept[3][name]) for name in kept[1])
    assert not torch.equal(kept[1]["pooler.weight"], kept[2]["pooler.weight"])
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_a_seed_gives_the_same_result_again(
    encoder: Encoder, tokenizer: Tokenizer, converted: tokenizers.Tokenizer
) -> None:
    split, texts = split_of(tokenizer, converted)
    scores = Split(*(Examples(part.texts, part.targets * 2.5 + 7) for part in split))
    first, again, other = (
        fine_tune(encoder, texts, scores, (), RECIPE, seed, Processes("cpu")).test for seed in (0, 0, 1)
    )
    assert first.tolist() == again.tolist() != other.tolist()
    assert abs(first.mean() - 8.25) < 1.3  # scaled back


def test_a_gradient_that_is_not_finite_ends_the_training(
    encoder: Encoder, tokenizer: Tokenizer, converted: tokenizers.Tokenizer
) -> None:
    split, texts = split_of(tokenizer, converted)
    broken = copy.deepcopy(encoder)
    with torch.no_grad():
        next(broken.parameters()).fill_(math.inf)
    message = r"^the gradient of step 1 is not finite: try a smaller --lr than 0\.001$"
    with pytest.raises(UserError, match=message):
        fine_tune(broken, texts, split, ("land", "sea"), RECIPE, 0, Processes("cpu"))
