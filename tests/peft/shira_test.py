"""SHiRA: which entries are trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax.peft.attach import attach
from peftjax.peft.shira import shira

W = jnp.asarray(np.random.default_rng(0).standard_normal((2, 12, 10)), jnp.float32)


def entries(method, seed: int = 0) -> np.ndarray:
    """Positions [L, n] in the kernel."""
    node = attach({"blocks": {"attn": {"q": {"kernel": W}}}}, [method], jax.random.key(seed))["blocks"]["attn"]["q"]["kernel"]
    assert node.rows.dtype == node.columns.dtype == jnp.int32 and node.rows.max() < 12 and node.columns.max() < 10
    return np.asarray(node.rows * 10 + node.columns)


@pytest.mark.parametrize("mask", ["random", "magnitude"])
def test_as_many_as_a_lora_has_numbers_and_none_twice(mask):
    found = entries(shira(rank=2, mask=mask))
    assert found.shape == (2, 44) and all(len(set(layer)) == 44 for layer in found.tolist())
    assert (np.diff(found, axis=1) > 0).all()


def test_a_random_mask_is_a_function_of_its_seed_and_of_the_layer():
    found = entries(shira(rank=2))
    np.testing.assert_array_equal(entries(shira(rank=2), seed=1), found)  # whatever else is drawn
    assert (entries(shira(rank=2, seed=1)) != found).any() and (found[0] != found[1]).any()


def test_a_random_mask_favours_no_entry():
    found = np.concatenate([entries(shira(rank=2, seed=seed)).reshape(-1) for seed in range(60)])
    chance, draws = 44 / 120, 2 * 60
    deviation = (draws * chance * (1 - chance)) ** 0.5
    assert np.abs(np.bincount(found, minlength=120) - draws * chance).max() < 5 * deviation


def test_by_magnitude_it_is_the_largest():
    for layer, weight in zip(entries(shira(rank=2, mask="magnitude")), np.abs(W).reshape(2, -1), strict=True):
        assert weight[layer].min() > np.delete(weight, layer).max()
