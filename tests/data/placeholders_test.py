"""What counts as a placeholder and what does not."""

import collections

import pytest

from peftjax.data.placeholders import placeholders


@pytest.mark.parametrize(
    "text,expected",
    [
        ("%(name)s and %(name)s, %(count)05.1f", {"%(name)s": 2, "%(count)05.1f": 1}),
        ("%s of %d", {"%s": 1, "%d": 1}),
        ("Added {name} “{object.id}”, {0!r}, {}, {price:.2f}.", {"{name}": 1, "{object.id}": 1, "{0!r}": 1, "{}": 1, "{price:.2f}": 1}),
        ("100 % done, 5%, 50%stop", {}),
        ('{"a": 1} { b }', {}),
    ],
)
def test_placeholders_of(text, expected):
    assert placeholders(text) == collections.Counter(expected)
