"""Probes measure what a slow loop over tokens would, in every layer, and change no product."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TINY, base, noise, train_batch

from peftjax.models.decoder import Decoder
from peftjax.nn.kernels import dot
from peftjax.nn.quant import quantise
from peftjax.nn.tree import get
from peftjax.peft.attach import adapters, attach, detach
from peftjax.peft.lora import lora
from peftjax.peft.probe import Statistics, measure, probe
from peftjax.train.loss import token_losses

PATHS = ("blocks/a/kernel", "blocks/b/kernel")


def values(*shape):
    return noise(str(shape), jax.ShapeDtypeStruct(shape, jnp.float32))


def stack():
    return {"blocks": {"a": {"kernel": values(3, 4, 6)}, "b": {"kernel": values(3, 6, 4) / 4}}, "head": {"kernel": values(4, 5)}}


def loss(params, x, weights):
    """Three layers, scanned and recomputed; a token's loss is its own."""

    @jax.checkpoint
    def layer(h, blocks):
        return h + dot(jnp.tanh(dot(h, blocks["a"]["kernel"])), blocks["b"]["kernel"]), h

    h, inputs = jax.lax.scan(layer, x, params["blocks"])
    return jnp.sum(jnp.square(dot(h, params["head"]["kernel"])) * jnp.broadcast_to(weights[:, None], (7, 5))), inputs


def test_statistics_are_sums_over_the_tokens_that_the_loss_reads():
    x, weights = values(7, 4), jnp.array([1.0, 1, 0, 1, 0, 1, 1])
    found = measure(lambda params, batch: loss(params, *batch)[0], stack(), [(x, weights), (x + 1, weights)], ".*", ("inputs", "gradient"))
    assert set(found) == {*PATHS, "head/kernel"}
    inputs = [np.asarray(loss(stack(), start, weights)[1])[:, np.asarray(weights) > 0] for start in (x, x + 1)]
    inputs = np.concatenate(inputs, axis=1)
    a = found[PATHS[0]]
    np.testing.assert_allclose(a.second, np.einsum("lti,ltj->lij", inputs, inputs), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(a.total, inputs.sum(1), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(a.count, [10, 10, 10])
    np.testing.assert_allclose(a.covariance()[1], np.cov(inputs[1].T, bias=True), rtol=1e-4, atol=1e-4)
    slopes = [jax.grad(lambda params, s=start: loss(params, s, weights)[0])(stack()) for start in (x, x + 1)]
    for path, statistics in found.items():
        np.testing.assert_allclose(statistics.gradient, sum(get(slope, path) for slope in slopes), rtol=1e-4, atol=1e-4)


def test_probes_change_no_product_and_are_detached_like_adapters():
    probed = probe(attach(stack(), [lora(rank=2, targets="blocks/a")], jax.random.key(0)), "blocks/.*", "inputs")
    assert adapters(probed) == ["default", "probe"] and get(probed, PATHS[0]).base.name == "default"
    x, weights = values(7, 4), jnp.ones(7)
    np.testing.assert_array_equal(loss(probed, x, weights)[0], loss(stack(), x, weights)[0])
    assert jax.tree.structure(detach(probed)) == jax.tree.structure(stack())
    with pytest.raises(TypeError, match="a probe measures and is no part of a weight"):
        get(probed, PATHS[0]).merge()


def test_a_quantised_weight_has_statistics_too_and_groups_change_nothing():
    held = {**stack(), "blocks": {"a": {"kernel": quantise(values(3, 4, 6), "int8")}, "b": stack()["blocks"]["b"]}}
    batches = [(values(7, 4), jnp.ones(7))]
    run = functools.partial(measure, lambda params, batch: loss(params, *batch)[0], batches=batches, targets="blocks/.*", kinds="gradient")
    dense = {**held, "blocks": {"a": {"kernel": held["blocks"]["a"]["kernel"].merge()}, "b": stack()["blocks"]["b"]}}
    at_once, apart, plain = run(params=held), run(params=held, at_once=1), run(params=dense)
    for path in PATHS:
        assert at_once[path].second is None and at_once[path].count is None
        np.testing.assert_allclose(at_once[path].gradient, apart[path].gradient, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(at_once[path].gradient, plain[path].gradient, rtol=1e-4, atol=1e-4)


def test_padding_of_a_real_model_is_not_counted():
    batch = train_batch()
    batch = batch._replace(segments=batch.segments.at[1, 3:].set(0), weights=batch.weights.at[1, 3:].set(0))
    found = measure(lambda params, batch: jnp.sum(token_losses(Decoder(TINY), params, batch)[0] * batch.weights), base(), [batch], "q_proj")
    np.testing.assert_array_equal(found["blocks/attn/q/kernel"].count, [13, 13])
    assert found["blocks/attn/q/kernel"].mean_square().shape == (2, 16, 16)


def test_what_cannot_be_measured_is_named():
    with pytest.raises(ValueError, match=r"no statistic is called 'gradients' \(did you mean 'gradient'\?\); there are inputs, gradient"):
        probe(stack(), ".*", "gradients")
    with pytest.raises(ValueError, match="there is no batch"):
        measure(lambda *_: 0.0, stack(), [], ".*")
    assert Statistics(jnp.ones((2, 2)), jnp.ones(2), jnp.float32(0), None).mean_square().sum() == 4
