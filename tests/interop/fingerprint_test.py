"""The fingerprint sees every bit, and nothing but values, shapes, dtypes and paths."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from peftjax.interop.fingerprint import fingerprint


def tree():
    rng = np.random.default_rng(0)
    return {"b": {"w": rng.normal(size=(4, 6)).astype(np.float32)}, "a": np.arange(5, dtype=np.int32), "s": np.float32(2)}


def test_the_formula():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    digest = hashlib.sha256(array.tobytes()).hexdigest()
    assert fingerprint({"a": {"w": array}}) == hashlib.sha256(f"a/w 2,3 float32 {digest}\n".encode()).hexdigest()


def test_it_does_not_depend_on_order_device_layout_or_threads():
    expected = fingerprint(tree())
    assert fingerprint(dict(reversed(tree().items()))) == expected
    assert fingerprint(jax.tree.map(jnp.asarray, tree())) == expected
    assert fingerprint(tree(), threads=1) == expected
    turned = tree()
    turned["b"]["w"] = np.asfortranarray(turned["b"]["w"])
    assert fingerprint(turned) == expected


@given(st.integers(0, 4 * 6 * 32 - 1))
def test_any_flipped_bit_changes_it(bit):
    changed = tree()
    flat = changed["b"]["w"].reshape(-1).view(np.uint8)
    flat[bit // 8] ^= 1 << (bit % 8)
    assert fingerprint(changed) != fingerprint(tree())


def test_path_shape_and_dtype_count():
    array = np.zeros((2, 3), np.float32)
    variants = [
        {"a": array},
        {"b": array},
        {"a": array.reshape(3, 2)},
        {"a": array.view(np.int32)},
        {"a": array.astype(jnp.bfloat16)},
    ]
    assert len({fingerprint(variant) for variant in variants}) == len(variants)
