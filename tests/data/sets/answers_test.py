"""One answer to a prompt, and an order that the key decides."""

from hypothesis import given
from hypothesis import strategies as st

from peftjax.data.records import Record
from peftjax.data.sets.answers import digest, one_line, shuffled, single_answers

rows = st.lists(st.builds(Record, prompt=st.sampled_from("abcd"), response=st.sampled_from("xyz")), max_size=12)


@given(rows)
def test_prompts_with_one_answer_are_kept_once(records):
    kept = single_answers(records)
    answers = {prompt: {record.response for record in records if record.prompt == prompt} for prompt in "abcd"}
    in_order = dict.fromkeys(record.prompt for record in records)
    expected = [(prompt, answers[prompt]) for prompt in in_order if len(answers[prompt]) == 1]
    assert [(record.prompt, {record.response}) for record in kept] == expected


@given(rows)
def test_an_order_is_its_keys(records):
    assert shuffled(records, "a/0") == shuffled(iter(records), "a/0")
    assert sorted(map(id, shuffled(records, "b"))) == sorted(map(id, records))


def test_small_texts():
    assert one_line(" a\n\tb  c ") == "a b c"
    assert digest("a") == "ca978112" and digest("b") != digest("a")
