"""What an adapter changes, read layer by layer: factors where it says so, the same matrix either way."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny import TINY, base, moved

from peftjax.nn.quant import Scheme, quantise
from peftjax.nn.tree import get, put
from peftjax.peft.attach import attach
from peftjax.peft.changes import changes
from peftjax.peft.compose import compose
from peftjax.peft.composition import Average
from peftjax.peft.dense_delta import dense_delta
from peftjax.peft.factored import Factors, dense
from peftjax.peft.hira import hira
from peftjax.peft.ia3 import ia3
from peftjax.peft.loha import loha
from peftjax.peft.lokr import lokr
from peftjax.peft.lora import lora
from peftjax.peft.merge import merge
from peftjax.peft.miss import miss
from peftjax.peft.oft import oft
from peftjax.peft.shira import shira
from peftjax.peft.vera import vera

KEY = jax.random.key(0)
PATH = "blocks/mlp/up/kernel"  # [2, 16, 28]
THIN = {
    "lora": (lora(rank=2, alpha=3), 2), "vera": (vera(rank=3), 3), "loha": (loha(rank=2, alpha=3), 4), "miss": (miss(rank=5), 5),
    "miss mini": (miss(rank=4, form="mini", mini_rank=2), 4), "lokr": (lokr(rank=1), 4),
    "lokr of both": (lokr(rank=1, decompose_both=True, init="zero_second"), 1),
}
WHOLE = {
    "hira": hira(rank=2), "shira": shira(rank=2), "ia3": ia3(targets="up_proj", feedforward=()), "oft": oft(blocks=4),
    "dora": lora(rank=2, alpha=3, dora=True), "dense": dense_delta(), "lokr dense": lokr(rank=9), "loha of high rank": loha(rank=5),
}


def tree(method, on=None):
    on = base() if on is None else on
    return moved(attach({"blocks": {"mlp": {"up": get(on, "blocks/mlp/up")}}}, [dataclasses.replace(method, targets="up_proj")], KEY))


def check(params, on, rank=None):
    wanted = np.asarray(get(merge(params), PATH)) - np.asarray(on)
    for layer, changed in enumerate(changes(params, "default").values()):
        change = changed.read()
        assert isinstance(change.weight, Factors) == (rank is not None) and change.bias is None and changed.shape == (16, 28)
        assert rank is None or len(change.weight.a) == rank
        np.testing.assert_allclose(dense(change.weight), wanted[layer], atol=2e-6)
        assert np.abs(wanted[layer]).max() > 1e-3


@pytest.mark.parametrize("name", THIN)
def test_a_method_of_low_rank_gives_factors(name):
    method, rank = THIN[name]
    check(tree(method), get(base(), PATH), rank)


@pytest.mark.parametrize("name", WHOLE)
def test_any_other_gives_the_matrix(name):
    check(tree(WHOLE[name]), get(base(), PATH))


@pytest.mark.parametrize("method", [lora(rank=2), hira(rank=2), ia3(feedforward=())], ids=["lora", "hira", "ia3"])
def test_on_a_quantised_base_too(method):
    held = put(base(), PATH, quantise(get(base(), PATH), Scheme("int8")))
    params = tree(method, held)
    check(params, get(held, PATH).merge(), 2 if isinstance(method, lora) else None)


def test_several_nodes_of_one_adapter_are_one_change():
    params = moved(attach(base(), [lora(rank=2, targets="up_proj"), vera(rank=3, targets="up_proj")], KEY))
    alone = {"blocks": {"mlp": {"up": params["blocks"]["mlp"]["up"]}}, "shared": params["shared"]}
    check(alone, get(base(), PATH), 5)


def test_a_change_is_read_of_the_adapter_alone():
    """DoRA rescales what it stands on; beside others it is still what it does to the base."""
    methods = [lora(rank=2, dora=True, targets="up_proj"), lora(rank=2, targets="up_proj", name="above")]
    both, alone = (moved(attach(base(TINY), some, KEY)) for some in (methods, methods[:1]))
    found, wanted = (changes(params, "default")["blocks/1/mlp/up/kernel"].read().weight for params in (both, alone))
    np.testing.assert_array_equal(found, wanted)


def test_in_a_composition_too():
    methods = [lora(rank=2, targets="up_proj", name="one"), lora(rank=3, targets="up_proj", name="two")]
    plain = moved(attach(base(), methods, KEY))
    composed = compose(plain, Average("one", "two"))
    for key, changed in changes(plain, "two").items():
        np.testing.assert_array_equal(*(dense(one.read().weight) for one in (changes(composed, "two")[key], changed)))
