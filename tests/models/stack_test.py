"""Stacks of layers: how they are cut, and that a scanned stack is its layers one after another."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.extend.core import jaxprs_in_params
from tiny import TINY, base, train_batch

from peftjax.models.decoder import Decoder
from peftjax.models.stack import REMAT, scanned, segment_spans
from peftjax.peft.attach import attach, cut_points
from peftjax.peft.bottleneck import pfeiffer
from peftjax.peft.lora import lora
from peftjax.peft.partition import combine, partition
from peftjax.train.loss import token_losses


class Layer(nn.Module):
    """x -> tanh(x W) + shift, with a shift of its own for each layer."""

    config: int
    remat: str

    @nn.compact
    def __call__(self, x, shift):
        return jnp.tanh(nn.Dense(self.config, use_bias=False)(x)) + shift, None


class Stack(nn.Module):
    """Three layers."""

    remat: str = "none"
    unroll: bool = False

    def setup(self):
        self.layers = scanned(Layer, 4, 3, in_axes=0, remat=self.remat, unroll=self.unroll)

    def __call__(self, x, shifts):
        return self.layers(x, shifts)[0]


X, SHIFTS = jax.random.normal(jax.random.key(0), (2, 4)), jnp.arange(3.0)


@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("remat", REMAT)
def test_a_scanned_stack_is_its_layers_one_after_another(remat, unroll):
    model = Stack(remat, unroll)
    params = model.init(jax.random.key(1), X, SHIFTS)
    (kernel,) = jax.tree.leaves(params)
    assert kernel.shape == (3, 4, 4)
    expected = np.asarray(X)
    for layer in range(3):
        expected = np.tanh(expected @ np.asarray(kernel[layer])) + float(SHIFTS[layer])
    np.testing.assert_allclose(model.apply(params, X, SHIFTS), expected, rtol=1e-5, atol=1e-6)
    slope = jax.grad(lambda p: jnp.sum(model.apply(p, X, SHIFTS)))(params)
    plain = jax.grad(lambda p: jnp.sum(Stack().apply(p, X, SHIFTS)))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), slope, plain)


@pytest.mark.parametrize(("segments", "spans"), [((), ((0, 4),)), ((1, 3), ((0, 1), (1, 4))), ((2, 1, 1), ((0, 2), (2, 3), (3, 4)))])
def test_spans_follow_the_lengths(segments, spans):
    assert segment_spans(4, segments) == spans


@pytest.mark.parametrize("segments", [(1, 2), (5,), (4, 0), (-1, 5)])
def test_segments_must_add_up(segments):
    with pytest.raises(ValueError, match="do not add up to 4 layers"):
        segment_spans(4, segments)


def test_an_unknown_remat_is_refused():
    with pytest.raises(ValueError, match="remat is 'dot'; it may be none, dots, block"):
        scanned(Layer, 4, 3, in_axes=0, remat="dot")


# Numbers of layers that are no other size of the tiny base, so that a loop is known by its length.
LOWER, UPPER = 7, 4
DEEP = dataclasses.replace(TINY, layers=LOWER + UPPER)
ABOVE = range(LOWER, LOWER + UPPER)


def step_of(methods, remat="none"):
    """(loss and gradients as a function of what is trained, its arguments), the stack cut where the methods ask for it."""
    model = Decoder(DEEP, segments=(LOWER, UPPER), remat=remat)
    trainable, frozen = partition(attach(base(DEEP, (LOWER, UPPER)), methods, jax.random.key(0)))
    return jax.value_and_grad(lambda t, f: jnp.sum(token_losses(model, combine(t, f), train_batch())[0])), (trainable, frozen)


def scans(program):
    """(length, multiply-adds of matrix products in one turn) of each loop over layers."""
    for equation in program.eqns:
        if equation.primitive.name == "scan" and equation.params["length"] in (LOWER, UPPER):
            yield equation.params["length"], products(equation.params["jaxpr"].jaxpr)
        else:
            for inner in jaxprs_in_params(equation.params):
                yield from scans(inner)


def products(program):
    """Multiply-adds of all matrix products of a program."""
    total = 0
    for equation in program.eqns:
        total += sum(products(inner) for inner in jaxprs_in_params(equation.params))
        if equation.primitive.name == "dot_general":
            over = equation.params["dimension_numbers"][0][0]
            total += math.prod(equation.outvars[0].aval.shape) * math.prod(equation.invars[0].aval.shape[axis] for axis in over)
    return total


@pytest.mark.parametrize("remat", ["none", "block"])
def test_layers_below_the_lowest_adapter_are_only_run_forward(remat):
    methods = [lora(rank=2, layers=ABOVE), pfeiffer(size=3, layers=ABOVE)]
    assert cut_points(methods, DEEP.layers) == (LOWER, UPPER)
    function, arguments = step_of(methods, remat)
    found = list(scans(jax.make_jaxpr(function)(*arguments).jaxpr))
    forward = list(scans(jax.make_jaxpr(lambda *a: function.__wrapped__(*a))(*arguments).jaxpr))
    below, above = ([cost for length, cost in found if length == wanted] for wanted in (LOWER, UPPER))
    assert below == [cost for length, cost in forward if length == LOWER] and len(below) == 1
    assert len(above) == 2 and above[1] > 0.9 * above[0]
    # with an adapter below, both are run backward
    function, arguments = step_of([lora(rank=2)], remat)
    everywhere = list(scans(jax.make_jaxpr(function)(*arguments).jaxpr))
    assert sorted(length for length, _ in everywhere) == [UPPER, UPPER, LOWER, LOWER]


def test_the_compiled_program_has_one_loop_over_the_layers_below():
    methods = [lora(rank=2, layers=ABOVE)]
    function, arguments = step_of(methods)
    lengths = re.findall(r'known_trip_count\\?":\{\\?"n\\?":\\?"(\d+)', jax.jit(function).lower(*arguments).compile().as_text())
    assert lengths.count(str(LOWER)) == 1 and lengths.count(str(UPPER)) == 2
