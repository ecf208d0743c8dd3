"""The accelerators' kernels: where they fit, and splash attention's own steps against blocks (cuDNN's cannot run here)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax.models import attention, attention_fused
from peftjax.models.attention_blocks import attend_blocks
from peftjax.models.sight import Sight
from peftjax.nn.context import KeysValues


def sight(length, **fields):
    grid = jnp.broadcast_to(jnp.arange(length), (1, length))
    return Sight(jnp.ones((1, length), jnp.int32), grid, **fields)


def test_where_each_fits():
    q = jnp.zeros((1, 128, 4, 64), jnp.bfloat16)
    assert attention_fused.cudnn_fits(q, sight(128), None)
    assert not attention_fused.cudnn_fits(q.astype(jnp.float32), sight(128), None)
    assert not attention_fused.cudnn_fits(q, sight(128), 50.0)
    assert not attention_fused.cudnn_fits(q, sight(128, until=jnp.full((1, 128), 128)), None)
    assert attention_fused.splash_fits(q, sight(128, window=16))
    assert not attention_fused.splash_fits(q, sight(128, window=jnp.int32(16)))
    assert not attention_fused.splash_fits(q[:, :100], sight(100))


def test_virtual_tokens_and_gates():
    q, columns = jnp.zeros((1, 128, 4, 64), jnp.bfloat16), jnp.zeros((3, 4, 64), jnp.bfloat16)
    gate = jnp.zeros((1, 128, 3))
    assert attention_fused.cudnn_fits(q, sight(128, first=3), None, KeysValues(columns, columns))
    assert not attention_fused.cudnn_fits(q, sight(128), None, KeysValues(columns, columns, value_gate=gate))
    assert not attention_fused.splash_fits(q, sight(128, first=3))


@pytest.mark.parametrize("rows", [(), (2,)])
def test_keys_before_the_sequence_are_further_columns(rows):
    """As cuDNN would be called, in the form of the same call that any backend computes."""
    keys = jax.random.split(jax.random.key(1), 5)
    q = jax.random.normal(keys[0], (2, 8, 4, 6))
    k, v = (jax.random.normal(key, (2, 8, 2, 6)) for key in keys[1:3])
    of_rows = jnp.array([[True, True, False], [True, False, False]])
    before = KeysValues(*(jax.random.normal(key, (*rows, 3, 2, 6)) for key in keys[3:]), of_rows)
    seen = sight(8, window=3)
    seen = jax.tree.map(lambda x: jnp.broadcast_to(x, (2, 8)) if jnp.ndim(x) else x, seen)
    got = attention_fused.attend_cudnn(q, k, v, seen, 0.4, before, implementation="xla")
    np.testing.assert_allclose(got, attention.attend(q, k, v, seen, scale=0.4, before=before), atol=2e-6)


@pytest.mark.parametrize("backend", ["gpu", "tpu"])
def test_what_does_not_fit_goes_in_blocks(backend, monkeypatch):
    q = jax.random.normal(jax.random.key(0), (1, 8, 2, 4))
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    np.testing.assert_array_equal(attention.attend(q, q, q, sight(8)), attend_blocks(q, q, q, sight(8), scale=0.5))


@pytest.mark.slow  # splash attention step by step, without its hardware: half a minute
@pytest.mark.parametrize("window", [None, 32])
def test_splash_is_blocks(window):
    keys = jax.random.split(jax.random.key(0), 3)
    q = jax.random.normal(keys[0], (1, 128, 2, 128))
    k, v = (jax.random.normal(key, (1, 128, 1, 128)) for key in keys[1:])
    seen = sight(128, window=window)
    seen = seen.replace(segments=jnp.where(jnp.arange(128) < 60, 1, 2)[None])
    want = attend_blocks(q, k, v, seen, scale=0.1)
    np.testing.assert_allclose(attention_fused.attend_splash(q, k, v, seen, 0.1, interpret=True), want, atol=2e-5)
