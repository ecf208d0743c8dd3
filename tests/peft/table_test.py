"""The start-up table has a line for every leaf, and totals that are the sums of its lines."""

import dataclasses

import jax
import pytest
from tiny import SMOL, TINY, base

from peftjax.models.decoder import abstract_params
from peftjax.nn.quant import quantise
from peftjax.nn.tree import flatten, put
from peftjax.peft.attach import attach
from peftjax.peft.bottleneck import pfeiffer
from peftjax.peft.lora import lora
from peftjax.peft.partition import partition
from peftjax.peft.table import table, totals

KEY = jax.random.key(0)


def made():
    params = attach(base(), [lora(rank=2), pfeiffer(size=3, name="net")], KEY)
    return params, partition(params)[0]


def test_every_leaf_has_its_line():
    params, trainable = made()
    lines = table(params, trainable).splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines[2:-2]}
    assert list(rows) == list(flatten(params))
    assert rows["blocks/attn/q/kernel"] == ["2x16x24", "float32", "LoRA", "frozen", "3,072"]
    assert rows["blocks/attn/q/kernel/default/a"] == ["2x2x16", "float32", "LoRA", "trainable", "256"]
    assert rows["blocks/mlp_out/net/down"] == ["2x3x16", "float32", "Bottleneck", "trainable", "384"]
    assert rows["final_norm/scale"] == ["16", "float32", "frozen", "64"]
    assert len({len(line) for line in lines[:-1]}) == 1


def test_a_quantised_weight_has_its_own_lines_and_counts_what_it_stands_for():
    config = dataclasses.replace(TINY, width=32, ff=32, head_size=8)
    params = put(base(config), "blocks/mlp/up/kernel", quantise(base(config)["blocks"]["mlp"]["up"]["kernel"], "affine4"))
    trainable = partition(attach(params, [lora(rank=2)], KEY))[0]
    lines = table(attach(params, [lora(rank=2)], KEY), trainable).splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines[2:-2]}
    assert rows["blocks/mlp/up/kernel/words"] == ["2x4x32", "uint32", "Affine4", "frozen", "1,024"]
    assert rows["blocks/mlp/up/kernel/scale"] == ["2x1x32", "float16", "Affine4", "frozen", "128"]
    assert rows["blocks/mlp/up/kernel/default/a"] == ["2x2x32", "float32", "LoRA", "trainable", "512"]
    assert rows["blocks/mlp/gate/kernel"][2] == "LoRA"
    dense = attach(base(config), [lora(rank=2)], KEY)
    assert lines[-1].partition(" parameters")[0] == totals(dense, partition(dense)[0]).partition(" parameters")[0]


def test_the_totals_are_the_sums_of_the_lines():
    params, trainable = made()
    lines = [line.split() for line in table(params, trainable).splitlines()[2:-2]]
    nbytes = sum(int(line[-1].replace(",", "")) for line in lines)
    trained = sum(int(line[-1].replace(",", "")) for line in lines if "trainable" in line)
    assert totals(params, trainable) == (
        f"{trained // 4:,} of {nbytes // 4:,} parameters are trainable ({100 * trained / nbytes:.2f} %), "
        f"{trained / 1e6:,.1f} MB of {nbytes / 1e6:,.1f} MB"
    )


@pytest.mark.parametrize(("rank", "count"), [(16, "4,884,480"), (8, "2,442,240")])
def test_the_totals_of_smollm2_are_those_of_the_field(rank, count):
    params = jax.eval_shape(lambda base: attach(base, [lora(rank=rank)], KEY), abstract_params(SMOL))
    assert table(params, partition(params)[0]).splitlines()[-1].startswith(f"{count} of ")
