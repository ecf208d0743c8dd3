"""Fused products on the CPU equal products with the dequantised kernel, for all kinds, blocks and rows, wherever they are called from."""

import ctypes
import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftjax.nn.quant import Int8, native, quantise

if native.available():  # these need llvmlite
    import llvmlite.binding as llvm

    from peftjax.nn.quant.native_ffi import VERSION, interface_version, target, write_handler
    from peftjax.nn.quant.native_llvm import compile_text, host, machine
    from peftjax.nn.quant.native_loops import LEAVES, SCRATCH, Loop, write_loop

pytestmark = pytest.mark.skipif(not native.available(), reason="needs a CPU with AVX2 or NEON")

KINDS = {
    "affine4": {"kind": "affine4"},
    "affine4, block 8": {"kind": "affine4", "block": 8},
    "affine4, block 192": {"kind": "affine4", "block": 192},
    "symmetric": {"kind": "affine4", "symmetric": True},
    "int8": {"kind": "int8"},
    "int8, block 32": {"kind": "int8", "block": 32},
    "nf4": {"kind": "nf4"},
    "nf4, float32 constants": {"kind": "nf4", "double": False, "block": 32},
    "bfloat16": None,
    "float16": None,
}


def kernel(name, k, n, seed=0):
    weight = jnp.asarray(np.random.default_rng(seed).standard_normal((k, n)), jnp.float32)
    return quantise(weight, **KINDS[name]) if KINDS[name] else weight.astype(name)


def values(node):
    return np.asarray(node.values() if hasattr(node, "values") else node, np.float64)


def inputs(*shape, seed=1):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def assert_product(y, x, node):
    expected = np.asarray(x, np.float64) @ values(node)
    np.testing.assert_allclose(y, expected, atol=1e-6 * np.abs(expected).max())


@pytest.mark.slow  # compiles loops for every kind: fifteen seconds
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("k", "n", "rows"), [(192, 64, 1), (192, 144, 3), (1152, 333, 8)])  # past a panel; no whole tiles
def test_every_kind_is_exact(name, k, n, rows):
    node, x = kernel(name, k, n), inputs(rows, k)
    assert native.fits(node)
    assert_product(native.matvec(x, node), x, node)


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 40), st.integers(64, 1200), st.sampled_from([1, 5, 21]), st.integers(0, 99))
def test_any_shape(groups, n, rows, seed):
    rng = np.random.default_rng(seed)
    q, scale = rng.integers(-127, 128, (8 * groups, n), np.int8), rng.standard_normal((groups, n)).astype(np.float16)
    x, dense = rng.standard_normal((rows, 8 * groups)).astype(np.float32), q * np.repeat(scale.astype(np.float64), 8, axis=0)
    y = native.matvec(jnp.asarray(x), Int8(jnp.asarray(q), jnp.asarray(scale)))
    np.testing.assert_allclose(y, x @ dense, atol=1e-6 * np.abs(x @ dense).max())


@pytest.mark.parametrize("k", [1, 7, 36])
def test_int8_has_no_words_to_fill(k):
    node, x = kernel("int8", k, 70), inputs(2, k)
    assert_product(native.matvec(x, node), x, node)


def test_codes_of_every_size_in_every_place_of_a_word():
    q = np.arange(8 * 128) // 8 % 16
    node = quantise(jnp.asarray(np.broadcast_to(q.reshape(128, 8).T, (8, 128)), jnp.float32), "affine4", block=8)
    np.testing.assert_allclose(native.matvec(jnp.eye(8), node), node.values(), rtol=1e-6)


@pytest.mark.parametrize("name", ["affine4", "nf4", "int8", "bfloat16"])
def test_under_jit_and_scan_over_layers(name):
    nodes = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(kernel(name, 192, 192, seed) for seed in range(3)))

    def layer(x, node):
        y = native.matvec(x, node)
        return y / 16, y

    ys = jax.jit(lambda x: jax.lax.scan(layer, x, nodes)[1])(inputs(2, 192))
    x = np.asarray(inputs(2, 192))
    for i in range(3):
        node = jax.tree.map(lambda leaf: leaf[i], nodes)  # noqa: B023
        assert_product(ys[i], x, node)
        x = np.asarray(ys[i]) / 16


def test_a_batch_over_rows_is_more_rows():
    node, x = kernel("affine4", 192, 192), inputs(3, 2, 192)
    batched = jax.vmap(native.matvec, in_axes=(0, None))
    assert str(jax.make_jaxpr(batched)(x, node)).count("ffi_call[") == 1
    np.testing.assert_array_equal(batched(x, node), native.matvec(x.reshape(6, 192), node).reshape(3, 2, 192))


def test_a_batch_over_kernels_with_and_without_their_own_rows():
    one, two = kernel("nf4", 192, 192, 0), kernel("nf4", 192, 192, 5)
    both = jax.tree.map(lambda a, b: jnp.stack([a, b]), one, two)
    x = inputs(2, 3, 192)
    for i, y in enumerate(jax.vmap(native.matvec)(x, both)):
        assert_product(y, x[i], (one, two)[i])
    for i, y in enumerate(jax.vmap(native.matvec, in_axes=(None, 0))(x[0], both)):
        assert_product(y, x[0], (one, two)[i])


def test_rows_do_not_depend_on_each_other_nor_on_threads():
    node, x = kernel("affine4", 576, 4096), inputs(8, 576)
    first = native.matvec(x, node)
    for _ in range(20):
        np.testing.assert_array_equal(native.matvec(x, node), first)


def test_result_has_the_dtype_of_x():
    node = kernel("affine4", 192, 64)
    assert native.matvec(inputs(1, 192).astype(jnp.bfloat16), node).dtype == jnp.bfloat16
    assert native.matvec(jnp.zeros((0, 192)), node).shape == (0, 64)


def test_what_has_no_loop_is_said():
    narrow = kernel("affine4", 64, 31)
    assert not native.fits(narrow)
    with pytest.raises(TypeError, match=r"no fused product for Affine4 of shape \(64, 31\)"):
        native.matvec(inputs(1, 64), narrow)
    node = kernel("int8", 64, 64)
    assert not native.fits(jax.tree.map(lambda leaf: leaf[None], node))
    assert not native.fits(Int8(node.q, node.scale.astype(jnp.bfloat16)))
    assert not native.fits(jnp.zeros((64, 64)))
    assert not native.fits(quantise(jnp.zeros((64, 64)), "float8"))


def test_a_loop_has_one_name_and_is_compiled_once():
    loop = Loop("int8", 1, 8, scale="float32")
    assert target(loop, 2) == target(Loop("int8", 1, 8, scale="float32"), 2) == loop.name
    assert len({loop.name, Loop("int8", 1, 8).name, Loop("int8", 2, 8).name, Loop("int8", 1, 8, block=8).name}) == 4


@pytest.mark.parametrize("name", ["affine4", "nf4", "int8, block 32", "bfloat16"])
def test_narrower_processors_of_the_same_family(name):
    wide = host()
    if not wide.triple.startswith("x86_64"):
        pytest.skip("AVX2 is of x86-64")
    features = {feature: there and "avx512" not in feature for feature, there in llvm.get_host_cpu_features().items()}
    narrow = machine(features, wide.triple, "haswell")
    assert narrow.lanes == 8
    node, x = kernel(name, 192, 128), np.asarray(inputs(3, 192))
    options, leaves = native._call_of(node)
    engine = compile_text(write_loop(Loop(rows=3, **options), narrow), narrow)
    call = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * (3 + LEAVES), *[ctypes.c_int64] * 4)(engine.get_function_address("loop"))
    y, scratch, held = np.zeros((3, 128), np.float32), np.zeros(SCRATCH, np.float32), [np.asarray(leaf) for leaf in leaves]
    pointers = [leaf.ctypes.data for leaf in held] + [None] * (LEAVES - len(held))
    call(y.ctypes.data, x.ctypes.data, *pointers, scratch.ctypes.data, 192, 128, 0, 128)
    assert_product(y, x, node)


@pytest.mark.parametrize("kind", ["affine4", "nf4", "int8", "bfloat16", "float16"])
def test_assembly_for_arm_is_valid(kind):
    arm = machine({"neon": True}, "aarch64-unknown-linux-gnu", "generic")
    loop = Loop(kind, 3, 32)
    llvm.parse_assembly(write_loop(loop, arm) + write_handler(loop, LEAVES)).verify()


def test_processors_without_the_instructions_are_left_alone():
    assert machine({"sse2": True}, "x86_64-unknown-linux-gnu", "nocona") is None
    assert machine({}, "riscv64-unknown-linux-gnu", "generic") is None


def test_the_interface_is_the_one_written_for():
    major, minor = interface_version()
    assert major == VERSION[0] and minor >= VERSION[1]


def test_plain_form_where_it_is_asked_for(monkeypatch):
    monkeypatch.setenv(native.SWITCH, "0")
    assert not native.available()
    monkeypatch.setenv(native.SWITCH, "1")
    assert native.available()


def test_one_warning_says_why_the_loops_are_off(monkeypatch):
    monkeypatch.setattr(native, "_obstacle", lambda: "llvmlite is not installed")
    monkeypatch.setattr(native, "_warn_once", functools.cache(native._warn_once.__wrapped__))
    with pytest.warns(UserWarning, match="llvmlite is not installed") as seen:
        assert not native.available()
        assert not native.available()
    assert len(seen) == 1


def test_the_compiler_is_loaded_when_it_is_needed():
    code = "import sys, peftjax.nn.quant, peftjax.nn.quant.native; sys.exit('llvmlite' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
