"""Metrics over text: what the model wrote against what it should have written.

    exact_match('{"b": 2, "a": 1}', '{"a": 1, "b": 2}')            == 1.0    # JSON references are compared as JSON
    json_field_f1('{"a": 1, "b": 3}', '{"a": 1, "b": 2}')          == 0.5    # 1 field of 2 right, 1 field of 2 found
    accuracy(' Chapter IX ', 'chapter ix')                         == 1.0
    text_match('The U.S.A.', 'United States', aliases=['the usa']) == 1.0
    evaluate(['a', 'x'], ['a', ('b', ['x'])], ['exact_match'])     == {'exact_match': {'mean': 1.0, 'low': ..., ...}}

A metric is a pure function `(prediction, reference, aliases=()) -> float` in [0, 1]; aliases are further right answers,
and the score is that of the best one. `METRICS` names them all, those of `text_metrics` too. Intervals are Wilson's (E. B. Wilson,
1927), which hold at 0 % and 100 % too. Graded metrics get the same: values in [0, 1] never spread more than zeros and ones of that mean.
"""

import difflib
import json
import math
import unicodedata
from collections.abc import Callable, Sequence

from peftjax.evals.text_metrics import chrf, edit_similarity, placeholders_kept, refusal_match, refused, value_match

Z_95 = 1.959963984540054  # the 97.5 % point of the normal distribution: two-sided 95 %


def exact_match(prediction: str, reference: str, aliases: Sequence[str] = ()) -> float:
    """1.0 when the stripped texts are equal. A reference that is a JSON object or array is compared after parsing.

    Then neither key order nor white space counts, and a prediction that is not valid JSON never matches.
    """
    return max(_exact(prediction, accepted) for accepted in (reference, *aliases))


def accuracy(prediction: str, reference: str, aliases: Sequence[str] = ()) -> float:
    """1.0 when the labels are equal up to case, Unicode compatibility forms and white space."""
    label = _normal_label(prediction)
    return float(any(label == _normal_label(accepted) for accepted in (reference, *aliases)))


def text_match(prediction: str, reference: str, aliases: Sequence[str] = ()) -> float:
    """1.0 when the texts are equal up to case, punctuation and white space: short free answers."""
    text = _normal_text(prediction)
    return float(any(text == _normal_text(accepted) for accepted in (reference, *aliases)))


def json_field_f1(prediction: str, reference: str, aliases: Sequence[str] = ()) -> float:
    """F1 over the (path, value) fields of two JSON documents; 0.0 when the prediction is not valid JSON.

    Raises ValueError when the reference itself is not a JSON object or array.
    """
    matched, predicted, expected = json_field_counts(prediction, reference, aliases)
    return _scores(matched, predicted, expected)["f1"]


def json_field_counts(prediction: str, reference: str, aliases: Sequence[str] = ()) -> tuple[int, int, int]:
    """(fields matched, fields predicted, fields expected), against the accepted answer that fits best.

    A field is the path to a leaf and its value with its type: `{"slots": {"area": ["hall"]}}` holds the one field
    `(slots, area, 0) = "hall"`. Empty objects and arrays are leaves, so that `{}` and `{"slots": {}}` differ.
    """
    predicted = _parse_json(prediction)
    predicted_fields = frozenset() if predicted is None else _fields(predicted)
    counts = []
    for accepted in (reference, *aliases):
        expected = _parse_json(accepted)
        if expected is None:
            raise ValueError(f"json_field_f1 needs JSON objects or arrays as references; found {accepted[:120]!r}")
        expected_fields = _fields(expected)
        counts.append((len(predicted_fields & expected_fields), len(predicted_fields), len(expected_fields)))
    return max(counts, key=lambda count: _scores(*count)["f1"])


def perplexity(nll_sum: float, tokens: float) -> float:
    """exp(mean negative log-likelihood), from its sum in nats and the number of tokens; inf past float64's range."""
    if not tokens > 0:
        raise ValueError(f"perplexity needs at least one token; found {tokens}")
    mean = nll_sum / tokens
    return math.inf if mean > 709 else math.exp(mean)


METRICS: dict[str, Callable[..., float]] = {
    "exact_match": exact_match,
    "json_field_f1": json_field_f1,
    "accuracy": accuracy,
    "text_match": text_match,
    "chrf": chrf,
    "edit_similarity": edit_similarity,
    "value_match": value_match,
    "placeholders_kept": placeholders_kept,
    "refused": refused,
    "refusal_match": refusal_match,
}
GRADED = frozenset({"json_field_f1", "chrf", "edit_similarity"})  # every other metric is 0 or 1


def wilson_interval(successes: float, n: int, z: float = Z_95) -> tuple[float, float]:
    """(low, high) of a proportion of `successes` among `n` trials."""
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"a proportion needs 0 <= successes <= n and n >= 1; found {successes} of {n}")
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # rounding may leave the ends a last digit inside the share itself at 0 % and 100 %
    return max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))


def summarise(name: str, per_item: Sequence[float]) -> dict[str, float]:
    """{"mean", "low", "high", "n"} of one metric's values, with a 95 % interval.

    Raises ValueError for an unknown metric, for no items, and for a 0/1 metric with another value among its items.
    """
    _metric(name)
    n = len(per_item)
    if n == 0:
        raise ValueError(f"metric {name!r} has no items to summarise")
    mean = math.fsum(per_item) / n
    if name not in GRADED:
        if stray := [value for value in per_item if value not in (0, 1)]:
            raise ValueError(f"metric {name!r} is 0 or 1 per item; found {stray[0]!r}")
    low, high = wilson_interval(math.fsum(per_item), n)
    return {"mean": mean, "low": low, "high": high, "n": n}


def evaluate(
    predictions: Sequence[str],
    references: Sequence[str | tuple[str, Sequence[str]]],
    metric_names: Sequence[str],
) -> dict[str, dict]:
    """Each metric over all items: `{name: {"mean", "low", "high", "n", "per_item": [float, ...]}}`, in the given order.

    A reference is a text, or a text and a list of its aliases. `json_field_f1` has a further entry "micro":
    {"precision", "recall", "f1"} over the fields of all items together. Raises ValueError for an unknown metric, for no
    items, for lists of different lengths, and for one text where a list belongs.
    """
    functions = {name: _metric(name) for name in metric_names}
    for what, given in (("predictions", predictions), ("references", references)):
        if isinstance(given, str):
            raise ValueError(f"{what} must be a list of texts; found one text, {given[:60]!r}")
    if len(predictions) != len(references):
        raise ValueError(f"there must be one reference a prediction; found {len(predictions)} predictions and "
                         f"{len(references)} references")
    accepted = [(reference, ()) if isinstance(reference, str) else reference for reference in references]
    if stray := [aliases for _, aliases in accepted if isinstance(aliases, str)]:
        raise ValueError(f"aliases must be a list of texts; found one text, {stray[0][:60]!r}")
    items = [(prediction, *reference) for prediction, reference in zip(predictions, accepted, strict=True)]
    results = {}
    for name, function in functions.items():
        per_item = [function(*item) for item in items]
        results[name] = summarise(name, per_item) | {"per_item": per_item}
        if function is json_field_f1:
            counts = [json_field_counts(*item) for item in items]
            results[name]["micro"] = _scores(*(sum(column) for column in zip(*counts, strict=True)))
    return results


def _metric(name: str) -> Callable[..., float]:
    """The function behind a metric's name, or an error with the nearest name."""
    if name not in METRICS:
        near = difflib.get_close_matches(name, METRICS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"no metric is called {name!r}{hint} Metrics are {', '.join(METRICS)}.")
    return METRICS[name]


def _exact(prediction: str, reference: str) -> float:
    """`exact_match` against one accepted answer."""
    expected = _parse_json(reference)
    if expected is None:
        return float(prediction.strip() == reference.strip())
    predicted = _parse_json(prediction)
    return float(predicted is not None and _fields(predicted) == _fields(expected))


def _scores(matched: int, predicted: int, expected: int) -> dict[str, float]:
    """Precision, recall and F1 from counts; 0.0 where there is nothing to divide by."""
    precision = matched / predicted if predicted else 0.0
    recall = matched / expected if expected else 0.0
    f1 = 2 * matched / (predicted + expected) if predicted + expected else 0.0
    return {"precision": precision, "recall": recall, "f1": f1}


def _parse_json(text: str) -> dict | list | None:
    """The JSON object or array in `text`; None when it holds anything else.

    Stricter than `json.loads`, which lets NaN pass and keeps the last of two equal keys: a model that says
    `{"a": 1, "a": 2}` has not answered.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique_pairs, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):  # a small model may well write a thousand opening brackets
        return None
    return value if isinstance(value, dict | list) else None


def _unique_pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object's pairs as a dict; ValueError when a key comes twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice")
    return found


def _refuse_constant(name: str) -> float:
    """NaN, Infinity and -Infinity are not JSON."""
    raise ValueError(f"{name} is not JSON")


def _fields(document: dict | list) -> frozenset[tuple]:
    """The (path, type, value) leaves of a JSON document. The type is kept because Python holds True == 1."""
    leaves, pending = [], [((), document)]
    while pending:  # a stack and not recursion: see `_parse_json`
        path, value = pending.pop()
        if isinstance(value, dict | list) and value:
            steps = value.items() if isinstance(value, dict) else enumerate(value)
            pending.extend(((*path, step), child) for step, child in steps)
        elif isinstance(value, dict | list):
            leaves.append((path, type(value).__name__, ""))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            leaves.append((path, "number", value))  # 1 and 1.0 are one number in JSON
        else:
            leaves.append((path, type(value).__name__, value))
    return frozenset(leaves)


def _normal_label(text: str) -> str:
    """Case, compatibility forms and runs of white space made one."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _normal_text(text: str) -> str:
    """`_normal_label` without punctuation, unless there is nothing but punctuation."""
    label = _normal_label(text)
    words = "".join(character for character in label if not unicodedata.category(character).startswith("P"))
    return " ".join(words.split()) or label
