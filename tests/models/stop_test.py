"""Text comes in pieces that are never taken back, and stops before the first stop string, wherever the tokens are cut."""

import pytest
import tiny_tokenizer
from hypothesis import example, given, settings
from hypothesis import strategies as st

from peftjax.models.stop import StopStrings, pieces

TOKENIZER = tiny_tokenizer.tokenizer()
SAID = st.text(alphabet="the userd\n.:é中🙂", max_size=20)


def first_cut(text, stops):
    """Read a character at a time, as it might come: what stands before the longest stop string that the text then ends with."""
    for end in range(len(text) + 1):
        there = [stop for stop in stops if text[:end].endswith(stop)]
        if there:
            return text[:end - max(map(len, there))]
    return text


@settings(max_examples=80, deadline=None)
@given(SAID, st.lists(st.text(alphabet="the usr\n:é🙂", min_size=1, max_size=4), max_size=3))
@example(":r:", ["r", ":r:"])  # the one that begins first is not complete first
def test_pieces_are_the_text_before_the_first_stop_string(text, strings):
    given_out = list(pieces(TOKENIZER.encode(text), TOKENIZER, StopStrings(TOKENIZER, strings)))
    assert "".join(given_out) == first_cut(text, strings)
    assert all(given_out)


@settings(max_examples=80, deadline=None)
@given(SAID.filter(bool), st.text(alphabet="the us:🙂", min_size=1, max_size=3), st.integers(1, 5))
def test_a_row_ends_with_the_token_that_completes_a_stop_string(text, stop, stride):
    """Asked after every few tokens, as decoding does."""
    ids, stops = TOKENIZER.encode(text), StopStrings(TOKENIZER, stop)
    found = None
    for end in [*range(stride, len(ids), stride), len(ids)]:
        new = stride if end % stride == 0 else end % stride
        found = stops.length(ids[:end], new) if found is None else found
    if stop not in text:
        assert found is None
    else:
        assert stop in TOKENIZER.decode(ids[:found]) and stop not in TOKENIZER.decode(ids[:found - 1])
        assert stops.cut(TOKENIZER.decode(ids[:found])) == first_cut(text, [stop])


def test_what_is_sure_comes_at_once_and_a_character_of_several_tokens_whole():
    text = "the 🙂 x"
    ids = TOKENIZER.encode(text)
    given_out = list(pieces(ids, TOKENIZER, StopStrings(TOKENIZER, "\n")))
    assert "🙂" in given_out and len(given_out) == len(ids) - len(TOKENIZER.encode("🙂")) + 1


def test_only_the_beginning_of_a_stop_string_is_held_back():
    stops = StopStrings(TOKENIZER, ["\nUser:", "\n\n"])
    assert [stops.held(text) for text in ("a", "a\n", "a\nUs", "\nUser", "a\nUx", "")] == [0, 1, 3, 5, 0, 0]


def test_half_a_character_at_the_end_is_shown_at_the_end():
    ids = TOKENIZER.encode("a🙂")[:-1]
    assert "".join(pieces(ids, TOKENIZER, StopStrings(TOKENIZER, ()))) == TOKENIZER.decode(ids)


def test_control_tokens_count_as_their_texts():
    ids = [*TOKENIZER.encode("the"), TOKENIZER.control_ids["<|im_end|>"], *TOKENIZER.encode(" end")]
    assert StopStrings(TOKENIZER, "<|im_end|>").length(ids, len(ids)) == len(TOKENIZER.encode("the")) + 1


def test_an_empty_stop_string_is_refused():
    with pytest.raises(ValueError, match="a stop string is empty"):
        StopStrings(TOKENIZER, ["a", ""])
