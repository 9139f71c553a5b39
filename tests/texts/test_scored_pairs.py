from pathlib import Path

import pytest

from mlm_dist.errors import UserError
from mlm_dist.texts.scored_pairs import ScoredPair, read_scored_pairs


def test_a_line_is_two_texts_and_a_score(tmp_path: Path) -> None:
    (tmp_path / "sts.tsv").write_text("A man.\tA woman, eating.\t1.5\r\nx\ty\t-3\n")
    pairs = read_scored_pairs(tmp_path / "sts.tsv")
    assert pairs == [ScoredPair("A man.", "A woman, eating.", 1.5), ScoredPair("x", "y", -3.0)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\tb\t1\na b 2\n", "line 2: it has 1 fields: give two texts and a score, with tabs between them"),
        ("1\ta\tb\n", "line 1: the score is 'b': it must be a number"),
        ("a\tb\tnan\n", "line 1: the score is nan: it must be a finite number"),
        ("a\tb\t1\nc\td\t1\n", "all scores are the same"),
    ],
)
def test_a_mistake_is_one_line(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "sts.tsv").write_text(content)
    with pytest.raises(UserError) as caught:
        read_scored_pairs(tmp_path / "sts.tsv")
    assert str(caught.value).startswith(str(tmp_path / "sts.tsv"))
    assert message in str(caught.value)
