"""Advice on a tiny base from end to end: candidates by shapes, costs measured and kept, files written."""

import dataclasses
import json

import pytest
from tiny import TINY, base

from peftjax.interop.base import Base
from peftjax.peft import houlsby, ia3, lora
from peftjax.study.advice.ask import advise, require_room, write
from peftjax.study.advice.candidates import candidates
from peftjax.study.advice.costs import serving_bytes
from peftjax.study.advice.needs import Needs

METHODS = {"LoRA": (lora(rank=2),), "Houlsby": (houlsby(size=2),), "IA3": (ia3(),)}
BASE = Base("tiny", TINY, base(), None, "f" * 64)


def test_candidates_know_what_they_can_be_and_what_they_hold():
    found = {one.name: one for one in candidates(BASE, METHODS)}
    assert found["LoRA, merged"].possible is None and "no dense weight" in found["Houlsby, merged"].possible
    assert "a bank holds LoRA and bottlenecks" in found["IA3, several in a batch"].possible
    assert found["Houlsby, beside the base"].everywhere and not found["IA3, beside the base"].everywhere
    one = found["LoRA, beside the base"]
    assert serving_bytes(one, 1000, 3) == 1000 + 3 * one.stored_bytes and one.stored_bytes == 4 * one.trainable > 0
    assert serving_bytes(found["LoRA, merged"], 1000, 3) == 3 * found["LoRA, merged"].arm_bytes


def test_less_memory_than_the_base_takes_is_refused():
    with pytest.raises(ValueError, match="the base alone takes"):
        require_room(Needs(serving_mb=0.001), BASE)


def test_what_no_candidate_meets_is_refused_with_what_would_have_to_give_way():
    with pytest.raises(ValueError, match="without the demand 'merging only' 1 would remain"):
        advise(Needs(merging="required"), base=BASE, methods={"Houlsby": METHODS["Houlsby"]})


def test_contradictions_are_refused_before_a_base_is_loaded():
    with pytest.raises(ValueError, match="contradict"):
        advise(Needs(base="/nowhere", merging="required", apart=True))


@pytest.mark.slow  # compiles prompts, tokens and steps of four arms: twenty seconds
def test_advice_on_a_tiny_base_is_measured_once_and_written(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFTJAX_CACHE", str(tmp_path / "cache"))
    needs = Needs(domains=3, merging="forbidden", mixed=True, batch=2, prompt=4, train_batch=2, train_length=8, rows=100)
    told = []
    found = advise(needs, base=BASE, methods=METHODS, rounds=5, budget_s=0.1, say=told.append)
    assert {one.candidate.name for one in found.verdicts if one.cost} == {"LoRA, several in a batch", "Houlsby, several in a batch"}
    assert all(one.cost.token_s > 0 and one.cost.training_bytes > 0 for one in found.verdicts if one.cost) and not found.costs.kept
    asked = len(told)
    again = advise(needs, base=BASE, methods=METHODS, rounds=5, budget_s=0.1, say=told.append)
    assert again.costs.kept and len(told) == asked and again.costs.of == found.costs.of
    written = write(found, tmp_path / "advice")
    assert "No evidence of quality" in written.read_text() and (tmp_path / "advice" / "advice.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "advice" / "advice.json").read_text())["needs"] == dataclasses.asdict(needs)
