import copy
import math
from pathlib import Path

import pytest
import torch

from judge import BLOCK, Judge
from mlm_dist.errors import UserError

TEXT = "The ferry came in under the harbour light, and nobody went ashore. "


def test_the_likelihood_of_a_text_is_the_product_over_its_tokens(judge: Judge) -> None:
    ids = [judge.end_id, *judge.encode(TEXT)]
    expected = 0.0
    for i in range(1, len(ids)):
        logits = judge.model(torch.tensor([ids[:i]])).logits[0, -1]
        expected -= logits.log_softmax(0)[ids[i]].item()
    assert judge.nats([TEXT]) == pytest.approx([expected], rel=1e-5)


@pytest.mark.parametrize("size", [0, 1, BLOCK - 2, BLOCK - 1, BLOCK, 3 * BLOCK // 2, 1000])
def test_every_token_of_a_text_of_any_length_counts_once(judge: Judge, size: int) -> None:
    uniform = Judge(judge.tokenizer, copy.deepcopy(judge.model))
    torch.nn.init.zeros_(uniform.model.lm_head.weight)
    text = "7" * size
    assert len(judge.encode(text)) == size
    assert uniform.nats([text]) == pytest.approx([size * math.log(judge.tokenizer.get_vocab_size())])


def test_a_token_far_into_a_text_has_at_least_half_a_row_of_context(judge: Judge) -> None:
    _, *later = judge._windows("7" * 1000)
    assert all(BLOCK // 2 - 1 <= first < len(row) for row, first in later)


def test_a_text_is_judged_the_same_alone_and_in_a_batch(judge: Judge) -> None:
    texts = [TEXT * times for times in (1, 7, 0, 2, 30)] * 20
    together = judge.nats(texts)
    assert together[:5] == pytest.approx([judge.nats([text])[0] for text in texts[:5]], rel=1e-5)
    assert together[-5:] == pytest.approx(together[:5], rel=1e-5)


def test_a_saved_judge_gives_the_same_likelihoods(judge: Judge, judge_folder: Path) -> None:
    assert Judge.load(judge_folder).nats([TEXT]) == judge.nats([TEXT])


def test_saving_a_judge_replaces_the_older_one(judge: Judge, tmp_path: Path) -> None:
    judge.save(tmp_path)
    newer = Judge(judge.tokenizer, copy.deepcopy(judge.model))
    torch.nn.init.normal_(newer.model.lm_head.weight)
    newer.save(tmp_path)
    assert Judge.load(tmp_path).nats([TEXT]) == newer.nats([TEXT]) != judge.nats([TEXT])
    assert {file.name for file in tmp_path.iterdir()} >= {"tokenizer.json", "config.json", "model.safetensors"}
    assert not (tmp_path / ".partial").exists()


def test_a_folder_without_a_complete_judge_is_refused(judge: Judge, tmp_path: Path) -> None:
    judge.save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(UserError, match="contains no complete judge"):
            Judge.load(folder)
