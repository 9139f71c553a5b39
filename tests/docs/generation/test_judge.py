import copy
import math
from pathlib import Path

import pytest
import torch

from judge import BLOCK, Judge
from mlm_dist.errors import UserError

TEXT = "The ferry came in under the harbour light, and nobody went ashore. "


def test_a_text_is_as_likely_as_its_tokens_one_after_the_other(judge: Judge) -> None:
    ids = [judge.end_id, *judge.encode(TEXT)]
    expected = 0.0
    for place in range(1, len(ids)):
        logits = judge.model(torch.tensor([ids[:place]])).logits[0, -1]
        expected -= logits.log_softmax(0)[ids[place]].item()
    assert judge.nats([TEXT]) == pytest.approx([expected], rel=1e-5)


@pytest.mark.parametrize("size", [0, 1, BLOCK - 2, BLOCK - 1, BLOCK, 3 * BLOCK // 2, 1000])
def test_every_token_of_a_text_of_any_length_counts_once(judge: Judge, size: int) -> None:
    indifferent = Judge(judge.tokenizer, copy.deepcopy(judge.model))
    torch.nn.init.zeros_(indifferent.model.lm_head.weight)
    text = "7" * size
    assert len(judge.encode(text)) == size
    assert indifferent.nats([text]) == pytest.approx([size * math.log(judge.tokenizer.get_vocab_size())])


def test_a_token_far_into_a_text_is_read_after_half_a_row(judge: Judge) -> None:
    _, *later = judge._windows("7" * 1000)
    assert all(BLOCK // 2 - 1 <= new < len(row) for row, new in later)


def test_texts_are_judged_alike_alone_and_together(judge: Judge) -> None:
    texts = [TEXT * times for times in (1, 7, 0, 2, 30)] * 20
    together = judge.nats(texts)
    assert together[:5] == pytest.approx([judge.nats([text])[0] for text in texts[:5]], rel=1e-5)
    assert together[-5:] == pytest.approx(together[:5], rel=1e-5)


def test_what_was_saved_judges_as_before(judge: Judge, judge_folder: Path) -> None:
    assert Judge.load(judge_folder).nats([TEXT]) == judge.nats([TEXT])


def test_a_newer_judge_takes_the_place_of_the_older(judge: Judge, tmp_path: Path) -> None:
    judge.save(tmp_path)
    newer = Judge(judge.tokenizer, copy.deepcopy(judge.model))
    torch.nn.init.normal_(newer.model.lm_head.weight)
    newer.save(tmp_path)
    assert Judge.load(tmp_path).nats([TEXT]) == newer.nats([TEXT]) != judge.nats([TEXT])
    assert {file.name for file in tmp_path.iterdir()} >= {"tokenizer.json", "config.json", "model.safetensors"}
    assert not (tmp_path / ".partial").exists()


def test_a_folder_without_a_whole_judge_is_refused(judge: Judge, tmp_path: Path) -> None:
    judge.save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(UserError, match="holds no whole judge"):
            Judge.load(folder)
