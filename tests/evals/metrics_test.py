"""Metrics: properties over arbitrary JSON and text, then the examples that decide what counts as right."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftjax.evals import metrics

scalars = st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False, allow_infinity=False) | st.text()
documents = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3)
                         | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=8)
objects = st.dictionaries(st.text(max_size=3), documents, max_size=4)


def _reordered(value):
    """The same document with every object's keys the other way round."""
    if isinstance(value, dict):
        return {key: _reordered(child) for key, child in reversed(value.items())}
    return [_reordered(child) for child in value] if isinstance(value, list) else value


@given(objects)
def test_json_is_compared_whatever_its_order_and_layout(document):
    prediction = "\n " + json.dumps(_reordered(document), indent=3, ensure_ascii=False)
    assert metrics.exact_match(prediction, json.dumps(document)) == 1.0
    assert metrics.json_field_f1(prediction, json.dumps(document)) == 1.0


@given(objects, objects)
def test_field_f1_is_1_exactly_when_the_documents_match_and_is_symmetric(one, other):
    first, second = json.dumps(one), json.dumps(other)
    f1 = metrics.json_field_f1(first, second)
    assert 0.0 <= f1 <= 1.0
    assert (f1 == 1.0) == (metrics.exact_match(first, second) == 1.0)
    assert f1 == metrics.json_field_f1(second, first)


@given(st.text(), st.text())
def test_equal_text_always_matches_and_stricter_metrics_imply_laxer_ones(one, other):
    for function in (metrics.exact_match, metrics.accuracy, metrics.text_match):
        assert function(other, one, aliases=[other]) == 1.0
    assert metrics.accuracy(one, other) <= metrics.text_match(one, other)


@pytest.mark.parametrize("prediction", [
    "", "{", "intent: on", '{"a": 1', '{"a": 1} and more', '{"a": 1, "a": 1}', '{"a": NaN}', '{"a": true}',
    '{"a": "1"}', "[" * 100_000, '{"a":' * 5_000 + "1" + "}" * 5_000, '{"a": 1, "b": {}}', "1", '[{"a": 1}]',
])
def test_what_is_not_the_reference_never_matches_it(prediction):
    assert metrics.exact_match(prediction, '{"a": 1}') == 0.0
    assert metrics.json_field_f1(prediction, '{"a": 1}') < 1.0


def test_a_reference_that_is_text_is_compared_as_text():
    assert metrics.exact_match(" 1.0 ", "1.0") == 1.0
    assert metrics.exact_match("1", "1.0") == 0.0
    assert metrics.exact_match('{"a": 1.0}', '{"a": 1}') == 1.0
    assert metrics.exact_match("Yes", "yes") == 0.0


def test_field_counts_by_hand():
    reference = '{"intent": "on", "slots": {"area": "hall", "name": ["a", "b"]}}'
    prediction = '{"intent": "on", "slots": {"area": "bath", "name": ["a"]}}'
    assert metrics.json_field_counts(prediction, reference) == (2, 3, 4)
    assert metrics.json_field_f1(prediction, reference) == pytest.approx(2 * 2 / 7)
    assert metrics.json_field_counts("nonsense", reference) == (0, 0, 4)
    assert metrics.json_field_counts("{}", reference, aliases=["{}"]) == (1, 1, 1)


def test_a_reference_that_is_not_json_is_an_error_for_field_f1():
    with pytest.raises(ValueError, match="JSON objects or arrays as references; found 'turn it on'"):
        metrics.json_field_f1("{}", "turn it on")


def test_labels_and_text_normalise_as_far_as_they_say():
    assert metrics.accuracy("  CHAPTER\tⅨ", "chapter ix") == 1.0
    assert metrics.accuracy("chapter ix.", "chapter ix") == 0.0
    assert metrics.text_match("«Chapter»  ix.", "chapter ix") == 1.0
    assert metrics.text_match("Wien", "Vienna", aliases=["Vindobona", "wien!"]) == 1.0
    assert metrics.text_match("?", "!") == 0.0


def test_wilson_interval_against_published_values():
    # Newcombe (1998), table I, method 3: 81/263, 15/148, 0/20, 1/29
    published = [(81, 263, .2553, .3662), (15, 148, .0624, .1605), (0, 20, 0, .1611), (1, 29, .0061, .1718)]
    for successes, n, low, high in published:
        assert metrics.wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=50))
def test_the_interval_holds_the_mean_within_0_and_1(per_item):
    found = metrics.summarise("exact_match", per_item)
    assert 0.0 <= found["low"] <= found["mean"] <= found["high"] <= 1.0
    assert found["n"] == len(per_item) and found["low"] < found["high"]
    graded = metrics.summarise("json_field_f1", [0.3 + value / 2 for value in per_item])
    assert 0.0 <= graded["low"] < graded["mean"] < graded["high"] <= 1.0


def test_evaluate_gives_every_metric_with_its_items():
    predictions, references = ['{"a": 1, "b": 2}', '{"a": 1}'], ['{"a": 1, "b": 3}', '{"a": 1}']
    found = metrics.evaluate(predictions, references, ["json_field_f1", "exact_match"])
    assert list(found) == ["json_field_f1", "exact_match"]
    assert found["exact_match"]["per_item"] == [0.0, 1.0] and found["exact_match"]["mean"] == 0.5
    assert found["json_field_f1"]["per_item"] == [0.5, 1.0] and found["json_field_f1"]["mean"] == 0.75
    assert found["json_field_f1"]["micro"] == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3})


@pytest.mark.parametrize("arguments, message", [
    ((["a"], ["a"], ["exact_mach"]), "'exact_mach'; did you mean 'exact_match'"),
    ((["a"], ["a", "b"], ["exact_match"]), "1 predictions and 2 references"),
    ((["a"], [("a", "b")], ["exact_match"]), "aliases must be a list of texts; found one text, 'b'"),
    (([], [], ["exact_match"]), "no items"),
    (("a", ["b"], ["exact_match"]), "list of texts"),
])
def test_evaluate_refuses_what_it_cannot_mean(arguments, message):
    with pytest.raises(ValueError, match=message):
        metrics.evaluate(*arguments)


def test_references_with_and_without_aliases_mix():
    found = metrics.evaluate(["a", "x", "x"], ["a", ("b", ["c", "x"]), ("b", [])], ["exact_match", "text_match"])
    assert found["exact_match"]["per_item"] == found["text_match"]["per_item"] == [1.0, 1.0, 0.0]


def test_a_graded_value_in_a_0_1_metric_is_an_error():
    with pytest.raises(ValueError, match="0 or 1 per item; found 0.5"):
        metrics.summarise("accuracy", [1.0, 0.5])


@settings(max_examples=30)
@given(st.floats(0, 20), st.integers(1, 1000))
def test_perplexity_is_exp_of_the_mean(mean, tokens):
    assert metrics.perplexity(mean * tokens, tokens) == pytest.approx(math.exp(mean))


def test_perplexity_at_its_ends():
    assert metrics.perplexity(1e6, 1) == math.inf
    assert math.isnan(metrics.perplexity(math.nan, 1))
    with pytest.raises(ValueError, match="at least one token; found 0"):
        metrics.perplexity(0.0, 0)
