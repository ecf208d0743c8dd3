"""A study in miniature that can be trained: the tiny base of `tiny_run` and a task of 128 rows on it."""

import json
from pathlib import Path

from tiny_run import ANIMALS, COLOURS, tiny_config

from peftjax.study.config import default_study


def write_rows(path: Path) -> Path:
    """`paint the cat red` -> `red`, 64 rows to learn from, 16 to choose a rate on, 48 to be measured on."""
    rows = []
    for number, animal in enumerate(ANIMALS):
        split = "train" if number < 8 else "validation" if number < 10 else "test"
        for colour in (*COLOURS, "grey", "pink", "gold"):
            rows.append({"prompt": f"paint the {animal} {colour}:", "response": f" {colour}", "group": animal, "split": split})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tiny_study(folder: Path):
    """Its config, without methods; base, rows and text are written into `folder`."""
    run = tiny_config(folder)
    study = default_study()
    study.run.base.uri = run.base.uri
    study.run.data.length, study.run.train.steps, study.run.train.batch_size, study.run.optimizer.warmup = 64, 60, 8, 2
    study.run.eval.max_new, study.run.eval.general.rows = 6, 4
    study.run.eval.general.name = run.eval.general.name
    study.budgets = {"small": {"parameters": 2000}}
    study.data = {"colours": {"data": {"name": str(write_rows(folder / "colours.jsonl"))}}}
    study.seeds, study.tuning.centre, study.tuning.rates, study.tuning.rounds = (0, 1), 3e-2, 3, 2
    study.timing.rounds, study.deviation = 0, 0.2
    return study
