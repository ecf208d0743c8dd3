"""Planted directions are found, controls tell them from chance, and a reduction takes away what it says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax.peft.attach import attach
from peftjax.peft.changes import changes
from peftjax.peft.factored import Factors, dense, norm, spectrum
from peftjax.peft.intruders import find_intruders, overlap, reduce_intruders, same_spectrum, shrunk
from peftjax.peft.lora import LoRA, lora

ROWS, WIDTH, KEY = 40, 48, "blocks/0/attn/q/kernel"


def weight():
    """Strong directions along the first axes of the output, none along the last eight."""
    left = np.linalg.qr(np.random.default_rng(0).standard_normal((ROWS, ROWS)))[0]
    return (left * np.linspace(4, 1, ROWS)) @ np.eye(ROWS, WIDTH)


def planted(size, at=WIDTH - 1):
    """A LoRA that adds one direction of the output."""
    params = {"blocks": {"attn": {"q": {"kernel": jnp.asarray(weight()[None], jnp.float32)}}}}
    node = attach(params, [lora(rank=1, targets="q_proj")], jax.random.key(0))["blocks"]["attn"]["q"]["kernel"]
    a = np.random.default_rng(1).standard_normal(ROWS)
    new = LoRA(base=node.base, a=jnp.asarray(a[None, None] / np.linalg.norm(a), jnp.float32), b=size * jnp.eye(WIDTH)[None, at:at + 1],
               scale=node.scale, dropout=None, name="default")
    return {"blocks": {"attn": {"q": {"kernel": new}}}}


def test_a_planted_direction_is_found_and_a_known_one_is_not():
    found, none = find_intruders(planted(8.0), "default")[KEY], find_intruders(planted(8.0, at=0), "default")[KEY]
    assert found.counts[0] == 1 and none.counts[0] == 0
    assert find_intruders(planted(0.01), "default")[KEY].counts[0] == 0
    assert found.counts[2] == 10 and 0.2 < found.cosines[2] < 0.5  # any direction at random is below the threshold


def test_the_control_has_the_spectrum_and_other_directions():
    delta = Factors(np.random.default_rng(0).standard_normal((3, ROWS)), np.random.default_rng(1).standard_normal((3, WIDTH)))
    control = same_spectrum(delta, "seed")
    np.testing.assert_allclose(spectrum(control).values, spectrum(delta).values)
    assert np.abs(spectrum(control).right @ spectrum(delta).right.T).max() < 0.6
    np.testing.assert_array_equal(control.a, same_spectrum(delta, "seed").a)


@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_a_reduction_takes_the_intruders_down_and_says_the_rest_exactly(keep):
    params = planted(8.0)
    made = reduce_intruders(params, "default", keep=keep)
    delta = changes(params, "default")[KEY].read().weight
    there = overlap(np.asarray(changes(params, "default")[KEY].weight()), delta, 10)
    (which,) = there.intruders(0.5)
    wanted = dense(delta) - (1 - keep) * there.values[which] * np.outer(there.left[which], there.right[which])
    np.testing.assert_allclose(dense(changes(made.params, "default")[KEY].read().weight), wanted, atol=1e-5)
    assert made.certificate.is_exact and made.certificate.kernels[KEY].rank == 2
    assert find_intruders(made.params, "default")[KEY].counts[0] == (0 if keep == 0 else 1)
    assert not reduce_intruders(params, "default", keep=keep, rank=1).certificate.is_exact


def test_the_arm_of_the_same_norm_keeps_its_directions():
    params = planted(8.0)
    sizes = {key: error.size for key, error in reduce_intruders(params, "default").certificate.kernels.items()}
    arm = changes(shrunk(params, "default", sizes).params, "default")[KEY].read().weight
    before = changes(params, "default")[KEY].read().weight
    assert norm(arm) == pytest.approx(sizes[KEY], rel=1e-5) and sizes[KEY] < norm(before)
    np.testing.assert_allclose(dense(arm) / norm(arm), dense(before) / norm(before), atol=1e-6)


def test_without_intruders_nothing_changes():
    params = planted(8.0, at=0)
    made = reduce_intruders(params, "default")
    np.testing.assert_allclose(*(dense(changes(p, "default")[KEY].read().weight) for p in (made.params, params)), atol=1e-5)
