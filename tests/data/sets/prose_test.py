"""The text of tiny bases: nothing of what any run with a training share of half or more is tested on, no answers, no markup."""

import pytest

from peftjax.data.sets import general, prose
from peftjax.data.splits import split_records


@pytest.fixture(scope="module")
def lines():
    """Task -> the texts of it in the set."""
    found = {name: set() for name in prose.TASKS}
    for record in prose.build(sources=("words",)):
        _, task, _ = record.group.split("/")
        found[task] |= set(record.response.split("\n"))
    return found


@pytest.mark.parametrize("fractions", [
    {"train": 0.5, "validation": 0.25, "test": 0.25}, {"train": 0.8, "validation": 0.05, "test": 0.15}, {"train": 0.7, "test": 0.3},
], ids=["0.5", "0.8", "0.7"])
def test_no_text_of_a_held_out_group_is_in_it(lines, fractions):
    for name, (module, text_of) in prose.TASKS.items():
        splits = split_records(module.build(), fractions)
        held = {text_of(record) for split, records in splits.items() if split != "train" for record in records}
        assert len(lines[name]) > 100 and not held & lines[name], name


def test_answers_are_left_out(lines):
    assert not any('"intent"' in line for line in lines["ha_intents"])
    assert not {record.response for record in prose.icd_chapter.build()} & lines["icd_chapter"]
    assert not any("Answer" in line for line in lines["rhobank"])


@pytest.mark.slow  # parses the standard library where that was not done before
def test_the_text_that_forgetting_is_measured_on_has_no_chunk_in_it():
    ours = {record.response for record in prose.build(sources=("stdlib",))}
    assert len(ours) > 500 and not ours & {record.response for record in general.build(per_document=1000)}


def test_markup_is_taken_off():
    text = "Use :meth:`~django.db.models.Model.save` or :doc:`the docs </topics/db>`, ``a.b`` and `a link <https://x.y>`__; like this::"
    assert prose._plain(text) == "Use django.db.models.Model.save or the docs, a.b and a link; like this:"


def test_unknown_sources_are_named():
    with pytest.raises(ValueError, match="choose some of django, stdlib, words"):
        prose.build(sources=("wikipedia",))
