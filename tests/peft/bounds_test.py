"""Hyper-parameters out of bounds are named with the method, the value and what there is instead."""

import pytest

from peftjax.peft.bounds import require_known, require_positive, require_rate


def test_what_is_within_bounds_passes():
    require_positive("LoHa", rank=1, blocks=7)
    require_rate("LoHa", 0.0)
    require_rate("LoHa", 0.999)
    require_known("MiSS", "form", "bat", ("default", "bat"))


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: require_positive("LoHa", rank=2, blocks=0), "LoHa blocks 0 is not positive"),
        (lambda: require_rate("LoHa", -0.1), r"LoHa dropout -0.1 is not in \[0, 1\)"),
        (lambda: require_known("MiSS", "form", "bta", ("default", "bat")), r"form 'bta' is none of default, bat \(did you mean 'bat'\?\)"),
        (lambda: require_known("MiSS", "form", "xyz", ("default", "bat")), "form 'xyz' is none of default, bat$"),
    ],
)
def test_what_is_not_is_an_error(check, message):
    with pytest.raises(ValueError, match=message):
        check()
