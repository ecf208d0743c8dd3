"""AdaLoRA's ranks are shared out as HF PEFT shares them out, resumed as if never stopped; LoRA-FA's gradient is PEFT's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import TINY, base, equal_trees, noise, train_batch

from peftjax.models.decoder import Decoder
from peftjax.nn.tree import get
from peftjax.peft.adalora import AdaLoRA, Allocation, adalora
from peftjax.peft.attach import attach
from peftjax.peft.lora import lora
from peftjax.peft.partition import partition
from peftjax.peft.roles import roles
from peftjax.train.allocate import allocate, project_frozen_a
from peftjax.train.config import default_config
from peftjax.train.optimiser import make_optimiser
from peftjax.train.step import make_step, new_state

KEY = jax.random.key(0)
STEPS, RANK = 20, 4
PLAN = Allocation(target_rank=2, warmup=3, final=4, every=2, beta1=0.85, beta2=0.85)
# Which entries of e are not zero after each step, of two kernels: HF PEFT 0.21.2's RankAllocator on the same values and gradients, with
# tinit 3, tfinal 4, deltaT 2, total_step 20.
KEPT = [
    "11111111", "11111111", "11111111", "11111011", "11111111", "10111001", "11111111", "10110001", "11111111", "10110001",
    "11111111", "10110001", "11111111", "10110001", "11111111", "10110001", "10110001", "10110001", "10110001", "10110001",
]  # fmt: skip


def drawn():
    """(start, an update a step, a gradient a step) of a, e, b of two kernels 5 x 3."""
    rng = np.random.default_rng(5)
    shapes = {"a": (2, RANK, 5), "e": (2, RANK), "b": (2, RANK, 3)}
    start = {field: rng.standard_normal(shape).astype(np.float32) for field, shape in shapes.items()}
    moves = [{field: 0.1 * rng.standard_normal(shape).astype(np.float32) for field, shape in shapes.items()} for _ in range(STEPS)]
    slopes = [{field: rng.standard_normal(shape).astype(np.float32) for field, shape in shapes.items()} for _ in range(STEPS)]
    return start, moves, slopes


def as_tree(values):
    return {"blocks": {"q": {"kernel": AdaLoRA(None, values["a"], values["e"], values["b"], None, None, None, PLAN, "tone")}}}


def test_the_same_entries_are_pruned_as_in_hf_peft():
    start, moves, slopes = drawn()
    given = optax.GradientTransformation(lambda _: jnp.int32(0), lambda g, s, p: (jax.tree.map(lambda m: m[s], stacked), s + 1))
    stacked = as_tree(jax.tree.map(lambda *each: jnp.stack(each), *moves))
    params = as_tree(jax.tree.map(jnp.asarray, start))
    optimiser = allocate(given, params, STEPS)
    state, update = optimiser.init(params), jax.jit(optimiser.update)
    for number, want in enumerate(KEPT):
        updates, state = update(as_tree(slopes[number]), state, params)
        params = optax.apply_updates(params, updates)
        e = get(params, "blocks/q/kernel").e
        assert "".join("01"[int(value != 0)] for value in np.asarray(e).reshape(-1)) == want, f"step {number + 1}"


def test_the_budget_falls_along_a_cubic_from_the_warm_up_to_the_final_phase():
    budgets, chosen = zip(*(PLAN.budget(jnp.int32(step), STEPS, 8, 4) for step in range(1, STEPS + 1)), strict=True)
    budgets = np.asarray(budgets)
    assert (budgets[:3] == 8).all() and (budgets[15:] == 4).all() and (np.diff(budgets) <= 0).all()
    assert [step for step, one in enumerate(chosen, 1) if one] == [4, 6, 8, 10, 12, 14, 16]
    assert budgets[7] == int(4 * (1 - 5 / 13) ** 3 + 4)


def options(**changes):
    chosen = default_config().optimizer
    chosen.warmup = 0
    for field, value in changes.items():
        chosen[field] = value
    return chosen


def test_a_run_that_was_stopped_prunes_as_one_that_was_not():
    params = attach(base(), [adalora(rank=3, target_rank=1, warmup=1, final=1, targets=["q_proj", "down_proj"])], KEY)
    trainable, frozen = partition(params)
    optimiser = make_optimiser(options(), 6, trainable, roles(params))
    step = jax.jit(make_step(Decoder(TINY), optimiser))
    states = [new_state(trainable, optimiser, KEY)]
    for number in range(6):
        states.append(step(states[-1], frozen, train_batch(seed=number))[0])
    again = jax.tree.map(lambda leaf: leaf if leaf.dtype == KEY.dtype else jnp.array(np.asarray(leaf)), states[3])
    for number in range(3, 6):
        again = step(again, frozen, train_batch(seed=number))[0]
    equal_trees(again.trainable, states[-1].trainable)
    left = sum(int(jnp.sum(get(states[-1].trainable, path).e != 0)) for path in ("blocks/attn/q/kernel", "blocks/mlp/down/kernel"))
    assert left == 4  # of 12: two kernels, two layers, one each on average


def test_plans_that_leave_no_step_are_refused():
    params = attach(base(), [adalora(rank=3, target_rank=1, warmup=4, final=2)], KEY)
    trainable, _ = partition(params)
    with pytest.raises(ValueError, match="warmup 4 and final 2 leave none of 6 steps"):
        make_optimiser(options(), 6, trainable, roles(params))
    with pytest.raises(ValueError, match=r"nothing that is trained is a LoRA with a frozen A"):
        make_optimiser(options(project_frozen_a=True), 6, trainable, roles(params), params)


def test_the_gradient_of_b_is_projected_by_the_frozen_a():
    params = attach(base(), [lora(rank=2, alpha=6, freeze_a=True, targets="q_proj", rank_pattern={"blocks/1/.*": 1})], KEY)
    trainable, _ = partition(params)
    transformation = project_frozen_a(params)
    grads = jax.tree.map(lambda leaf: noise("g", leaf), trainable)
    got, _ = transformation.update(grads, transformation.init(trainable))
    node, slope, projected = (get(tree, "blocks/attn/q/kernel") for tree in (params, grads, got))
    a = np.asarray(node.a[0], np.float64)
    np.testing.assert_allclose(projected.b[0], np.linalg.inv(a @ a.T) @ slope.b[0] / 9, rtol=1e-4)
    row = np.asarray(node.a[1, :1], np.float64)
    np.testing.assert_allclose(projected.b[1, :1], slope.b[1, :1] / (row @ row.T) / 36, rtol=1e-4)
    assert not projected.b[1, 1:].any()
