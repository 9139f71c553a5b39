import pytest

from mlm_dist.output import duration_in_words


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.25, "0.25 seconds"),
        (119.0, "119 seconds"),
        (121.0, "2.02 minutes"),
        (9000.0, "2.5 hours"),
        (2e5, "2.31 days"),
    ],
)
def test_a_duration_has_few_digits(seconds: float, text: str) -> None:
    assert duration_in_words(seconds) == text
