import runpy
from pathlib import Path

import pytest
from small_study import study

from peftjax.peft import lora, pfeiffer
from peftjax.study.config import check, plain_study, run_on, unit_of
from peftjax.train.config import methods


def test_fields_of_a_run_differ_by_data_set():
    found = study()
    check(found)
    config = run_on(found, "icd")
    assert config.data.name == "icd_chapter" and config.eval.metrics == ("accuracy",)
    assert found.run.data.name == ""
    assert plain_study(found)["methods"]["LoRA"][0]["method"] == "lora"


@pytest.mark.parametrize(("change", "error"), [
    (lambda s: s.update({"budget": {}}), r"study.budget is not a field \(did you mean 'budgets'"),
    (lambda s: s.tuning.update({"rate": 3}), r"study.tuning.rate is not a field \(did you mean 'rates'"),
    (lambda s: s.update({"seeds": ()}), "study.seeds is empty"),
    (lambda s: s.update({"seeds": (1, 1)}), "study.seeds names one twice"),
    (lambda s: s.update({"seeds": (1, 100)}), r"seeds \[100\] are in study.tuning.seeds and in study.seeds"),
    (lambda s: s.budgets.small.update({"time": 1}), "a budget is one unit and its number"),
    (lambda s: s.budgets.update({"tiny": {"paramters": 1}}), r"did you mean 'parameters'"),
    (lambda s: s.methods.update({"Lo RA": methods(lora()), "Lo-RA": methods(lora())}), "names whose folders would be the same"),
    (lambda s: s.methods.update({"both": methods(lora(), pfeiffer())}), "both .* has 2 ranks or sizes"),
    (lambda s: s.tuning.update({"rates": 2}), "three rates or more"),
    (lambda s: s.tuning.update({"measure": "acuracy"}), "did you mean 'accuracy'"),
    (lambda s: s.update({"region": 0.0}), "study.region 0.0"),
    (lambda s: s.data.update({"icd": {"dat": {"name": "x"}}}), r"config.dat is not a field \(did you mean 'data'"),
])
def test_what_cannot_be_is_refused(change, error):
    found = study()
    with found.unlocked():
        change(found)
    with pytest.raises(ValueError, match=error):
        check(found)


def test_a_budget_is_one_unit():
    assert unit_of({"time": 3.0}) == ("time", 3.0)


def test_the_study_of_the_repository_is_complete():
    path = Path(__file__).parents[2] / "configs" / "studies" / "lora_vs_adapter.py"
    module = runpy.run_path(str(path))
    for variant in ("", "smollm2", "runlocal"):
        check(module["get_config"](variant))
    assert "scripts/study.py --config configs/studies/lora_vs_adapter.py" in module["__doc__"]
    with pytest.raises(ValueError, match="no variant 'runlocl'"):
        module["get_config"]("runlocl")
