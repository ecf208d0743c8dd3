"""Shingle shares: whole copies, no copies, and half of one by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftjax.data.overlap import shingle_shares


@given(st.lists(st.text(max_size=40), max_size=5))
def test_a_text_that_was_seen_is_seen_whole(texts):
    assert shingle_shares(texts, texts) == [1.0] * len(texts)
    assert shingle_shares([], texts) == [0.0] * len(texts)


def test_shares_by_hand():
    # "abcdef" has the shingles abc, bcd, cde, def; the seen text has the first two
    assert shingle_shares(["xx ABCD xx"], ["abcdef"], width=3) == [0.5]
    assert shingle_shares(["a  b\nc"], ["A b c"]) == [1.0]
    assert shingle_shares(["short text"], ["short"]) == [0.0]


def test_order_and_company_of_the_seen_texts_do_not_matter():
    seen = ["the quick brown fox jumps", "over the lazy dog at noon"]
    texts = ["quick brown fox over the lazy dog", "noon"]
    assert shingle_shares(seen, texts) == shingle_shares(reversed(seen), texts)
    # of 21 shingles, 4 lie in "quick brown fox " and 5 in "over the lazy dog"
    assert shingle_shares(seen, texts)[0] == pytest.approx(9 / 21)
