"""Which evidence is nearest to what is asked."""

import pytest
import told_advice as told

from peftjax.peft import lora, pfeiffer
from peftjax.peft.spec import to_data
from peftjax.study.advice.evidence import key_of, nearest
from peftjax.study.advice.needs import Needs


def test_methods_are_the_same_in_all_but_their_size():
    assert key_of([to_data(lora(rank=3))]) == key_of([to_data(lora(rank=16, alpha=32.0))]) != key_of([to_data(pfeiffer(size=7))])
    assert key_of([to_data(lora(targets=".*/q"))]) != key_of([to_data(lora())])


def test_the_nearest_comparison_is_of_the_same_base_then_of_most_methods_then_of_like_size():
    far = told.evidence({"LoRA": 0.1, "Houlsby": 0.1, "Pfeiffer": 0.1}, fingerprint="other")
    few = told.evidence({"LoRA": 0.2}, comparison=("icd", "few methods", 1000))
    small = told.evidence({"LoRA": 0.3, "Houlsby": 0.3}, comparison=("icd", "small", 100))
    near = told.evidence({"LoRA": 0.4, "Houlsby": 0.4}, comparison=("icd", "small", 900))
    found = nearest([*far, *few, *small, *near], Needs(rows=1000), told.candidates(), "f")
    assert [one.comparison[2] for one in found] == [900] and found[0].of["LoRA"].mean == 0.4


def test_of_one_method_in_two_sizes_the_nearer_one_counts():
    big, small = told.evidence({"LoRA": 0.9}, parameters=4_000_000), told.evidence({"LoRA": 0.1}, parameters=10)
    for found in ([*big, *small], [*small, *big]):
        assert nearest(found, Needs(), told.candidates(), "f")[0].of["LoRA"].mean == 0.9


def test_data_that_no_study_has_are_named():
    with pytest.raises(ValueError, match="no study has data called 'icb'.*did you mean 'icd'"):
        nearest(told.evidence({"LoRA": 0.9}), Needs(data="icb"), told.candidates(), "f")
    assert nearest([], Needs(data="icb"), told.candidates(), "f") == []
