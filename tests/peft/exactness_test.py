"""What a certificate adds up and says."""

import json

import pytest

from peftjax.peft.exactness import Error, Exactness

NONE = Exactness({"blocks/0/attn/q/kernel": Error(3e-8, 2.0, 4), "blocks/1/attn/q/kernel": Error(0.0, 0.0, 0)})
SOME = Exactness({"a": Error(0.3, 4.0, 2), "b": Error(0.05, 3.0, None), "c": Error(0.0, 0.0, 1)})


def test_errors_add_up_as_of_one_long_vector():
    assert SOME.total == pytest.approx(((0.3 * 4) ** 2 + (0.05 * 3) ** 2) ** 0.5 / 5) and SOME.worst == "a"
    assert Exactness({"a": Error(0.0, 0.0, 0)}).total == 0


def test_it_says_what_was_lost_where():
    assert not SOME.is_exact and "not exact: 24.2 % of the norm" in str(SOME) and "30 % at a" in str(SOME)
    assert "ranks 1 to 2, 1 kernels dense" in str(SOME)
    assert NONE.is_exact and str(NONE) == "exact to rounding (3e-08) at 2 kernels; ranks 0 to 4"
    assert json.loads(json.dumps(SOME.as_data()))["kernels"]["b"] == {"relative": 0.05, "size": 3.0, "rank": None}


def test_too_much_is_refused_with_what_was_measured():
    NONE.require(1e-6), SOME.require(0.25)
    with pytest.raises(ValueError, match=r"an error of 0.2419 is above the 0.2 that is allowed. not exact: .* Give more rank"):
        SOME.require(0.2)
