"""Spectra of what adapters change, and what is counted of them."""

import jax
import numpy as np
import pytest
from tiny import base, moved

from peftjax.peft.attach import attach
from peftjax.peft.lora import lora
from peftjax.peft.merge import merge
from peftjax.peft.spectrum import effective_rank, spectra, stable_rank


def test_values_are_those_of_the_dense_change():
    params = moved(attach(base(), [lora(rank=3, alpha=5, targets="q_proj")], jax.random.key(0)))
    dense = np.asarray(merge(params)["blocks"]["attn"]["q"]["kernel"] - base()["blocks"]["attn"]["q"]["kernel"])
    found = spectra(params, "default")
    for layer in range(2):
        values = found[f"blocks/{layer}/attn/q/kernel"]
        np.testing.assert_allclose(values, np.linalg.svd(dense[layer], compute_uv=False)[:3], rtol=1e-4)


def test_an_untrained_adapter_has_no_rank():
    params = attach(base(), [lora(rank=3, targets="q_proj")], jax.random.key(0))
    assert all(len(values) == 0 for values in spectra(params, "default").values())


def test_ranks_count_values_by_their_share():
    assert effective_rank(np.array([2.0, 2.0, 2.0])) == pytest.approx(3) and stable_rank(np.array([2.0, 2.0, 2.0])) == pytest.approx(3)
    assert effective_rank(np.array([5.0])) == pytest.approx(1) and stable_rank(np.array([5.0, 0.0])) == pytest.approx(1)
    assert effective_rank(np.zeros(3)) == stable_rank(np.zeros(0)) == 0
    assert effective_rank(np.array([3.0, 1.0])) == pytest.approx((3 / 4) ** -0.75 * 4**0.25) and stable_rank(np.array([2.0, 1.0])) == 1.25
