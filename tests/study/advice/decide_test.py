"""Decisions on evidence made by hand: what is left out and why, what dominates, what is a tie, and what is not known."""

import dataclasses

import pytest
import told_advice as told

from peftjax.study.advice.decide import CHOICE, DOMINATED, FRONT, OUT, RECOMMENDED, by_rules, decide, relaxed
from peftjax.study.advice.evidence import nearest
from peftjax.study.advice.needs import Needs
from peftjax.study.advice.report import answer, as_data, as_markdown, as_text, left_out
from peftjax.study.timing import Ratio


def advice(needs, found=(), token=None, names=()):
    known = told.candidates(*names)
    remaining, _ = by_rules(known, needs)
    return decide(needs, known, told.costs(remaining, needs.domains, token), nearest(found, needs, known, "f"))


def states(answered):
    return {one.candidate.name: one.state for one in answered.verdicts}


def why(answered, name):
    return " ".join(next(one.reasons for one in answered.verdicts if one.candidate.name == name))


def test_one_domain_that_may_be_merged_takes_the_lora_merged():
    found = advice(Needs(), told.evidence({"LoRA": 0.8, "Houlsby": 0.8, "Pfeiffer": 0.79}, (("LoRA", "Houlsby", "Pfeiffer"),)))
    assert answer(found) == "Take LoRA, merged."
    assert states(found)["LoRA, beside the base"] == DOMINATED  # the same method, which costs more
    assert "LoRA, merged is better in time of a token" in why(found, "LoRA, beside the base")
    assert states(found)["Houlsby, merged"] == OUT and "Houlsby cannot be merged" in why(found, "Houlsby, merged")


def test_fifty_domains_apart_in_one_batch_with_little_latency_take_a_bank_of_bottlenecks():
    needs = Needs(domains=50, merging="forbidden", mixed=True, batch=8, latency=1.12)
    tied = told.evidence({"LoRA": 0.80, "Houlsby": 0.80, "Pfeiffer": 0.79}, (("LoRA", "Houlsby", "Pfeiffer"),))
    found = advice(needs, tied)
    assert states(found)["LoRA, several in a batch"] == OUT
    assert "1.150 times the base's where at most 1.120" in why(found, "LoRA, several in a batch")
    assert states(found)["LoRA, merged"] == OUT and "merging is forbidden" in why(found, "LoRA, merged")
    assert "holds one at a time" in why(found, "Pfeiffer, beside the base")
    assert answer(found) == "Take Pfeiffer, several in a batch."  # tied in quality with Houlsby, and cheaper
    assert states(found)["Houlsby, several in a batch"] == DOMINATED
    assert "no test tells their quality apart" in why(found, "Houlsby, several in a batch")


def test_what_was_timed_as_faster_than_the_base_counts_as_equal_to_it(monkeypatch):
    """An adapter beside the base is no gain in time over one that is merged."""
    tied = told.evidence({"LoRA": 0.80, "Pfeiffer": 0.80}, (("LoRA", "Pfeiffer"),))
    monkeypatch.setitem(told.TOKEN, "Pfeiffer", 0.9)
    faster = advice(Needs(), tied, names=("LoRA", "Pfeiffer"))
    assert answer(faster) == "Take LoRA, merged."
    assert "faster than the base alone, which no adapter is: Pfeiffer, beside the base" in " ".join(faster.basis)
    monkeypatch.setitem(told.TOKEN, "Pfeiffer", 1.0)
    slower = advice(Needs(), tied, names=("LoRA", "Pfeiffer"))
    assert not any("faster than the base" in line for line in slower.basis)


def test_better_quality_outweighs_what_is_preferred_and_what_costs_less():
    needs = Needs(domains=50, merging="forbidden")
    found = advice(needs, told.evidence({"LoRA": 0.7, "Houlsby": 0.7, "Pfeiffer": 0.9}, (("LoRA", "Houlsby"),)))
    assert answer(found) == "Take Pfeiffer, beside the base."
    assert states(found)["Houlsby, beside the base"] == DOMINATED and states(found)["IA3, beside the base"] == FRONT
    assert "behind Pfeiffer, beside the base, of which studies know the quality" in why(found, "IA3, beside the base")


def test_a_better_method_that_costs_more_stays_on_the_front_before_the_cheaper_one():
    found = advice(Needs(merging="forbidden"), told.evidence({"LoRA": 0.9, "Houlsby": 0.7}), names=("LoRA", "Houlsby"))
    assert answer(found) == "Take LoRA, beside the base." and states(found)["Houlsby, beside the base"] == FRONT
    assert "its quality is below that of LoRA" in why(found, "Houlsby, beside the base")


def test_what_nothing_tells_apart_is_a_tie():
    same = told.ratio(1.05, 0.03)
    found = advice(
        Needs(merging="forbidden"), told.evidence({"LoRA": 0.8, "Houlsby": 0.81}, (("LoRA", "Houlsby"),)),
        {"LoRA": same, "Houlsby": same}, names=("LoRA", "Houlsby"),
    )
    # their prompts differ clearly (1.10 and 1.05), so Houlsby dominates; make them equal too
    assert states(found)["LoRA, beside the base"] == DOMINATED
    level = {name: dataclasses.replace(cost, prompt=same, serving_bytes=1) for name, cost in found.costs.of.items()}
    known = told.candidates("LoRA", "Houlsby")
    again = decide(found.needs, known, dataclasses.replace(found.costs, of=level), found.near)
    assert states(again)["LoRA, beside the base"] == states(again)["Houlsby, beside the base"] == CHOICE
    assert answer(again).startswith("A tie: LoRA, beside the base, Houlsby, beside the base cannot be told apart")


def test_without_evidence_nothing_is_ruled_out_on_quality_and_it_is_said():
    found = advice(Needs(merging="forbidden", rows=5000))
    assert "No evidence of quality: no stored study" in found.basis[0]
    assert DOMINATED not in states(found).values()  # the cheapest method may well learn least
    assert answer(found).startswith("Take Houlsby, beside the base: by its costs and by what others published")
    assert "many records" in found.of(RECOMMENDED)[0].preferred
    few = advice(Needs(merging="forbidden", rows=100))
    assert answer(few).startswith("Take IA3, beside the base: by its costs")


def test_a_preference_that_rests_on_a_default_says_so_and_what_is_cheaper_is_named():
    needs = Needs(merging="forbidden")
    found = advice(needs)
    assert any("'many records' prefers some of these since rows = 1000, which is the default" in line for line in found.basis)
    assert "(many records); it costs less in time of a token, time of a prompt" in why(found, "Pfeiffer, beside the base")
    assert not any("the default" in line for line in advice(Needs(merging="forbidden", rows=5000)).basis)


def test_what_is_left_out_for_one_reason_is_told_once():
    found = advice(Needs(domains=3, merging="forbidden", mixed=True, batch=2))
    told_once = dict(left_out(found))
    assert told_once["merged, all"].startswith(("merging is forbidden", "a batch holds"))
    text = as_text(found)
    assert text.count("merging is forbidden") == 1 and "several in a batch, IA3: IA3 cannot be bank" in text
    assert "beside the base, all: a batch holds requests of several domains" in as_text(found)


def test_evidence_says_where_it_is_not_of_what_was_asked():
    away = told.evidence({"LoRA": 0.8, "Houlsby": 0.7}, fingerprint="another", base="tiny:t64", seeds=2)
    found = advice(Needs(merging="forbidden", rows=100_000), away)
    assert "on another base, tiny:t64" in found.basis[0] and "with 1000 training records, yours are 100000" in found.basis[0]
    assert "with 2 seeds only" in found.basis[0] and "No evidence of the quality of IA3; Pfeiffer" in found.basis[1]


def test_a_bound_within_the_interval_is_a_doubt_and_no_reason():
    found = advice(Needs(merging="forbidden", latency=1.1), token={"LoRA": Ratio(1.11, 1.05, 1.2)}, names=("LoRA", "Houlsby"))
    assert states(found)["LoRA, beside the base"] != OUT
    assert "not certain: time of a token: 1.110 times the base's" in why(found, "LoRA, beside the base")


def test_memory_for_fifty_merged_copies_is_too_much():
    found = advice(Needs(domains=50, serving_mb=2000))
    assert states(found)["LoRA, merged"] == OUT and "25,000 MB where at most 2,000 MB" in why(found, "LoRA, merged")
    assert states(found)["LoRA, beside the base"] != OUT


def test_where_rules_leave_nothing_it_is_said_what_would_have_to_give_way():
    needs = Needs(merging="required")
    assert by_rules(told.candidates("Houlsby"), needs)[0] == []
    assert relaxed(needs, told.candidates("Houlsby")) == {"merging only": 1}


def test_studies_that_disagree_leave_both_on_the_front():
    here = told.evidence({"LoRA": 0.9, "Houlsby": 0.7})
    there = told.evidence({"LoRA": 0.6, "Houlsby": 0.8}, comparison=("bank", "small", 1000))
    found = advice(Needs(merging="forbidden"), here + there, names=("LoRA", "Houlsby"))
    assert set(states(found).values()) == {RECOMMENDED, FRONT, OUT}
    assert len([line for line in found.basis if line.startswith("Quality:")]) == 2


@pytest.mark.parametrize("tell", [as_text, as_markdown, lambda found: str(as_data(found))])
def test_the_answer_is_told_with_its_reasons_and_numbers(tell):
    found = advice(Needs(domains=3, combine=True), told.evidence({"LoRA": 0.8, "Houlsby": 0.7}))
    text = tell(found)
    assert "Take LoRA, beside the base" in text and "combining" in text and "2005.00247" in text
    assert "1.1" in text and ("80.0 %" in text or "0.8" in text) and "adapters that a request chooses must be there" in text


def test_a_study_by_loss_is_told_in_nats_and_its_lowest_loss_is_the_best():
    losses = told.evidence({"LoRA": -1.5, "Houlsby": -1.75, "Pfeiffer": -1.6}, metric="−loss")
    found = advice(Needs(merging="forbidden"), losses, names=("LoRA", "Houlsby", "Pfeiffer"))
    assert answer(found) == "Take LoRA, beside the base."
    for text in (as_text(found), as_markdown(found)):
        assert "loss 1.500 [1.480, 1.520] nats a token" in text and "loss 1.750 [1.730, 1.770] nats a token" in text
        assert "150.0" not in text and "-1.5" not in text
    assert "80.0 % [78.0, 82.0]" in as_text(advice(Needs(), told.evidence({"LoRA": 0.8})))


def test_what_was_timed_for_others_and_on_fewer_rows_is_told():
    needs, known = Needs(batch=8), told.candidates()
    remaining, _ = by_rules(known, needs)
    costs = dataclasses.replace(told.costs(remaining), timed_by={"IA3, merged": "LoRA, merged"})
    said = as_text(decide(needs, known, costs, []))
    assert "Serving of LoRA, merged was timed for IA3, merged too: they are one program." in said
    assert "Prompts were timed on 2 rows of 128 tokens, not on 8" in said
    plain = as_text(decide(Needs(), known, told.costs(remaining), []))
    assert "was timed for" not in plain and "Prompts were timed" not in plain
