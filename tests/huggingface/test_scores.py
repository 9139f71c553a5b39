"""Stock transformers give the same pseudo-log-likelihoods, masking one token (and the rest of its word) at a time."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

import mlm_dist
from mlm_dist.data.preparation import SAMPLE_TEXT


@torch.no_grad()
def plain_score(text: str, exported: Path, within_word: bool) -> float:
    """The score of a text, computed by transformers row by row."""
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(exported), AutoTokenizer.from_pretrained(exported)
    encoded = tokenizer(text, return_tensors="pt")
    ids, words = encoded["input_ids"][0], encoded.word_ids()
    total = 0.0
    for position, target in enumerate(ids):
        masked = ids.clone()
        for other in range(position, len(ids)):
            if other == position or (within_word and words[other] == words[position]):
                masked[other] = tokenizer.mask_token_id
        total += model(masked[None]).logits[0, position].log_softmax(-1)[target].item()
    return total


@pytest.mark.parametrize("within_word", [False, True])
def test_scores_are_those_of_transformers(run_dir: Path, exported: Path, within_word: bool) -> None:
    lines = [line[:18] for line in SAMPLE_TEXT.read_text(encoding="utf-8").splitlines() if len(line) > 18][:12]
    scores = mlm_dist.load(run_dir, "cpu").score(lines, within_word)
    assert all(score.tokens <= 16 for score in scores)
    for line, score in zip(lines, scores, strict=True):
        assert score.log_likelihood == pytest.approx(plain_score(line, exported, within_word), abs=1e-3)
