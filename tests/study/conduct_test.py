"""What a study on a tiny base refuses before anything is trained."""

import json

import pytest
from tiny_run import ANIMALS, COLOURS, tiny_config

from peftjax.peft import lora
from peftjax.study.conduct import conduct
from peftjax.study.config import default_study
from peftjax.train.config import methods


def task(path):
    """`paint the cat red` -> `red`, 64 rows to learn from, 16 to choose a rate on, 48 to be measured on."""
    rows = []
    for number, animal in enumerate(ANIMALS):
        split = "train" if number < 8 else "validation" if number < 10 else "test"
        for colour in (*COLOURS, "grey", "pink", "gold"):
            rows.append({"prompt": f"paint the {animal} {colour}:", "response": f" {colour}", "group": animal, "split": split})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def study_in(folder):
    run = tiny_config(folder)
    study = default_study()
    study.run.base.uri = run.base.uri
    study.run.data.length, study.run.train.steps, study.run.train.batch_size, study.run.optimizer.warmup = 64, 60, 8, 2
    study.run.eval.max_new, study.run.eval.general.rows = 6, 4
    study.run.eval.general.name = run.eval.general.name
    study.budgets = {"small": {"parameters": 2000}}
    study.data = {"colours": {"data": {"name": str(task(folder / "colours.jsonl"))}}}
    study.seeds, study.tuning.centre, study.tuning.rates, study.tuning.rounds = (0, 1), 3e-2, 3, 2
    study.timing.rounds, study.deviation = 0, 0.2
    return study


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("studies")


def test_a_budget_that_no_size_meets_is_refused(folder):
    study = study_in(folder)
    study.methods, study.deviation = {"LoRA": methods(lora())}, 0.05
    study.budgets = {"odd": {"parameters": 100}}
    with pytest.raises(ValueError, match=r"LoRA cannot meet the budget 'odd': the nearest is .* where 100 were asked"):
        conduct(study, folder / "odd")
