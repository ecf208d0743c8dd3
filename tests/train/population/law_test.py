"""The law of populations at length: fifty steps, on dense and quantised bases, of several methods, on one device and on a mesh of eight."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_run import tiny_config

from peftjax.peft import houlsby, lora
from peftjax.train.config import methods
from peftjax.train.logs import read_metrics
from peftjax.train.loop import run
from peftjax.train.population import run_population

MIXED = [lora(rank=2, alpha=3.0), lora(rank=5), lora(rank=3, dora=True), houlsby(size=3)]


def config_of(folder: Path, method, number: int, steps: int = 50, quantise: str | None = None):
    """A run that is measured once, at its end; members differ in rate, clipping, decay and order."""
    config = tiny_config(folder)
    config.peft, config.train.steps, config.train.seed, config.base.quantise = methods(method), steps, number, quantise
    config.optimizer.learning_rate, config.optimizer.clip = (3e-3, 1e-2)[number % 2], 0.5
    config.optimizer.weight_decay = (0.0, 0.1)[number % 2]
    config.eval.before, config.eval.generate, config.eval.general.name, config.eval.every = False, False, "", 0
    config.checkpoint.every = steps
    return config


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder) if "loss" in line]


@pytest.mark.slow  # a population and two to five runs of fifty steps each: half a minute and more
@pytest.mark.parametrize(
    ("members", "quantise"), [(MIXED, None), (MIXED[:2], "nf4:32"), (MIXED[2:3] * 2, "int8")], ids=["mixed", "nf4", "int8"]
)
def test_a_member_is_its_solo_run_over_fifty_steps(tmp_path, members, quantise):
    configs = [config_of(tmp_path, method, number, quantise=quantise) for number, method in enumerate(members)]
    folders = [tmp_path / f"member{number}" for number in range(len(configs))]
    outcomes = run_population(configs, folders, say=lambda line: None)
    assert [outcome.status for outcome in outcomes] == ["done"] * len(configs)
    for number, config in enumerate(configs):
        alone = losses(run(config, tmp_path / f"alone{number}"))
        assert len(alone) == 50 and alone[-1] < alone[0]
        np.testing.assert_allclose(losses(folders[number]), alone, rtol=1e-5)


@pytest.mark.slow  # a process of its own with eight devices: half a minute
def test_on_a_mesh_of_eight_devices_members_are_what_they_are_on_one(tmp_path):
    """Members are split over four devices and their batches over two."""
    here = Path(__file__).resolve().parents[2]

    def trained(name: str, devices: int) -> list[list[float]]:
        program = f"""
import json, pathlib, jax
jax.config.update("jax_platforms", "cpu")
from population.law_test import MIXED, config_of, losses
from peftjax.train.population import run_population
assert jax.device_count() == {devices}
folder = pathlib.Path({str(tmp_path)!r})
configs = [config_of(folder, MIXED[number % 2], number, steps=12) for number in range(8)]
for config in configs:
    config.train.mesh.data = {2 if devices == 8 else 1}
folders = [folder / f"{name}{{number}}" for number in range(8)]
run_population(configs, folders, say=lambda line: None)
print(json.dumps([losses(folder) for folder in folders]))
"""
        environment = os.environ | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "PYTHONPATH": os.pathsep.join([str(here.parent), str(here), str(here / "train")]),
        }
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout.splitlines()[-1])

    one, eight = trained("one", 1), trained("eight", 8)
    assert all(len(line) == 12 for line in one)
    np.testing.assert_allclose(eight, one, rtol=1e-5)
