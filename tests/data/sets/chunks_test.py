"""Documents become chunks of a few sentences; code, tables and headings are no prose."""

import pytest

from peftjax.data.sets.chunks import LONGEST, SHORTEST, Document, chunks, is_prose

SENTENCE = "The set of all words is a set of words, and no word of it is in two places. "


def test_chunks_join_what_is_short_and_cut_what_is_long():
    document = Document("a", "en", "test", [SENTENCE * 30, SENTENCE.strip(), SENTENCE * 4])
    found = chunks(document, None, "key")
    assert len(found) > 3 and all(SHORTEST <= len(chunk) <= LONGEST for chunk in found)
    assert all(chunk.startswith("The set") and chunk.endswith("places.") for chunk in found)
    drawn = chunks(document, 2, "key")
    assert len(drawn) == 2 and drawn == chunks(document, 2, "key") and set(drawn) <= set(found)
    assert chunks(document, 99, "key") == found


@pytest.mark.parametrize("block", [
    "A heading", "    " + SENTENCE, ".. note:: " + SENTENCE, ">>> " + SENTENCE, "expression ::= " + SENTENCE, "+-----+\n" + SENTENCE,
    "f(x[1], {2: 3}) -> (4, 5, 6); g(x[1], {2: 3}) -> (4, 5, 6); h(7) == {8: [9]}.",
])
def test_what_is_no_prose(block):
    assert is_prose(SENTENCE) and not is_prose(block)
