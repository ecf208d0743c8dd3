"""Layers whose adapters are off compute as the base; which ones may change without compiling again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TINY, base, equal_trees, logits, moved, run, tokens

from peftjax.models.decoder import Decoder, cut
from peftjax.nn.tree import get
from peftjax.peft.across_layers import across_layers
from peftjax.peft.attach import activate, attach
from peftjax.peft.bottleneck import houlsby
from peftjax.peft.compacter import compacter
from peftjax.peft.drop import drop_layers
from peftjax.peft.hra import hra
from peftjax.peft.ia3 import ia3
from peftjax.peft.invertible import invertible
from peftjax.peft.lora import lora
from peftjax.peft.oft import oft
from peftjax.peft.parts import full, norm_only
from peftjax.peft.reft import loreft
from peftjax.peft.road import road

KEY = jax.random.key(0)
EVERYTHING = [
    lora(rank=2, lora_bias=True, name="a"), houlsby(size=3, norm="both", name="b"), ia3(name="c"),
    road(group=4, targets="up_proj", name="d"), oft(block_size=4, targets="o_proj", coft=True, name="e"), compacter(size=4, name="f"),
    loreft(name="g"), norm_only(layers=[0, 1], name="h"), lora(rank=2, dora=True, targets="q_proj", name="i"),
    hra(rank=2, targets="v_proj", name="j"),
]  # fmt: skip


def test_all_layers_off_is_the_base_and_none_off_is_the_whole():
    params = moved(attach(base(), EVERYTHING, KEY))
    assert np.abs(logits(params) - logits(base())).max() > 0.1
    np.testing.assert_allclose(logits(drop_layers(params, [0, 1])), logits(base()), rtol=1e-4, atol=1e-5)
    equal_trees(drop_layers(params, []), params)


def test_one_layer_off_is_a_tree_that_was_attached_to_the_other():
    params = moved(attach(base(), [lora(rank=2), houlsby(size=3)], KEY))
    segments = Decoder(TINY, segments=(1, 1))
    upper = attach(cut(base(), TINY, (1, 1)), [lora(rank=2, layers=[1]), houlsby(size=3, layers=[1])], KEY)
    for path in ("attn/q/kernel", "mlp_out/default"):
        whole, fresh = get(params, f"blocks/{path}"), get(upper, f"blocks_1_2/{path}")
        assert jax.tree.structure(whole) == jax.tree.structure(fresh)
    upper["blocks_1_2"] = jax.tree.map(lambda leaf: leaf[1:], params["blocks"])
    np.testing.assert_allclose(logits(drop_layers(params, [0])), run(upper, tokens(), segments), rtol=1e-4, atol=1e-5)


def test_which_layers_may_be_traced():
    params = moved(attach(base(), [lora(rank=2), houlsby(size=3)], KEY))
    model = Decoder(TINY)
    compiled = jax.jit(lambda params, off: model.apply({"params": drop_layers(params, off)}, tokens()))
    for off in ([True, False], [False, True], [True, True]):
        want = logits(drop_layers(params, np.flatnonzero(off)))
        np.testing.assert_allclose(compiled(params, jnp.asarray(off)), want, rtol=1e-4, atol=1e-5)
    assert compiled._cache_size() == 1


def test_one_adapter_may_be_off_alone():
    params = moved(attach(base(), [lora(rank=2, name="tone"), lora(rank=2, targets="q_proj", name="task")], KEY))
    np.testing.assert_allclose(
        logits(drop_layers(params, [0, 1], names=["task"])), logits(activate(params, ["tone"])), rtol=1e-4, atol=1e-5
    )


def test_what_lies_outside_the_stack_stays():
    params = moved(attach(base(), [invertible(), full(targets="lm_head", name="head")], KEY))
    equal_trees(drop_layers(params, [0, 1]), params)


def test_values_that_all_layers_share_cannot_be_off_in_one():
    shared = moved(attach(base(), [across_layers(lora(rank=2))], KEY))
    np.testing.assert_allclose(logits(drop_layers(shared, [0, 1])), logits(base()), rtol=1e-4, atol=1e-5)  # its scales are not shared
    with pytest.raises(TypeError, match="blocks/attn/k/kernel: all layers share scale of this IA3: one layer alone cannot be off"):
        drop_layers(attach(base(), [across_layers(ia3())], KEY), [0])


@pytest.mark.parametrize(
    ("layers", "names", "message"),
    [
        ([2], None, r"layers \[2\] are not among layers 0 to 1"),
        (jnp.asarray([True]), None, r"drop_layers wants bool \[2\], one for each layer; found \[1\]"),
        ([0], ["tone"], "no adapter is called tone; the tree holds default"),
    ],
)
def test_what_is_not_there_is_refused(layers, names, message):
    with pytest.raises(ValueError, match=message):
        drop_layers(attach(base(), [lora(rank=2)], KEY), layers, names)
