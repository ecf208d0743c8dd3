"""Points that can share a program become one population; the others are left to another launcher."""

import functools

import pytest
from tiny_run import tiny_config

from peftjax.peft import lora
from peftjax.train.config import default_config, methods
from peftjax.train.points import chain, product
from peftjax.train.population import Halving
from peftjax.train.sweep.comparison import write_comparison
from peftjax.train.sweep.folder import plan
from peftjax.train.sweep.launch import launch
from peftjax.train.sweep.score import scores
from peftjax.train.sweep.together import in_populations, packed

POINTS = chain(product({"optimizer.learning_rate": (1e-3, 1e-2), "peft[0].rank": (2, 4)}), [{"train.batch_size": 2}])


def config(folder):
    made = tiny_config(folder)
    made.train.steps = 4
    made.eval.at_end, made.eval.every, made.eval.before, made.eval.generate = ("validation",), 2, False, False
    made.eval.general.name = ""
    return made


def test_points_are_packed_by_what_they_share(tmp_path):
    made = default_config()
    made.peft, made.data.name = methods(lora()), "ha_intents"
    jobs = packed(plan(made, POINTS, tmp_path / "sweep"))
    assert [len(job.folders) for job in jobs] == [4, 1]
    assert jobs[0].command[1:4] == ["-m", "peftjax.train.sweep.together", str(jobs[0].folders[0])]
    assert "train.py" in jobs[1].command[1]


@pytest.mark.slow  # compiles a population
def test_a_packed_sweep_trains_compares_and_is_found_done(tmp_path):
    rest, sweep = [], tmp_path / "sweep"
    launcher = functools.partial(in_populations, rest=rest.extend, halving=Halving((2,)))
    go = functools.partial(launch, config(tmp_path), POINTS, sweep, launcher, pack=packed, live=False)
    outcomes = go()
    assert sorted(outcome.status for outcome in outcomes) == ["done", "done", "stopped", "stopped", "unfinished"]
    assert [job.folders for job in rest] == [(outcomes[4].folder.absolute(),)]
    text = write_comparison(sweep).read_text()
    assert "stopped at step 2" in text and [one.status for one in scores(sweep)][:2] == ["done", "done"]
    said = []
    go(say=said.append)
    assert "4 ended before, 1 to train" in said[0] and len(rest) == 2
