"""A sweep by processes: idempotent, with failures told and tried again, and compared at the end."""

import functools
import json
from pathlib import Path

import pytest
from tiny_run import tiny_config

from peftjax.train.ending import read_outcome
from peftjax.train.points import product
from peftjax.train.sweep.comparison import write_comparison
from peftjax.train.sweep.job import LOG, Job
from peftjax.train.sweep.launch import launch
from peftjax.train.sweep.local import local
from peftjax.train.sweep.score import scores

POINTS = [*product({"optimizer.learning_rate": (1e-3, 1e-2)}), {"optimizer.learning_rate": 1e30, "optimizer.clip": 0.0}]


def config(folder):
    made = tiny_config(folder)
    made.train.steps, made.optimizer.name = 4, "sgd"
    made.eval.at_end, made.eval.every, made.eval.before, made.eval.generate = ("validation",), 0, False, False
    made.eval.general.name = ""
    return made


@pytest.mark.slow  # starts the script four times
def test_a_sweep_by_processes_goes_on_where_it_was_and_tries_again_what_failed(tmp_path):
    said, sweep = [], tmp_path / "sweep"
    go = functools.partial(launch, config(tmp_path), POINTS, sweep, functools.partial(local, processes=2), live=False)
    first = go(say=said.append)
    assert [outcome.status for outcome in first] == ["done", "done", "failed"]
    assert "FloatingPointError: loss at step" in first[2].error and "lower config.optimizer.learning_rate" in first[2].error
    stamps = [(outcome.folder / "result.json").stat().st_mtime_ns for outcome in first[:2]]
    again = go(say=said.append)
    assert [outcome.status for outcome in again] == ["done", "done", "failed"]
    assert [(outcome.folder / "result.json").stat().st_mtime_ns for outcome in first[:2]] == stamps
    assert "0 ended before, 3 to train" in said[0] and "2 ended before, 1 to train, 1 of them failed before" in said[1]
    assert (first[2].folder / LOG).read_text().count("Traceback") == 2
    text = write_comparison(sweep).read_text()
    assert "## Failed" in text and "The same command tries them again" in text and (sweep / "sweep.png").exists()
    best = min(json.loads((outcome.folder / "result.json").read_text())["evaluations"][-1]["validation_loss"] for outcome in first[:2])
    assert scores(sweep)[0].value == best and f"{best:.4f}" in text.splitlines()[6]


def test_a_process_that_was_killed_is_told(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir(), second.mkdir()
    (first / LOG).write_text("loading the base\n")
    (second / "result.json").write_text("{}")
    Job((first, second)).ended(-9)
    assert read_outcome(first).error == f"its process was killed by SIGKILL; the end of {first / LOG}: loading the base"
    assert read_outcome(second).status == "done"


def test_the_command_is_one_that_can_be_typed(tmp_path):
    assert Job((tmp_path,), "python", Path("/repo")).command == [
        "python", "/repo/scripts/train.py", f"--config=/repo/configs/stored.py:{tmp_path}/config.json", f"--workdir={tmp_path}",
    ]
