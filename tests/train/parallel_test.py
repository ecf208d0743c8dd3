"""One step on one device, on eight virtual ones under jit, on a (4, 2) mesh and under pmap: the same losses."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow  # compiles five steps for eight virtual devices: thirty-five seconds

HOWS = {
    "alone": {"devices": 1, "data": 1}, "eight": {"data": 8}, "mesh": {"data": 4, "model": 2}, "pieces": {"data": 8, "accumulate": 2},
    "pmap": {"parallel": "pmap", "data": 8},
}
PROGRAM = """
import json, sys
import jax
from tiny import TINY, train_batch
from peftjax.interop.base import Base
from peftjax.models.decoder import init_params
from peftjax.peft import lora, pfeiffer
from peftjax.train.config import default_config, methods
from peftjax.train.parallel import compile_step
from peftjax.train.prepare import prepare_model
from peftjax.train.sharding import make_mesh

def losses(devices=8, data=8, model=1, accumulate=1, parallel="jit"):
    config = default_config()
    config.peft = methods(lora(rank=4, init="gaussian"), pfeiffer(size=4, name="beside"))
    config.train.update(dict(steps=4, batch_size=16, accumulate=accumulate, parallel=parallel))
    config.optimizer.update(dict(learning_rate=1e-2, warmup=1))
    mesh = make_mesh(data, model, jax.devices()[:devices])
    prepared = prepare_model(config, Base("tiny", TINY, init_params(TINY, jax.random.key(7)), None, ""), mesh)
    step, place = compile_step(config, prepared, mesh)
    state, found = prepared.state, []
    for number in range(4):
        state, metrics = step(state, prepared.frozen, place(train_batch(16)))
        found.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    return {"losses": found, "specs": sorted({str(x.sharding.spec) for x in jax.tree.leaves(prepared.frozen)})}

print(json.dumps({name: losses(**how) for name, how in json.loads(sys.argv[1]).items()}))
"""


@pytest.fixture(scope="module")
def found() -> dict:
    """Four steps of each kind, in one process with eight virtual devices."""
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "PYTHONPATH": os.pathsep.join([os.path.dirname(here), here]),
    }
    done = subprocess.run([sys.executable, "-c", PROGRAM, json.dumps(HOWS)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_losses_fall(found):
    assert found["alone"]["losses"][-1][0] < 0.98 * found["alone"]["losses"][0][0]


@pytest.mark.parametrize("how", [name for name in HOWS if name != "alone"])
def test_eight_devices_give_the_losses_of_one(found, how):
    for (loss, norm), (expected, expected_norm) in zip(found[how]["losses"], found["alone"]["losses"], strict=True):
        assert loss == pytest.approx(expected, rel=2e-5)
        assert norm == pytest.approx(expected_norm, rel=2e-4)


def test_a_model_axis_splits_the_kernels(found):
    assert any("model" in spec for spec in found["mesh"]["specs"])
