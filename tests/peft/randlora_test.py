"""RandLoRA: how its bases are drawn and paired, and that the update has full rank."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import base, moved

from peftjax.nn.shared import fill
from peftjax.nn.tree import get
from peftjax.peft.attach import attach
from peftjax.peft.randlora import randlora

KEY = jax.random.key(0)


@pytest.mark.parametrize("kernel", ["attn/v", "mlp/up"])  # fewer outputs than inputs, and more
def test_the_delta_is_the_sum_over_bases_and_has_full_rank(kernel):
    params = moved(attach(base(), [randlora(rank=5, alpha=10)], KEY))
    node = jax.tree.map(np.asarray, fill(get(params, f"blocks/{kernel}/kernel"), params["shared"]))
    (rows, width), layer = node.shape[1:], 1
    short, long, count = min(rows, width), max(rows, width), -(-min(rows, width) // 5)
    thin = [node.a[r, :short] * node.gains[layer, n] * node.weights[layer, r, n] for r in range(5) for n in range(count)]
    whole = 2.0 * sum(np.outer(one, node.b[n, r, :long]) for one, (n, r) in zip(thin, np.ndindex(count, 5), strict=True))
    np.testing.assert_allclose(node.delta()[layer], whole if rows <= width else whole.T, rtol=1e-4, atol=1e-4 * np.abs(whole).max())
    assert np.linalg.matrix_rank(whole) == short


@pytest.mark.parametrize("bases", ["dense", "sparse", "very_sparse"])
def test_bases_have_unit_deviation_and_depend_on_the_seed_alone(bases):
    wide = {"head": {"kernel": jnp.zeros((64, 80))}}
    one, other = (attach(wide, [randlora(rank=16, bases=bases, targets="head")], jax.random.key(seed)) for seed in (0, 1))
    for path, shape in (("a", (16, 64)), ("b", (4, 16, 80))):
        value = get(one, f"shared/default/randlora/{path}").value
        assert value.shape == shape and abs(np.std(value, ddof=1) - 1) < 1e-5
        np.testing.assert_array_equal(value, get(other, f"shared/default/randlora/{path}").value)
        nonzero = {"dense": 1.0, "sparse": 1 / 3, "very_sparse": 1 / 8}[bases]
        assert abs(np.mean(value != 0) - nonzero) < 5 * (nonzero * (1 - nonzero) / value.size) ** 0.5 + 1e-9
        assert bases == "dense" or len(np.unique(np.abs(value))) == 2


def test_gains_start_at_one_over_the_longer_of_their_axes_and_weights_at_zero():
    node = get(attach(base(), [randlora(rank=5)], KEY), "blocks/attn/v/kernel")
    assert node.gains.shape == (2, 3, 12) and np.allclose(node.gains, 1 / 12) and not node.weights.any() and (node.scale == 128).all()
