"""Questions: short answers among their aliases, no pictures, facts about countries that hold."""

import collections

import pytest

from peftjax.data.sets import qa
from peftjax.evals.metrics import METRICS


def test_the_answer_is_the_first_of_the_aliases():
    for record in qa.build():
        assert record.extra["aliases"] and record.response == record.extra["aliases"][0]
        assert 0 < len(record.response) <= 60 and "http" not in record.prompt
        assert METRICS["text_match"](record.extra["aliases"][-1].upper(), record.response, record.extra["aliases"]) == 1.0


def test_lists_and_kinds_of_questions():
    topics = collections.Counter(record.group.split("/")[0] for record in qa.build())
    assert {topic for topic in topics if topic.startswith("country_")} == {
        f"country_{kind}" for kind in ("capital", "currency", "calling_code", "domain", "demonym", "subregion", "iso_code", "borders")
    }
    assert len(topics) > 30 and topics["disney"] > 900
    assert len({record.group for record in qa.build()}) == len(qa.build())  # each question is a unit


def test_a_question_is_asked_once_whatever_the_list():
    texts = [record.prompt.split("): ", 1)[-1].casefold() for record in qa.build()]
    assert len(set(texts)) == len(texts)


def test_known_facts():
    found = {record.prompt: record for record in qa.build(sources=("countryinfo",))}
    assert {record.source for record in found.values()} == {"countryinfo==1.0.1"}
    assert found["What is the capital of Ghana?"].response == "Accra"
    assert found["What is the international calling code of Oman?"].response == "+968"
    assert found["Which countries border Sweden, in alphabetical order?"].response == "Finland, Norway"
    assert found["What is the internet domain of Barbados?"].group == "country_domain/Barbados"


def test_unknown_sources_are_refused():
    with pytest.raises(ValueError, match="choose some of countryinfo, trivia, chatterbot"):
        qa.build(sources=("wikipedia",))
