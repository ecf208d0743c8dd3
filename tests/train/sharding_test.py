"""Rules from paths to places, on a mesh of eight virtual devices in a process of its own."""

import os
import subprocess
import sys

import jax
import pytest

from peftjax.train.sharding import make_mesh

PROGRAM = """
import jax
from tiny import TIED, TINY, base
from peftjax.models.decoder import cut
from peftjax.nn.tree import flatten
from peftjax.peft import attach, head_only, houlsby, lora
from peftjax.train.sharding import make_mesh, shardings
mesh = make_mesh(4, 2)
params = attach(cut(base(TINY), TINY, (1, 1)), [lora(rank=4, targets=["all-linear", "embed_tokens"]), houlsby(size=4)], jax.random.key(0))
specs = {path: tuple(s.spec) for path, s in flatten(shardings(params, mesh)).items()}
expected = {
    "blocks_0_1/attn/q/kernel": (None, None, "model"), "blocks_0_1/attn/q/kernel/default/a": (None, None, None),
    "blocks_0_1/attn/q/kernel/default/b": (None, None, "model"), "blocks_1_2/mlp/down/kernel": (None, "model", None),
    "blocks_1_2/mlp/down/kernel/default/a": (None, None, "model"), "blocks_1_2/mlp/down/kernel/default/b": (None, None, None),
    "blocks_0_1/mlp_out/default/down": (), "blocks_0_1/attn/q/kernel/default/scale": (), "embed/embedding": ("model", None),
    "final_norm/scale": (),
}
for path, spec in expected.items():
    assert specs[path] == spec, (path, specs[path], spec)
head = shardings(attach(base(TIED), [lora(rank=2, targets="lm_head")], jax.random.key(0)), mesh)["head"]["kernel"]
assert tuple(head.base.base.spec) == ("model", None) and tuple(head.b.spec) == (None, "model"), head
placed = jax.device_put(params, shardings(params, mesh))
for path, leaf in flatten(placed).items():
    assert leaf.is_fully_addressable and (leaf == flatten(params)[path]).all(), path
"""


def test_adapters_follow_their_kernels():
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "PYTHONPATH": os.pathsep.join([os.path.dirname(here), here]),
    }
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_mesh_must_use_all_devices():
    with pytest.raises(ValueError, match="does not use"):
        make_mesh(data=3, model=5, devices=jax.devices())
