"""A run whose inits need statistics measures them once: resumed, and read again, it has the values it began with."""

import shutil

import numpy as np
import pytest
from tiny import equal_trees
from tiny_run import tiny_config

from peftjax.nn.tree import flatten, get
from peftjax.peft import adalora, lora
from peftjax.peft.partition import kept, partition
from peftjax.train import prepare
from peftjax.train.adapters import of_run
from peftjax.train.config import methods
from peftjax.train.loop import run


def config_of(folder):
    config = tiny_config(folder)
    config.peft = methods(
        lora(rank=2, init="corda_kpm", targets="q_proj", name="start"),
        lora(rank=2, init="eva", freeze_a=True, targets="down_proj", name="frozen"),
        adalora(rank=3, target_rank=1, warmup=1, final=1, targets="v_proj", name="shrinking"),
    )
    config.train.steps, config.train.init_batches, config.optimizer.project_frozen_a = 4, 2, True
    config.eval.before, config.eval.generate, config.eval.every, config.eval.general.name = False, False, 0, ""
    return config


@pytest.mark.slow  # two runs and two readings of them
def test_a_resumed_run_does_not_measure_again_and_ends_the_same(tmp_path, monkeypatch, capsys):
    whole = run(config_of(tmp_path), tmp_path / "whole")
    half = shutil.copytree(whole, tmp_path / "half")
    for name in ("result.json", "report.md"):
        (half / name).unlink()
    for folder in (half / "checkpoints").iterdir():
        if folder.is_dir() and folder.name.lstrip("0") == "4":
            shutil.rmtree(folder)

    def refuse(*_, **__):
        raise AssertionError("measured again")

    monkeypatch.setattr(prepare, "measure", refuse)
    run(config_of(tmp_path), half)
    assert "resumed at step 2" in capsys.readouterr().out
    one, other = of_run(whole), of_run(half)
    equal_trees(one.params, other.params)
    node = get(one.params, "blocks/attn/q/kernel")
    assert node.start_b.any() and np.abs(node.a - node.start_a).max() > 1e-3
    assert set(flatten(kept(partition(one.params)[1]))) == {
        "blocks/attn/q/kernel/start/start_a", "blocks/attn/q/kernel/start/start_b", "blocks/mlp/down/kernel/frozen/a"
    }
    assert int((get(one.params, "blocks/attn/v/kernel").e != 0).sum()) == 2
