"""The step: accumulation, clipping, weight decay by role, dropout, and that the frozen base is what it was."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from step_parts import build
from tiny import train_batch

from peftjax.nn.tree import flatten
from peftjax.peft import pfeiffer


@pytest.mark.slow  # compiles for ten seconds
def test_accumulated_pieces_make_the_step_of_the_whole_batch():
    batch = train_batch(8, seed=0)
    whole, pieces = build(), build(accumulate=4)
    (a, first), (b, second) = (step(state, frozen, batch) for step, state, frozen in (whole, pieces))
    assert float(first["loss"]) == pytest.approx(float(second["loss"]), rel=1e-6)
    for path, leaf in flatten(a.trainable).items():
        np.testing.assert_allclose(leaf, flatten(b.trainable)[path], atol=1e-6)


def test_empty_rows_change_nothing():
    step, state, frozen = build()
    batch = train_batch(4, seed=0)
    empty = jax.tree.map(lambda x: np.concatenate([x, np.zeros_like(x)]), batch)
    first, second = step(state, frozen, batch)[1], step(state, frozen, empty)[1]
    assert float(first["loss"]) == pytest.approx(float(second["loss"]), rel=1e-6)
    assert float(first["grad_norm"]) == pytest.approx(float(second["grad_norm"]), rel=1e-5)


def test_base_is_bit_identical_after_steps():
    step, state, frozen = build()
    before = {path: np.array(leaf) for path, leaf in flatten(frozen).items()}
    for number in range(3):
        state, _ = step(state, frozen, train_batch(4, seed=number))
    for path, leaf in flatten(frozen).items():
        np.testing.assert_array_equal(leaf, before[path], err_msg=path)


def test_clipping_bounds_the_update_of_sgd():
    step, state, frozen = build(name="sgd", momentum=0.0, learning_rate=1.0, clip=1e-3)
    after, metrics = step(state, frozen, train_batch(4, seed=0))
    pairs = zip(jax.tree.leaves(after.trainable), jax.tree.leaves(state.trainable), strict=True)
    moved = jnp.sqrt(sum(jnp.sum((a - b) ** 2) for a, b in pairs))
    assert float(metrics["grad_norm"]) > 1e-3
    assert float(moved) == pytest.approx(1e-3, rel=1e-3)


def test_decay_is_for_matrices_only():
    """With a rate so small that only decay moves anything: biases stay, matrices shrink."""
    step, state, frozen = build((pfeiffer(size=4, init="bert"),), learning_rate=1e-9, weight_decay=1e6)
    state = state.replace(trainable=jax.tree.map(lambda x: jnp.ones_like(x), state.trainable))
    after, _ = step(state, frozen, train_batch(4, seed=0))
    for path, leaf in flatten(after.trainable).items():
        expected = 1.0 if path.endswith("bias") else 1.0 - 1e-3
        np.testing.assert_allclose(leaf, expected, atol=1e-6, err_msg=path)


def test_lora_plus_moves_b_faster():
    moved = {}
    for ratio in (1.0, 16.0):
        step, state, frozen = build(learning_rate=1e-4, lora_plus_ratio=ratio, clip=0.0)
        after, _ = step(state, frozen, train_batch(4, seed=0))
        before = flatten(state.trainable)
        moved[ratio] = {path: float(jnp.max(jnp.abs(leaf - before[path]))) for path, leaf in flatten(after.trainable).items()}
    path = "blocks/attn/q/kernel/default/b"
    assert moved[16.0][path] == pytest.approx(16 * moved[1.0][path], rel=1e-3)
    with pytest.raises(ValueError, match="nothing that is trained is a LoRA"):
        build((pfeiffer(size=4),), lora_plus_ratio=16.0)


def test_dropout_changes_with_the_step_and_repeats_with_the_key():
    step, state, frozen = build((pfeiffer(size=4, init="bert", dropout=0.5),), dropout=True, learning_rate=0.0)
    batch = train_batch(4, seed=0)
    first, again = step(state, frozen, batch)[1], step(state, frozen, batch)[1]
    later = step(step(state, frozen, batch)[0], frozen, batch)[1]
    assert float(first["loss"]) == float(again["loss"]) != float(later["loss"])
