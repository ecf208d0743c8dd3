"""Rotary positions are relative, in every scaling; scalings are what their definitions say. Against transformers: golden_test.py."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax.models import rope
from peftjax.models.rope import rotary_angles, rotate

SIZE, BASE = 16, 500.0
PLAIN = BASE ** (-np.arange(0, SIZE, 2, dtype=np.float32) / SIZE)
ONES = (1.0,) * (SIZE // 2)
SCALINGS = [
    rope.Linear(4.0),
    rope.Llama3(8.0, 1.0, 4.0, 64),
    rope.Yarn(4.0, 64),
    rope.LongRope(ONES, tuple(np.linspace(1.0, 4.0, SIZE // 2).tolist()), 30, 1.3),
]


def turned(x, position, base=10000.0):
    """x [K] at one position."""
    return rotate(x[None, None, None], rotary_angles(jnp.array([[position]]), x.shape[0], base))[0, 0, 0]


def test_rotation_keeps_lengths_and_is_nothing_at_position_zero():
    x = jax.random.normal(jax.random.key(0), (6,))
    np.testing.assert_array_equal(turned(x, 0), x)
    np.testing.assert_allclose(jnp.linalg.norm(turned(x, 17)), jnp.linalg.norm(x), rtol=1e-5)


@pytest.mark.parametrize("shift", [1, 40])
def test_scores_depend_on_the_distance_alone(shift):
    q, k = jax.random.normal(jax.random.key(1), (2, 6))
    here = turned(q, 9) @ turned(k, 4)
    np.testing.assert_allclose(turned(q, 9 + shift) @ turned(k, 4 + shift), here, rtol=1e-4, atol=1e-5)
    assert abs(turned(q, 9 + shift) @ turned(k, 4) - here) > 1e-4


def test_rotation_is_by_halves_as_in_hugging_faces_llama():
    x, angle = jnp.arange(1.0, 5.0), np.array([3.0, 3.0 * 100.0**-0.5])
    want = np.concatenate(
        [x[:2] * np.cos(angle) - x[2:] * np.sin(angle), x[2:] * np.cos(angle) + x[:2] * np.sin(angle)]
    )
    np.testing.assert_allclose(turned(x, 3, base=100.0), want, rtol=1e-5)


def frequencies(scaling, longest=10):
    return np.asarray(scaling.apply(PLAIN, BASE, longest)[0])


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: scaling.kind)
def test_scaled_scores_depend_on_the_distance_alone(scaling):
    """Among texts of one length, by which longrope chooses its factors."""
    q, k = jax.random.normal(jax.random.key(2), (2, SIZE))

    def score(one, other):
        angles = rotary_angles(jnp.array([[one, other, 60]]), SIZE, BASE, scaling)
        x = rotate(jnp.stack([q, k, k])[None, :, None], angles)[0, :, 0]
        return x[0] @ x[1]

    np.testing.assert_allclose(score(9, 4), score(29, 24), rtol=1e-4, atol=1e-4)
    assert abs(score(9, 4) - score(29, 4)) > 1e-3


@pytest.mark.parametrize(
    "scaling", [rope.Linear(1.0), rope.Llama3(1.0, 1.0, 4.0, 64), rope.Yarn(1.0, 64), rope.LongRope(ONES, ONES, 5, 1.0)],
    ids=lambda scaling: scaling.kind,
)  # fmt: skip
def test_a_factor_of_one_changes_nothing(scaling):
    np.testing.assert_allclose(frequencies(scaling), PLAIN, rtol=1e-6)
    assert scaling.apply(PLAIN, BASE, 10)[1] == 1.0


@pytest.mark.parametrize("scaling", SCALINGS[:3], ids=lambda scaling: scaling.kind)
def test_frequencies_fall_and_lie_between_plain_and_divided(scaling):
    found = frequencies(scaling)
    assert (np.diff(found) < 0).all()
    assert (found <= PLAIN * 1.0001).all() and (found >= PLAIN / scaling.factor * 0.9999).all()


def test_linear_is_positions_made_denser():
    scaled = rotary_angles(jnp.array([[12]]), SIZE, BASE, rope.Linear(4.0))
    for found, wanted in zip(scaled, rotary_angles(jnp.array([[3]]), SIZE, BASE), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_llama3_keeps_short_waves_and_divides_long_ones():
    scaling = rope.Llama3(8.0, 1.0, 4.0, 64)
    waves, found = 2 * math.pi / PLAIN, frequencies(scaling)
    short, long = waves < 64 / 4, waves > 64
    assert short.any() and long.any() and not (short | long).all()
    np.testing.assert_allclose(found[short], PLAIN[short], rtol=1e-6)
    np.testing.assert_allclose(found[long], PLAIN[long] / 8, rtol=1e-6)


def test_yarn_keeps_what_turns_often_divides_what_hardly_turns_and_sharpens_scores():
    scaling = rope.Yarn(4.0, 1024, fast=20.0, slow=1.0)
    turns, found = 1024 * PLAIN / (2 * math.pi), frequencies(scaling)
    assert found[0] == PLAIN[0] and turns[0] > 20
    np.testing.assert_allclose(frequencies(rope.Yarn(4.0, 8))[-1], PLAIN[-1] / 4, rtol=1e-6)
    assert scaling.apply(PLAIN, BASE, 10)[1] == pytest.approx(0.1 * math.log(4.0) + 1)
    assert rope.Yarn(4.0, 1024, attention_factor=1.5).apply(PLAIN, BASE, 10)[1] == 1.5
    cos, sin = rotary_angles(jnp.array([[0, 5]]), SIZE, BASE, rope.Yarn(4.0, 1024, attention_factor=1.5))
    np.testing.assert_allclose(cos**2 + sin**2, np.full(cos.shape, 2.25), rtol=1e-5)


def test_longrope_chooses_by_the_length_in_use():
    scaling = SCALINGS[3]
    np.testing.assert_allclose(frequencies(scaling, 30), PLAIN, rtol=1e-6)
    np.testing.assert_allclose(frequencies(scaling, 31), PLAIN / np.asarray(scaling.long), rtol=1e-6)
    for last, factors in ((29, scaling.short), (30, scaling.long)):  # positions count from zero
        cos, _ = rotary_angles(jnp.array([[last]]), SIZE, BASE, scaling)
        np.testing.assert_allclose(cos[0, 0, 0], 1.3 * np.cos(last * PLAIN / np.asarray(factors)), rtol=1e-3, atol=1e-4)
    assert rope.longrope_attention(4.0, 16) == pytest.approx(1.5**0.5) and rope.longrope_attention(0.5, 16) == 1.0


def test_what_is_beyond_the_turned_part_of_a_head_stays():
    x = jax.random.normal(jax.random.key(3), (1, 1, 1, 10))
    found = rotate(x, rotary_angles(jnp.array([[7]]), 6, BASE))
    np.testing.assert_array_equal(found[..., 6:], x[..., 6:])
    np.testing.assert_array_equal(found[..., :6], rotate(x[..., :6], rotary_angles(jnp.array([[7]]), 6, BASE)))
