"""One step on one device, on eight virtual ones under jit, on a (4, 2) mesh and under pmap: the same losses."""

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from ml_collections import ConfigDict
from tiny import TINY, train_batch
from peftjax.interop.base import Base
from peftjax.models.decoder import init_params
from peftjax.peft import lora, pfeiffer
from peftjax.train.config import default_config, methods
from peftjax.train.parallel import compile_step
from peftjax.train.prepare import prepare_model
from peftjax.train.sharding import make_mesh

parallel, data, model, accumulate = sys.argv[1], *map(int, sys.argv[2:])
config = default_config()
config.peft = methods(lora(rank=4, init="gaussian"), pfeiffer(size=4, name="beside"))
config.train.update(dict(steps=6, batch_size=16, accumulate=accumulate, parallel=parallel))
config.optimizer.learning_rate = 1e-2
config.optimizer.warmup = 1
mesh = make_mesh(data, model)
base = Base("tiny", TINY, init_params(TINY, jax.random.key(7)), None, "")
prepared = prepare_model(config, base, mesh)
step, place = compile_step(config, prepared, mesh)
state, losses = prepared.state, []
for number in range(6):
    state, metrics = step(state, prepared.frozen, place(train_batch(16, seed=number)))
    losses.append([float(metrics["loss"]), float(metrics["grad_norm"])])
specs = sorted({str(x.sharding.spec) for x in jax.tree.leaves(prepared.frozen)})
print(json.dumps({"losses": losses, "devices": jax.device_count(), "specs": specs}))
"""


def losses(devices: int, parallel: str = "jit", data: int = 1, model: int = 1, accumulate: int = 1) -> dict:
    """Six steps in a process of its own with that many virtual devices."""
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "PYTHONPATH": os.pathsep.join([os.path.dirname(here), here]),
    }
    arguments = [parallel, str(data), str(model), str(accumulate)]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def alone() -> dict:
    return losses(1)


def test_losses_fall(alone):
    assert alone["losses"][-1][0] < 0.95 * alone["losses"][0][0]


@pytest.mark.parametrize("how", [
    {"data": 8}, {"data": 4, "model": 2}, {"data": 8, "accumulate": 2}, {"parallel": "pmap", "data": 8},
], ids=str)
def test_eight_devices_give_the_losses_of_one(alone, how):
    found = losses(8, **how)
    assert found["devices"] == 8
    for (loss, norm), (expected, expected_norm) in zip(found["losses"], alone["losses"], strict=True):
        assert loss == pytest.approx(expected, rel=2e-5)
        assert norm == pytest.approx(expected_norm, rel=2e-4)
    if how.get("model") == 2:
        assert any("model" in spec for spec in found["specs"])
