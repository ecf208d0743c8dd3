"""Programs for GPU and TPU equal products with the dequantised kernel in the interpreter, and lower for both without such a device.

What lowering does not show: that the vendor's compiler takes what comes out, and how fast it is.
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.mesh import AbstractDevice

from peftjax.nn.quant import pallas, quantise

KINDS = {
    "affine4": {"kind": "affine4"},
    "affine4, block 64": {"kind": "affine4", "block": 64},
    "symmetric, block 16": {"kind": "affine4", "symmetric": True, "block": 16},
    "int8": {"kind": "int8"},
    "int8, block 32": {"kind": "int8", "block": 32},
    "nf4": {"kind": "nf4"},
    "nf4, float32 constants": {"kind": "nf4", "double": False},
}
LOWERED = {"gpu": ("cuda", "triton"), "tpu": ("tpu", "tpu_custom_call")}  # platform -> JAX's name, and what is in the lowered module


def kernel(name, k, n):
    return quantise(jnp.asarray(np.random.default_rng(0).standard_normal((k, n)), jnp.float32), **KINDS[name])


def inputs(rows, k, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(1).standard_normal((rows, k)), dtype)


@pytest.mark.slow  # interprets what a device would run: ten seconds
@pytest.mark.parametrize("platform", LOWERED)
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("k", "n", "rows"), [(64, 32, 1), (192, 320, 20)])
def test_interpreted_programs_are_exact(name, platform, k, n, rows):
    node, x = kernel(name, k, n), inputs(rows, k)
    y = pallas.matmul(x, node, platform=platform, interpret=True)
    expected = np.asarray(x, np.float64) @ np.asarray(node.values(), np.float64)
    np.testing.assert_allclose(y, expected, atol=1e-6 * np.abs(expected).max())


def test_several_steps_of_a_tpu_and_columns_past_the_last_block():
    node, x = kernel("affine4", 3072, 300), inputs(9, 3072)
    assert pallas.blocks_of(9, node, "tpu") == pallas.Blocks(m=16, n=256, k=1024)
    expected = np.asarray(x, np.float64) @ np.asarray(node.values(), np.float64)
    np.testing.assert_allclose(pallas.matmul(x, node, platform="tpu", interpret=True), expected, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("platform", LOWERED)
def test_bfloat16_in_and_out(platform):
    node, x = kernel("nf4", 128, 128), inputs(4, 128, jnp.bfloat16)
    y = pallas.matmul(x, node, platform=platform, interpret=True)
    assert y.dtype == jnp.bfloat16
    expected = x.astype(jnp.float32) @ node.values()
    np.testing.assert_allclose(y.astype(jnp.float32), expected, atol=0.02 * np.abs(expected).max())


def test_a_batch_over_rows_and_kernels():
    nodes = jax.tree.map(lambda a: jnp.stack([a, a]), kernel("int8", 64, 32))
    x = jnp.stack([inputs(3, 64), 2 * inputs(3, 64)])
    y = jax.vmap(lambda x, node: pallas.matmul(x, node, platform="gpu", interpret=True))(x, nodes)
    np.testing.assert_allclose(y[1], 2 * y[0], rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("platform", LOWERED)
@pytest.mark.parametrize("name", KINDS)
def test_programs_lower_without_a_device(name, platform, dtype):
    jax_name, mark = LOWERED[platform]
    with _as_tpu() if platform == "tpu" else contextlib.nullcontext():
        traced = jax.jit(pallas.matmul, static_argnames="platform").trace(inputs(5, 192, dtype), kernel(name, 192, 256), platform=platform)
        assert mark in traced.lower(lowering_platforms=(jax_name,)).as_text()


def _as_tpu():
    device = AbstractDevice("TPU v5 lite", 1, "tpu")
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device))


def test_what_has_no_program_is_said():
    odd = kernel("int8", 64, 33)
    assert not pallas.fits(odd, "gpu") and pallas.fits(odd, "tpu")
    with pytest.raises(TypeError, match=r"no fused product on gpu for Int8 of stored shape \(64, 33\)"):
        pallas.matmul(inputs(1, 64), odd, platform="gpu")
    assert not pallas.fits(quantise(jnp.zeros((64, 64)), "float8"), "tpu")
