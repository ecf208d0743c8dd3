"""Compositions are data, there and back; what is no composition is refused by what would be one."""

import json

import pytest

from peftjax.peft.composition import Average, BatchSplit, Fuse, Parallel, Split, Stack, blocks, from_data, names, to_data

EXAMPLES = [
    "tone", Stack("tone", Fuse("en", "de", by="mix"), "task"), Average("a", Stack("b", "c"), weights=(0.7, 0.3)), Average("a", "b"),
    BatchSplit("a", "b", sizes=(3, 1)), Split("a", BatchSplit("b", "c", at="desk")), Parallel("a", "b"),
]  # fmt: skip


@pytest.mark.parametrize("composition", EXAMPLES, ids=str)
def test_there_and_back(composition):
    data = to_data(composition)
    assert from_data(data) == from_data(json.loads(json.dumps(data))) == composition
    assert hash(from_data(data)) == hash(composition)


def test_short_forms():
    assert from_data({"average": {"a": 0.7, "b": 0.3}}) == Average({"a": 0.7, "b": 0.3}) == Average("a", "b", weights=(0.7, 0.3))
    assert from_data({"stack": "a"}) == Stack("a")
    assert to_data(Stack("a", Fuse("b", "c"))) == {"stack": ["a", {"fuse": ["b", "c"]}]}


def test_names_come_in_order_and_blocks_before_those_in_them():
    assert list(names(EXAMPLES[1])) == ["tone", "en", "de", "mix", "task"]
    assert [block.word for block in blocks(EXAMPLES[5])] == ["split", "batch_split"]


@pytest.mark.parametrize(("data", "message"), [
    ({"stack": ["a"], "fuse": ["b"]}, "says once what it is"), ({"stck": ["a"]}, "did you mean 'stack'"),
    (["a", "b"], "a name or a mapping"), ({"fuse": ["a", "b"], "bye": "mix"}, r"fuse has no option 'bye' \(did you mean 'by'\?\)"),
    ({"stack": {"a": 1}}, "stack has its children in a list"), ({"stack": []}, "Stack needs at least one adapter"),
    ({"average": ["a", "b"], "weights": [1]}, "2 children and 1 weights"),
    ({"split": ["a", "b"], "sizes": [1, -1]}, "one for each, from 0"),
])  # fmt: skip
def test_what_is_none_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        from_data(data)


def test_children_are_names_or_blocks():
    with pytest.raises(TypeError, match="Stack holds names of adapters and blocks, not 3"):
        Stack("a", 3)
