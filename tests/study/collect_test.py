"""Rows of tables from folders as runs leave them."""

import json
import math

import pytest
from small_study import study

from peftjax.peft import lora
from peftjax.peft.spec import to_data
from peftjax.study.cells import Cell, Treatment, run_config
from peftjax.study.collect import curve, outcome, trial
from peftjax.study.execute import Job, execute, fail, left
from peftjax.train.config import plain
from peftjax.train.logs import MetricsLog
from peftjax.train.result import write_result

CELL = Cell("icd", "small", 0, "LoRA")


def leave(folder, tuning, steps=4):
    """What a run of `steps` steps leaves."""
    treatment = Treatment("LoRA", "small", (to_data(lora(rank=3)),), "parameters", 1000.0, 0.0, 1000, steps)
    config = run_config(study(), treatment, CELL, 1e-3, 0, tuning)
    split = "validation" if tuning else "test"
    items = [{"id": f"r{n}", "group": f"g/{n // 2}", "nll": 1.0 + n, "tokens": 2, "accuracy": float(n % 2)} for n in range(4)]
    last = {"step": steps, "split": split, f"{split}_loss": 0.75, "metrics": {"accuracy": {"mean": 0.5}}, "forgetting": 0.125}
    (folder / "evaluations").mkdir(parents=True)
    (folder / "evaluations" / f"{steps:08d}.json").write_text(json.dumps(last | {"predictions": items}))
    (folder / "config.json").write_text(json.dumps(plain(config)))
    with MetricsLog(folder, tensorboard=False) as log:
        for step in range(1, steps + 1):
            log.write(step, loss=float(step), learning_rate=1e-3)
    write_result(folder, {
        "config": plain(config), "versions": {}, "base": {"fingerprint": "base"}, "tokenizer": {}, "methods": [],
        "trainable": {"parameters": 1000, "bytes": 4000}, "data": {"content_hash": "records"}, "evaluations": [last], "predictions": [],
        "timings": {"train_s": 2.0}, "memory": {},
    })
    return config


def test_a_trial_is_scored_on_validation(tmp_path):
    leave(tmp_path, tuning=True)
    row = trial(tmp_path, CELL, -1, 1e-3, 100, "loss")
    assert row["score"] == 0.75 and row["k"] == -1 and row["settings"]["eval.at_end"] == ["validation"]
    assert trial(tmp_path, CELL, -1, 1e-3, 100, "accuracy")["score"] == -0.5  # less is better
    assert not any(name.startswith(("peft", "optimizer.learning_rate", "log.")) for name in row["settings"])


def test_a_diverged_trial_scores_infinity(tmp_path):
    leave(tmp_path, tuning=True)
    (tmp_path / "result.json").unlink()
    assert trial(tmp_path, CELL, 0, 1e-3, 100, "loss") is None
    fail(tmp_path, FloatingPointError("loss at step 2 is nan"))
    assert trial(tmp_path, CELL, 0, 1e-3, 100, "loss")["score"] == math.inf
    assert outcome(tmp_path, CELL, 1e-3, 0) == (
        {"data": "icd", "budget": "small", "size": 0, "method": "LoRA", "rate": 1e-3, "seed": 0, "error": "loss at step 2 is nan"}, [])


def test_a_measured_run_gives_its_items(tmp_path):
    leave(tmp_path, tuning=False)
    row, items = outcome(tmp_path, CELL, 1e-3, 3)
    assert row["error"] is None and row["loss"] == 0.75 and row["forgetting"] == 0.125 and row["metric"] == "accuracy"
    assert (row["records"], row["base"], row["parameters"]) == ("records", "base", 1000)
    assert row["curve"]["step"] == [1, 2, 3, 4] and row["curve"]["loss"] == [1.0, 2.0, 3.0, 4.0]
    assert items[3] == {"data": "icd", "budget": "small", "size": 0, "method": "LoRA", "seed": 3, "id": "r3", "group": "g/1", "nll": 4.0,
                        "tokens": 2, "combined": "", "accuracy": 1.0}


def test_a_long_curve_is_means_over_stretches(tmp_path):
    leave(tmp_path, tuning=False, steps=10)
    found = curve(tmp_path, {"evaluations": []}, points=4)
    assert found["step"] == [3, 6, 9, 10] and found["loss"] == [2.0, 5.0, 8.0, 10.0]


def test_what_is_done_or_diverged_is_not_done_again(tmp_path):
    done, failed, new = (Job(leave(tmp_path / name, tuning=False), tmp_path / name) for name in ("done", "failed", "new"))
    for job in (failed, new):
        (job.folder / "result.json").unlink()
    fail(failed.folder, FloatingPointError("nan"))
    assert left([done, failed, new]) == [new]
    execute([done, failed])  # nothing to do: nothing is loaded


@pytest.mark.parametrize("ended", ["done", "diverged"])
def test_a_run_of_another_config_is_refused_though_it_has_ended(tmp_path, ended):
    """Its result would be told as one of what is asked now."""
    job = Job(leave(tmp_path, tuning=False), tmp_path)
    if ended == "diverged":
        (tmp_path / "result.json").unlink()
        fail(tmp_path, FloatingPointError("nan"), 2)
    asked = job.config.copy_and_resolve_references()
    asked.train.steps += 1
    with pytest.raises(ValueError, match=r"holds a run of another config \(asked \| there\): train.steps: "):
        left([Job(asked, tmp_path)])


def test_an_unfinished_run_has_no_row(tmp_path):
    assert outcome(tmp_path, CELL, 1e-3, 0) is None and trial(tmp_path, CELL, 0, 1e-3, 100, "loss") is None
