"""Functions of the standard library as text: whole, without docstrings, at the left margin."""

import ast

import pytest

from peftjax.data.sets import prose, python_source

CODE = '''
class A:
    """Of a class."""

    def first(self):
        """A docstring
        of two lines."""
        # a comment
        def inner():
            "Its own."
            return 2
        return inner()

    def only(self):
        "Nothing else."


def second(x): return x
'''


def test_functions_without_docstrings():
    first, second = python_source.functions(CODE)
    assert first == "def first(self):\n    # a comment\n    def inner():\n        return 2\n    return inner()"
    assert second == "def second(x): return x"


@pytest.mark.slow  # parses the standard library where that was not done before
def test_records_are_whole_functions_that_no_docstring_of_the_base_is_in():
    records = python_source.build()
    assert len(records) > 500 and len({record.response for record in records}) == len(records)
    docs = {record.response for record in prose.build(sources=("stdlib",))}
    for record in records:
        (function,) = ast.parse(record.response).body
        assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(function) is None
        assert 120 <= len(record.response) <= 300 and record.response not in docs


def test_lengths_that_leave_nothing():
    with pytest.raises(ValueError, match="there are none"):
        python_source.build(shortest=300, longest=200)
