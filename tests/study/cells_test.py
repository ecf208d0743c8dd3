from small_study import study

from peftjax.peft import lora
from peftjax.peft.spec import to_data
from peftjax.study.cells import Cell, Treatment, cells, run_config
from peftjax.train.config import check


def treatment(steps=100):
    return Treatment("LoRA", "small", (to_data(lora(rank=3)),), "parameters", 1000.0, 0.0, 1000, steps)


def test_methods_of_a_comparison_stand_together():
    found = study()
    found.sizes = (0, 50)
    listed = cells(found)
    assert [(cell.size, cell.method) for cell in listed] == [(0, "LoRA"), (0, "Pfeiffer"), (50, "LoRA"), (50, "Pfeiffer")]
    assert listed[0].comparison == listed[1].comparison != listed[2].comparison


def test_every_run_has_a_folder_of_its_own():
    one, other = Cell("icd", "1 %", 0, "LoRA"), Cell("icd", "1 %", 64, "LoRA")
    assert one.folder(1e-3, 0, True) == "runs/icd/1/all/LoRA/tune-0-lr0.001"
    assert len({cell.folder(rate, seed, tuning) for cell in (one, other) for rate in (1e-3, 3.162e-5) for seed in (0, 1)
                for tuning in (True, False)}) == 16


def test_a_trial_never_looks_at_the_test_set():
    config = run_config(study(), treatment(), Cell("icd", "small", 0, "LoRA"), 3e-3, 7, tuning=True)
    check(config)
    assert config.eval.at_end == ("validation",) and not config.eval.generate and config.eval.general.name == ""
    assert (config.optimizer.learning_rate, config.train.seed, config.peft[0].rank) == (3e-3, 7, 3)


def test_a_trial_by_a_metric_answers():
    found = study()
    found.tuning.measure = "accuracy"
    config = run_config(found, treatment(), Cell("icd", "small", 0, "LoRA"), 3e-3, 7, tuning=True)
    assert config.eval.generate and config.eval.metrics == ("accuracy",)


def test_a_measured_run_is_of_the_test_set():
    config = run_config(study(), treatment(steps=33), Cell("icd", "small", 40, "LoRA"), 3e-3, 0, tuning=False)
    check(config)
    assert config.eval.at_end == ("test",) and config.train.steps == 33 and config.data.rows == 40


def test_adapters_that_are_to_be_combined_are_named_after_their_data():
    found = study()
    found.combine = True
    assert run_config(found, treatment(), Cell("icd", "small", 0, "LoRA"), 1e-3, 0, tuning=False).peft[0].name == "icd"
