"""PC1 on a tiny base: LoRA's merge is exact, bottlenecks refuse; planted differences are told."""

import math

import jax
import numpy as np
import pytest
import tiny_checkpoint
from study.checks.rows import words

from peftjax.interop.base import load_base
from peftjax.nn.tree import flatten
from peftjax.peft import attach, houlsby, lora, partition
from peftjax.peft.spec import to_data
from peftjax.study.checks import pc1
from peftjax.study.checks.finding import FAILS, HOLDS


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny_checkpoint.write(folder)
    config = pc1.default_config()
    config.bases = {"tiny": str(folder)}
    config.methods, config.refuse = {"LoRA": to_data(lora(rank=2))}, {"Houlsby": to_data(houlsby(size=2))}
    config.prompts, config.length, config.max_new, config.noise = 8, 6, 2, 0.05
    return {name: measure() for name, measure in pc1.pieces(config, folder, print).items()}


def test_merging_is_exact_and_bottlenecks_refuse(measured):
    assert set(measured) == {"tiny/LoRA", "tiny/Houlsby, refused"}
    assert 1.0 >= measured["tiny/LoRA"]["effect"] > 0.01 > 1e-3 > measured["tiny/LoRA"]["merged"] > 0
    assert measured["tiny/LoRA"]["start"] == measured["tiny/LoRA"]["detached"] == 0 and measured["tiny/LoRA"]["restored"]
    assert measured["tiny/LoRA"]["merged in float64"] < 1e-12 < 1e-8 < measured["tiny/LoRA"]["rounding"] < 1e-3
    finding = pc1.judge(measured)
    assert words(finding)[1:] == [HOLDS] * 6 and len(finding.plot.series) == 3


@pytest.mark.parametrize("claim,change", [
    (0, {"merged": 2e-4}), (1, {"merged in float64": 1e-9}), (2, {"same texts": 7}), (3, {"start": 1e-3}), (4, {"detached": 1e-9}),
    (5, {"restored": False}),
])
def test_what_is_off_is_told(measured, claim, change):
    good = measured["tiny/LoRA"] | {"merged": 1e-6}
    found = words(pc1.judge({"one": good, "two": good | change, "three": measured["tiny/Houlsby, refused"]}))
    assert found[claim] == FAILS and found.count(FAILS) == 1
    assert words(pc1.judge({"one": good, "three": {"refused": None}}))[6] == FAILS


def test_the_noise_moves_every_trainable(tmp_path):
    tiny_checkpoint.write(tmp_path)
    params = attach(load_base(tmp_path).params, [lora(rank=2)], jax.random.key(0))
    before, after = (flatten(partition(tree)[0]) for tree in (params, pc1.moved(params, 0.1, jax.random.key(1))))
    off = {path: np.asarray(after[path] - before[path]).std() for path in before}
    assert all(0.02 < value < 0.3 for value in off.values())


def test_the_noise_is_halved_until_the_adapter_moves_logits_no_more_than_asked(tmp_path):
    tiny_checkpoint.write(tmp_path)
    config = pc1.default_config()
    config.bases, config.methods = {"tiny": str(tmp_path)}, {"LoRA": to_data(lora(rank=2))}
    config.prompts, config.length, config.max_new, config.noise, config.effect = 8, 6, 2, 0.4, 0.1
    (measure,) = pc1.pieces(config, tmp_path, print).values()
    found = measure()
    assert 0.01 < found["effect"] <= 0.1 and math.log2(0.4 / found["noise"]) in range(1, 20)
