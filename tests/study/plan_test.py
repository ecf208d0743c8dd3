"""Budgets by what is measured: sizes, or steps, that meet them."""

import pytest
from tiny_study import tiny_study

from peftjax.peft import ia3, lora, pfeiffer
from peftjax.peft.spec import from_data
from peftjax.study import plan
from peftjax.study.conduct import base_for
from peftjax.study.plan import cost_of, treatments_of
from peftjax.study.sizes import with_size
from peftjax.train.bench import begin
from peftjax.train.config import methods


def quiet(_):
    """Says nothing."""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    found = tiny_study(tmp_path_factory.mktemp("plan"))
    found.methods = {"LoRA": methods(lora(targets=".*/q"))}
    return found


@pytest.fixture(scope="module")
def base(study):
    return base_for(study)


@pytest.mark.slow  # compiles a training step for each size it tries
def test_a_budget_of_memory_is_met_by_what_the_compiled_step_holds(study, base, tmp_path):
    found = study.copy_and_resolve_references()
    wanted = cost_of(found, base, "memory", with_size(methods(lora(targets=".*/q")), 8))
    assert wanted > cost_of(found, base, "memory", with_size(methods(lora(targets=".*/q")), 1))
    found.methods = {"LoRA": methods(lora(targets=".*/q")), "Pfeiffer": methods(pfeiffer())}
    found.budgets, found.deviation = {"held": {"memory": wanted}}, 0.1
    for one in treatments_of(found, base, tmp_path, quiet).values():
        made = [from_data(dict(each)) for each in one.specifications]
        step = begin(base, made, found.run.train.batch_size, found.run.data.length)[0]
        assert one.cost == step.temporary_bytes and one.unit == "memory"
        assert one.deviation == pytest.approx(one.cost / wanted - 1) and abs(one.deviation) <= 0.1
        assert one.steps == found.run.train.steps


@pytest.mark.slow  # compiles two training steps
def test_a_budget_of_time_sets_the_steps_and_leaves_sizes_alone(study, base, tmp_path):
    found = study.copy_and_resolve_references()
    found.methods = {"LoRA": methods(lora(rank=3, targets=".*/q")), "IA3": methods(ia3())}
    found.budgets = {"ten": {"time": 10.0}}
    made = treatments_of(found, base, tmp_path, quiet)
    assert made["LoRA", "ten"].specifications[0]["rank"] == 3
    for one in made.values():
        step_s = one.cost / one.steps
        assert one.steps >= 1 and abs(one.cost - 10.0) <= step_s / 2 and one.deviation == pytest.approx(one.cost / 10.0 - 1)


def test_a_budget_of_latency_below_the_base_is_refused_with_the_least_there_is(study, base, tmp_path):
    found = study.copy_and_resolve_references()
    found.budgets = {"none": {"latency": 1e-9}}
    with pytest.raises(ValueError, match=r"LoRA cannot meet the budget 'none': the nearest is .* latency where 1e-09 were asked, \+"):
        treatments_of(found, base, tmp_path, quiet)


def test_what_was_timed_is_kept_and_a_change_of_the_study_is_found_anew(study, base, tmp_path, monkeypatch):
    """The clock says something else each time; a study that goes on takes as many steps as it did."""
    found, clock = study.copy_and_resolve_references(), iter((0.5, 0.125, 0.25))
    monkeypatch.setattr(plan, "step_seconds", lambda *_: next(clock))
    found.budgets = {"ten": {"time": 10.0}}
    first = treatments_of(found, base, tmp_path, quiet)
    assert first["LoRA", "ten"].steps == 20 and treatments_of(found, base, tmp_path, quiet) == first
    found.methods = {"LoRA": methods(lora(rank=3, layers=(0,), targets=".*/q"))}
    other = treatments_of(found, base, tmp_path, quiet)
    assert other["LoRA", "ten"].steps == 80 and treatments_of(found, base, tmp_path, quiet) == other
    found.budgets = {"ten": {"time": 20.0}}
    assert treatments_of(found, base, tmp_path, quiet)["LoRA", "ten"].steps == 80


def test_a_budget_of_latency_is_met_by_the_size_whose_prompt_takes_so_long(study, base, tmp_path, monkeypatch):
    """On a clock that is told: a prompt takes 10 ms, and as many more as the rank."""
    found = study.copy_and_resolve_references()
    monkeypatch.setattr(plan, "forward_s", lambda _, made: 0.010 + 0.001 * made[0].rank)
    found.budgets, found.deviation = {"18 ms": {"latency": 0.018}}, 0.01
    one = treatments_of(found, base, tmp_path, quiet)["LoRA", "18 ms"]
    assert one.specifications[0]["rank"] == 8 and one.unit == "latency" and one.cost == pytest.approx(0.018)
    assert one.steps == found.run.train.steps
