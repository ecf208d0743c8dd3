"""Evidence from a study's tables whose truth is known."""

import dataclasses

import pytest
import synthetic_study
import told_advice as told

from peftjax.peft import lora, pfeiffer
from peftjax.peft.spec import to_data
from peftjax.study.advice.evidence import key_of, nearest
from peftjax.study.advice.needs import Needs
from peftjax.study.advice.studies import of_studies, of_tables

METHODS = {"LoRA": lora(rank=3), "Pfeiffer": pfeiffer(size=7)}


def test_a_stored_study_is_read_with_its_intervals_and_what_it_cannot_tell_apart(tmp_path):
    tables = synthetic_study.tables({"LoRA": 0.75, "Pfeiffer": 0.45}, data=("icd",), budgets=("small",))
    plan = tables.plan | {"treatments": [
        one | {"specifications": (to_data(METHODS[one["method"]]),)} for one in tables.plan["treatments"]
    ]}
    tables = dataclasses.replace(tables, plan=plan)
    found = {one.method: one for one in of_tables("runs/study", tables)}
    assert found["LoRA"].low < 0.75 < found["LoRA"].high + 0.05 and found["LoRA"].mean > found["Pfeiffer"].mean + 0.1
    assert found["LoRA"].tied == () and found["LoRA"].seeds == 4 and found["LoRA"].metric == "exact_match"
    assert found["LoRA"].key == key_of([to_data(lora(rank=16, alpha=32.0))]) != found["Pfeiffer"].key
    tables.write(tmp_path)
    assert of_studies([tmp_path])[0].mean == pytest.approx(found["LoRA"].mean)
    near = nearest(list(found.values()), Needs(), told.candidates(), "b")
    assert set(near[0].of) == {"LoRA", "Pfeiffer"} and near[0].comparison == ("icd", "small", 0)


def test_a_folder_without_tables_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        of_studies([tmp_path])
