"""The engines that train elsewhere, as far as they can be had on this machine: submitit's own executor, and a Ray cluster of one."""

import functools

import pytest
from tiny_run import tiny_config

from peftjax.train.points import product
from peftjax.train.sweep.launch import launch
from peftjax.train.sweep.ray_cluster import on_ray
from peftjax.train.sweep.slurm import slurm

POINTS = [*product({"optimizer.learning_rate": (1e-3,)}), {"optimizer.learning_rate": 1e30, "optimizer.clip": 0.0}]


def config(folder):
    made = tiny_config(folder)
    made.train.steps, made.optimizer.name = 4, "sgd"
    made.eval.at_end, made.eval.every, made.eval.before, made.eval.generate = ("validation",), 0, False, False
    made.eval.general.name = ""
    return made


def swept(tmp_path, launcher):
    """One point is trained and one fails with its own error; again, only that one is tried."""
    sweep = tmp_path / "sweep"
    go = functools.partial(launch, config(tmp_path), POINTS, sweep, live=False)
    done, failed = go(launcher(sweep))
    assert (done.status, failed.status) == ("done", "failed"), (done, failed)
    assert "lower config.optimizer.learning_rate" in failed.error
    stamp = (done.folder / "result.json").stat().st_mtime_ns
    assert [outcome.status for outcome in go(launcher(sweep))] == ["done", "failed"]
    assert (done.folder / "result.json").stat().st_mtime_ns == stamp
    assert (failed.folder / "train.log").read_text().count("Traceback") == 2


@pytest.mark.slow  # starts the script three times
def test_submitit_trains_a_sweep(tmp_path):
    pytest.importorskip("submitit")
    swept(tmp_path, lambda sweep: functools.partial(slurm, folder=sweep, cluster="local", resources={"timeout_min": 10}))
    assert (tmp_path / "sweep" / "slurm" / "jobs.json").exists()


@pytest.mark.slow  # starts a cluster and the script three times
def test_ray_trains_a_sweep(tmp_path):
    pytest.importorskip("ray")
    swept(tmp_path, lambda sweep: functools.partial(on_ray, resources={"num_cpus": 0.5}))


def test_an_extra_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "submitit", None)
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r"peftjax\[slurm\]"):
        slurm([], tmp_path)
    with pytest.raises(ModuleNotFoundError, match=r"peftjax\[ray\]"):
        on_ray([])
