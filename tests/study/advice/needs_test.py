"""Needs: contradictions, answers as text, and the questions."""

import pytest

from peftjax.study.advice.ask import ask
from peftjax.study.advice.conditions import all_hold, holds, in_words
from peftjax.study.advice.needs import CONTRADICTIONS, Needs, needs_from_data, require_sense
from peftjax.study.advice.rules import RULES, Bound


@pytest.mark.parametrize("demands, why", [
    ({"merging": "required", "apart": True}, "no thing of its own"),
    ({"merging": "required", "revocable": True}, "W . BA - BA is not W"),
    ({"merging": "required", "mixed": True, "domains": 3, "batch": 8}, "a batch of several domains needs several"),
    ({"mixed": True, "batch": 8}, "takes two domains"), ({"combine": True}, "takes two domains"),
    ({"mixed": True, "domains": 3}, "one request at a time"),
    ({"latency": 0.9}, "no adapter makes a base faster"),
    ({"latency": 1.0, "merging": "forbidden"}, "only what is merged takes none"),
])
def test_contradictory_demands_are_refused_with_the_reason(demands, why):
    with pytest.raises(ValueError, match=f"contradict each other.*{why}"):
        require_sense(Needs(**demands))


def test_demands_that_go_together_pass():
    require_sense(Needs(domains=50, merging="forbidden", mixed=True, batch=8, apart=True, revocable=True, auditable=True, latency=1.1))
    require_sense(Needs(merging="required", latency=1.0))


def test_all_contradictions_are_told_at_once():
    with pytest.raises(ValueError, match="merging required and apart True.*merging required and auditable True"):
        require_sense(Needs(merging="required", apart=True, auditable=True))


def test_answers_are_read_from_text():
    told = {"domains": "50", "mixed": "yes", "latency": "1.1", "serving_mb": ""}
    assert needs_from_data(told) == Needs(domains=50, mixed=True, latency=1.1)


@pytest.mark.parametrize("data, message", [
    ({"domain": 3}, "did you mean 'domains'"), ({"domains": "many"}, "must be a whole number"), ({"domains": 2.5}, "whole number"),
    ({"mixed": "perhaps"}, "must be yes or no"), ({"merging": "alowed"}, "did you mean 'allowed'"), ({"rows": 0}, "at least 1"),
    ({"latency": -1}, "above 0"), ({"rows": None}, "has no answer"), ({"rows": True}, "must be a whole number"),
])
def test_wrong_answers_are_named(data, message):
    with pytest.raises(ValueError, match=message):
        needs_from_data(data)


def test_questions_are_asked_again_after_a_wrong_answer_and_not_where_it_is_given():
    answers, told = iter(["many", "50"] + [""] * 40), []
    asked = []
    needs = ask({name: getattr(Needs(), name) for name in ("base", "data", "rows")}, lambda text: asked.append(text) or
                (next(answers) if "domains or tenants" in text else ""), told.append)
    assert needs == Needs(domains=50) and told == ["domains is 'many'; it must be a whole number"]
    assert not any("training records" in text for text in asked) and any("[allowed]" in text for text in asked)


def test_conditions():
    needs = Needs(domains=3)
    assert holds(("domains", ">", 2), needs) and not holds(("latency", "<", 5), needs) and holds(("latency", "given", False), needs)
    assert all_hold((), needs) and in_words((("mixed", "=", True), ("latency", "given", True))) == "mixed = yes and latency is given"
    with pytest.raises(ValueError, match="no comparison is called '=='"):
        holds(("domains", "==", 3), needs)


def test_every_rule_and_contradiction_is_of_fields_that_there_are():
    for rule in RULES:
        all_hold(rule.when, Needs())
        assert rule.why and rule.source
        if isinstance(rule.effect, Bound):
            assert hasattr(Needs(), rule.effect.field)
    assert len({rule.name for rule in RULES}) == len(RULES)
    for one in CONTRADICTIONS:
        all_hold(one.when, Needs())
