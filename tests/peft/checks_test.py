"""A trainable leaf that the model does not read is found, inside scanned and recomputed layers too."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from tiny import TINY, base, tokens

from peftjax.models.decoder import Decoder
from peftjax.nn.tree import get, put
from peftjax.peft.attach import attach
from peftjax.peft.bottleneck import houlsby
from peftjax.peft.checks import require_read, unread
from peftjax.peft.lora import lora
from peftjax.peft.partition import combine, partition
from peftjax.peft.parts import Trained, full

KEY = jax.random.key(0)


def looked_at(params, config=TINY, **options):
    """Paths that the logits of a decoder do not depend on, of the trainables of `params`."""
    trainable, frozen = partition(params)
    model = Decoder(config, **options)
    return unread(lambda t, f, ids: model.apply({"params": combine(t, f)}, ids), trainable, frozen, tokens())


@pytest.mark.parametrize("options", [{}, {"unroll": True}, {"remat": "block"}, {"remat": "dots"}])
def test_what_is_attached_properly_is_read(options):
    assert looked_at(attach(base(), [lora(rank=2, targets=".*"), houlsby(size=3)], KEY), **options) == []
    assert looked_at(attach(base(), [full()], KEY), **options) == []


@pytest.mark.parametrize("options", [{}, {"unroll": True}, {"remat": "block"}])
def test_leaves_that_nothing_reads_are_found_inside_the_stack_and_outside(options):
    params = attach(base(), [lora(rank=2, targets="q_proj")], KEY)
    params = put(params, "blocks/mlp/gate/extra", Trained(None, jnp.ones((2, 3)), "tone"))
    params = put(params, "final_norm/bias", Trained(None, jnp.ones(16), "tone"))
    entry = get(attach(base(), [houlsby(size=3)], KEY), "blocks/mlp_out/default")
    params = put(params, "blocks/mlp_outt/tone", dataclasses.replace(entry, name="tone"))
    fields = ("down", "down_bias", "up", "up_bias")
    want = [
        "blocks/mlp/gate/extra/tone/value",
        *(f"blocks/mlp_outt/tone/{f}" for f in fields),
        "final_norm/bias/tone/value",
    ]
    assert sorted(looked_at(params, **options)) == sorted(want)


def test_depending_on_the_shape_alone_is_not_reading():
    params = {"a": jnp.ones(3), "b": {"c": jnp.ones(3)}}
    assert unread(lambda p: jnp.sum(p["a"]) * p["b"]["c"].shape[0], params) == ["b/c"]
    assert unread(jax.jit(lambda p: jnp.sum(p["a"]) + 0 * p["b"]["c"][0]), params) == []


def test_nothing_is_computed():
    abstract = jax.eval_shape(lambda: {"a": jnp.ones(3), "b": jnp.ones(2)})
    assert unread(lambda p, x: p["a"] * x, abstract, jax.ShapeDtypeStruct((3,), jnp.float32)) == ["b"]


def test_the_error_names_every_leaf():
    params = {"a": jnp.ones(3), "b": jnp.ones(3), "c": jnp.ones(3)}
    with pytest.raises(ValueError, match="trainable but read by nothing in the model: b, c"):
        require_read(lambda p: p["a"], params)
    require_read(lambda p: p["a"] + p["b"] * p["c"], params)
