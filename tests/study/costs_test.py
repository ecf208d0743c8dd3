"""Costs of treatments on a tiny base: measured once, and read again."""

import pytest
from tiny_study import tiny_study

from peftjax.peft import lora, pfeiffer
from peftjax.study.conduct import COSTS, base_for, time_costs
from peftjax.study.costs import costs_of
from peftjax.study.plan import treatments_of
from peftjax.train.config import methods


@pytest.mark.slow  # compiles five programs for each method
def test_costs_are_measured_once_whoever_asks(tmp_path):
    study = tiny_study(tmp_path)
    study.methods = {"LoRA": methods(lora()), "Pfeiffer": methods(pfeiffer())}
    study.timing.rounds = 3
    time_costs(study, tmp_path / "study", say=lambda _: None)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "study" / COSTS).iterdir()}
    base, said = base_for(study), []
    treatments = list(treatments_of(study, base, tmp_path / "study", lambda _: None).values())
    found = costs_of(study, base, treatments, tmp_path / "study" / COSTS, said.append)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "study" / COSTS).iterdir()} == kept
    assert said == ["costs of 2 treatments, in turns"]  # and no rounds of any
    for row, one in zip(found["rows"], treatments, strict=True):
        assert (row["method"], row["parameters"], row["stored_bytes"]) == (one.method, one.parameters, 4 * one.parameters)
        assert row["step_s"]["low"] <= row["step_s"]["median"] <= row["step_s"]["high"] and row["temporary_bytes"] > 0
        for forms in row["latency"].values():
            assert forms["beside"]["low"] <= forms["beside"]["value"] <= forms["beside"]["high"]
            assert (forms["merged"] is None) == (row["method"] == "Pfeiffer")


def test_where_nothing_is_timed_there_are_no_costs(tmp_path):
    study = tiny_study(tmp_path)
    study.methods = {"LoRA": methods(lora())}
    assert costs_of(study, base_for(study), [], tmp_path / COSTS) == {"rows": []}
