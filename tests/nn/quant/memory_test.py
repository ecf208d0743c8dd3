"""A step of QLoRA holds one weight dense at a time: seen in the memory and in the program that the compiler makes of it.

In the order that saves memory (`MEMORY`) one matrix is dense at a time; in the order that XLA's CPU backend takes by itself it runs ahead,
and dequantises the matrices of a layer before it needs them.
"""

import functools
import re

import jax
import jax.numpy as jnp
import pytest

from peftjax.models.config import DecoderConfig
from peftjax.models.decoder import Decoder, abstract_params
from peftjax.nn.quant import native, quantise
from peftjax.nn.tree import flatten, put, walk
from peftjax.peft.attach import attach
from peftjax.peft.lora import lora
from peftjax.peft.partition import combine, partition, size

CONFIG = DecoderConfig(vocab_size=64, width=256, layers=6, heads=4, kv_heads=2, head_size=64, ff=1024, tied=True)
MEMORY = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
LAYER = size(abstract_params(CONFIG)["blocks"])[1] // CONFIG.layers  # bytes of one dense layer, 3.9 MB
LARGEST = 4 * CONFIG.width * CONFIG.ff  # bytes of one dense matrix


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """The form of products that dequantises: few rows would be multiplied without."""
    monkeypatch.setenv(native.SWITCH, "0")


def quantised(params, kind):
    for path, value in list(walk(params)):
        if path.endswith("/kernel"):
            params = put(params, path, quantise(value, kind))
    return params


@functools.cache
def compiled(kind, remat, unroll=False, order="memory"):
    """The gradient of a loss of 8 tokens, compiled from shapes alone."""
    ids = jnp.ones((1, 8), jnp.int32)

    def loss(trainable, frozen):
        return jnp.sum(jnp.sin(Decoder(CONFIG, remat=remat, unroll=unroll).apply({"params": combine(trainable, frozen)}, ids)))

    base = jax.eval_shape(lambda p: quantised(p, kind), abstract_params(CONFIG))
    halves = partition(jax.eval_shape(lambda p: attach(p, [lora(rank=4)], jax.random.key(0)), base))
    return jax.jit(jax.grad(loss)).lower(*halves).compile(compiler_options=MEMORY if order == "memory" else {})


def temporary(*args, **options) -> int:
    return compiled(*args, **options).memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("remat", ["none", "dots", "block"])
def test_one_matrix_is_dense_at_a_time_and_no_stack_ever(remat):
    """There and back, within half a layer; whatever is kept of the products, and only one matrix of it dense where nothing is."""
    assert temporary("nf4", remat) < (LARGEST * 1.7 if remat == "block" else LAYER)
    stacks = {leaf.shape for path, leaf in flatten(abstract_params(CONFIG)["blocks"]).items() if path.endswith("/kernel")}
    stacks |= {(shape[0], shape[2], shape[1]) for shape in stacks}
    made = {tuple(map(int, found.split(","))) for found in re.findall(r"(?:f32|bf16)\[([\d,]+)\]", compiled("nf4", remat).as_text())}
    assert not made & stacks
    assert made & {shape[1:] for shape in stacks}  # the search finds what there is


def test_layers_written_out_are_dense_one_at_a_time_too():
    """Nothing dense of the forward pass is kept for the backward pass, which finds the same weights in one program."""
    assert temporary("int8", "none", unroll=True) < 1.5 * LAYER


def test_in_the_order_that_xla_takes_by_itself_a_layer_there_and_back_is_dense():
    assert temporary("affine4", "block", order="fast") < 2 * LAYER
