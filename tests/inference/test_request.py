import sys
from typing import Any

import pytest

from mlm_dist.errors import UserError
from mlm_dist.inference.request import MAX_TOKENS, Request
from tests.conftest import start


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"length": 0}, "--length is 0: it must be at least 1"),
        ({"samples": 0}, "--samples is 0: it must be at least 1"),
        ({"steps": -1}, "--steps is -1: it must be at least 1"),
        ({"order": "sorted"}, "--order is sorted: it must be random or confidence"),
        ({"temperature": -0.1}, "--temperature is -0.1: it must be from 0 to 100"),
        ({"temperature": 1e308}, "--temperature is 1e+308: it must be from 0 to 100"),
        ({"temperature": float("nan")}, "--temperature is nan"),
        ({"top_p": 0.0}, "--top_p is 0.0: it must be above 0 and at most 1"),
        ({"top_p": 1.1}, "--top_p is 1.1"),
        ({"top_p": float("nan")}, "--top_p is nan"),
        ({"remask": 1.0}, "--remask is 1.0: it must be at least 0 and below 1"),
        ({"remask": -0.5}, "--remask is -0.5"),
        ({"remask": float("nan")}, "--remask is nan"),
        ({"seed": -1}, "--seed is -1: it must be 0 or more"),
        ({"text": "a [GAP:2]", "length": 3}, "--length is 3, but the text has gaps"),
        ({"text": "a [GAP:0]"}, "[GAP:0] is not a gap: write [GAP:5]"),
        ({"text": "[GAP:1] a [GAP]"}, "[GAP] is not a gap"),
        ({"text": "a [GAP:x] b"}, "[GAP:x] is not a gap"),
        ({"text": "a [GAP:-3]"}, "[GAP:-3] is not a gap: write [GAP:3]"),
        ({"text": "a [GAP: 3]"}, "[GAP: 3] is not a gap"),
        ({"text": "a [GAP*3]"}, "[GAP*3] is not a gap"),
        ({"text": "a [GAP:3"}, "[GAP:3 is not a gap"),
        ({"text": "a [gap:3]"}, "[gap:3] is not a gap: write [GAP:3], where 3 is the number of tokens"),
        ({"text": "a [gap 3]"}, "[gap 3] is not a gap: write [GAP:3]"),
        ({"text": "a <gap:12>"}, "<gap:12> is not a gap: write [GAP:12]"),
        ({"text": "a [MASK]"}, "[MASK] is for `fill`"),
        ({"text": "a <mask>"}, "<mask> is for `fill`"),
        ({"text": "[GAP:3] [MASK*2]"}, "[MASK*2] is for `fill`"),
        ({"length": 10**12}, "at most 1,000,000 tokens"),
        ({"length": MAX_TOKENS, "samples": 2}, "at most 1,000,000 tokens"),
        ({"text": f"[GAP:{MAX_TOKENS}][GAP:1]"}, "at most 1,000,000 tokens"),
        ({"text": f"[GAP:{'9' * 5000}]"}, "at most 1,000,000 tokens"),
        ({"samples": 10**9}, "at most 1,000,000 tokens"),
    ],
)
def test_an_invalid_request_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        Request(**values)
    assert message in str(caught.value)


def test_values_within_the_bounds_are_accepted() -> None:
    Request(length=MAX_TOKENS)
    Request("[GAP:1]", order="confidence")
    Request(temperature=0, top_p=1, remask=0.999, steps=10**9, seed=10**30)


def test_the_sizes_of_the_gaps_are_read_in_order() -> None:
    assert Request("[GAP:20] and then he [GAP:007][GAP:1].").gaps == [20, 7, 1]
    assert Request("He minded the gap [sic].").gaps == []
    assert Request("<mask> [GAP:2]").gaps == [2]


def test_requests_are_checked_without_torch() -> None:
    loaded = start([sys.executable, "-c", "import mlm_dist.generate, sys; print(*sys.modules)"]).stdout.split()
    assert "mlm_dist.inference.request" in loaded
    assert {"torch", "numpy", "rich"}.isdisjoint(loaded)
