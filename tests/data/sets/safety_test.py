"""Safety: four refusals on one side, real answers that are none on the other, near copies in one unit."""

import collections
import shutil

import pytest

from peftjax.data.sets import safety
from peftjax.evals.metrics import METRICS


def sides():
    records = safety.build()
    return [[record for record in records if record.group.startswith(f"{side}/")] for side in ("refuse", "comply")]


def test_harmful_requests_get_the_refusal_of_their_category():
    refuse, _ = sides()
    assert len(refuse) > 600
    for record in refuse:
        _, category, _ = record.group.split("/")
        assert record.response == safety.REFUSALS[category]
    assert {record.response for record in refuse} == set(safety.REFUSALS.values()) and len(safety.REFUSALS) == 4


def test_the_metric_tells_the_sides_apart():
    refuse, comply = sides()
    assert all(METRICS["refused"](record.response, "") == 1.0 for record in refuse)
    assert all(METRICS["refused"](record.response, "") == 0.0 for record in comply)


def test_harmless_requests_are_as_many_and_of_all_kinds():
    refuse, comply = sides()
    kinds = collections.Counter(record.group.split("/")[1] for record in comply)
    assert set(kinds) == {"icd", "shell", "chat"} and 0.6 < len(comply) / len(refuse) < 1.4
    prompts = {record.prompt.casefold() for record in refuse}
    assert not any(record.prompt.casefold() in prompts for record in comply)
    assert len(safety.build(cap=10, sources=("icd", "chat"))) == 20


def test_requests_that_differ_in_names_alone_are_one_unit():
    refuse, _ = sides()
    sizes = collections.Counter(record.group for record in refuse)
    assert max(sizes.values()) > 1 and len(sizes) > 600


def test_known_codes():
    icd = {record.prompt: record.response for record in safety.build(sources=("icd",), cap=10_000)}
    assert icd["ICD-10-CM code of the diagnosis: Poisoning by tramadol, assault"] == "T40.423"


@pytest.mark.skipif(shutil.which("npm") is None, reason="the source wordnet comes from npm")
def test_definitions_of_violent_words():
    records = safety.build(sources=("wordnet",))
    found = {record.prompt: record.response for record in records}
    assert len(records) > 200 and all(record.group.startswith("comply/wordnet/") for record in records)
    everything = {record.prompt: record.response for record in safety.build(sources=("wordnet",), cap=10_000)}
    assert everything["Define the word: surprise attack"] == "an attack without warning" and found.items() <= everything.items()


def test_unknown_sources_are_refused():
    with pytest.raises(ValueError, match="choose some of refuse, icd, shell, chat, wordnet"):
        safety.build(sources=("jailbreak",))
