"""What AdaLoRA and LoRA-FA ask of an optimiser, as optax transformations around the one that there is.

    allocate(optimiser, trainable, steps)       entries of AdaLoRA's e that matter least are set to zero      2303.10512 (2023)
    project_frozen_a(params)                    B's gradient ← (A Aᵀ)⁻¹ (B's gradient) / s²                   2308.03303 (2023)

An entry of e matters as much as its own score and the mean scores of its rows of A and B; the score of a number is the running mean of its
sensitivity |value · gradient| times the running mean of how far that strays. Means and the last choice lie in the optimiser's state, and
how many entries are left is a function of the step, so that a run that was stopped goes on as if it had not been.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from peftjax.nn.kernels import Kernel
from peftjax.nn.tree import walk
from peftjax.peft.adalora import AdaLoRA, Allocation
from peftjax.peft.lora import LoRAFA
from peftjax.peft.penalty import nodes

RIDGE = 1e-8  # on the diagonal of A Aᵀ, as HF PEFT


class AllocationState(NamedTuple):
    """inner: of the optimiser within; step: updates done; sensitivity, uncertainty: running means by place, {a, e, b}; kept: bool, of e."""

    inner: Any
    step: jax.Array
    sensitivity: dict[str, dict[str, jax.Array]]
    uncertainty: dict[str, dict[str, jax.Array]]
    kept: dict[str, jax.Array]


def allocate(inner: optax.GradientTransformation, trainable: Any, steps: int) -> optax.GradientTransformation:
    """`inner`, and after each of its updates AdaLoRA's pruning; `inner` itself where nothing that is trained is an AdaLoRA.

    Args:
        trainable: the trainables.
        steps: of the whole run, over which ranks shrink unless their plan says another number.

    Raises:
        ValueError: a warm-up and a final phase that leave no step between them, or AdaLoRAs of several plans.
    """
    found = _adaloras(trainable)
    if not found:
        return inner
    plans = {node.plan for node in found.values()}
    if len(plans) > 1:
        raise ValueError(f"the ranks of a run are shared out by one plan; its AdaLoRAs have {', '.join(map(str, plans))}")
    plan = plans.pop()
    steps = plan.steps or steps
    if plan.warmup >= steps - plan.final:
        raise ValueError(f"AdaLoRA's warmup {plan.warmup} and final {plan.final} leave none of {steps} steps to shrink ranks in")

    def init(params):
        zeros = {at: {field: jnp.zeros_like(getattr(one, field)) for field in ("a", "e", "b")} for at, one in _adaloras(params).items()}
        kept = {at: jnp.ones(one.e.shape, bool) for at, one in _adaloras(params).items()}
        return AllocationState(inner.init(params), jnp.int32(0), zeros, jax.tree.map(jnp.copy, zeros), kept)

    def update(grads, state, params):
        updates, inner_state = inner.update(grads, state.inner, params)
        step = state.step + 1
        values, slopes = _fields(optax.apply_updates(params, updates)), _fields(grads)
        sensitivity, uncertainty = _scored(plan, values, slopes, state, step < steps - plan.final)
        chosen, kept = _chosen(plan, sensitivity, uncertainty, state.kept, step, steps)
        ending = step > steps - plan.final
        pruned = {at: ~kept[at] & (chosen | ending) for at in kept}
        updates = _zeroing(updates, params, pruned)
        return updates, AllocationState(inner_state, step, sensitivity, uncertainty, kept)

    return optax.GradientTransformation(init, update)


def _adaloras(tree: Any) -> dict[str, AdaLoRA]:
    """The trained AdaLoRAs of a tree, by path and name."""
    there = {f"{path}/{one.name}": one for path, value in walk(tree) for one in nodes(value) if isinstance(one, AdaLoRA)}
    return {at: one for at, one in there.items() if one.e is not None}


def _fields(tree: Any) -> dict[str, dict[str, jax.Array]]:
    return {at: {field: getattr(one, field) for field in ("a", "e", "b")} for at, one in _adaloras(tree).items()}


def _scored(plan: Allocation, values: dict, slopes: dict, state: AllocationState, counts: jax.Array) -> tuple[dict, dict]:
    """The running means after one more step, where it counts."""
    now = jax.tree.map(lambda value, slope: jnp.abs(value * slope), values, slopes)
    mean = jax.tree.map(lambda old, new: plan.beta1 * old + (1 - plan.beta1) * new, state.sensitivity, now)
    stray = jax.tree.map(
        lambda old, new, by: plan.beta2 * old + (1 - plan.beta2) * jnp.abs(new - by), state.uncertainty, now, mean
    )
    keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(counts, n, o), new, old)  # noqa: E731
    return keep(mean, state.sensitivity), keep(stray, state.uncertainty)


def _chosen(plan: Allocation, sensitivity: dict, uncertainty: dict, kept: dict, step: jax.Array, steps: int) -> tuple[jax.Array, dict]:
    """(whether entries are chosen at this step, which are kept)."""
    score = jax.tree.map(jnp.multiply, sensitivity, uncertainty)
    entries = {at: own["e"] + jnp.mean(own["a"], axis=-1) + jnp.mean(own["b"], axis=-1) for at, own in score.items()}
    everything = jnp.sort(jnp.concatenate([each.reshape(-1) for each in entries.values()]))
    start, matrices = everything.size, sum(each.size // each.shape[-1] for each in entries.values())
    budget, chosen = plan.budget(step, steps, start, plan.target_rank * matrices)
    # Entries as low as the threshold go too, as in HF PEFT; a budget of all of them prunes nothing.
    threshold = jnp.where(budget < start, everything[jnp.clip(start - budget - 1, 0, start - 1)], -1.0)
    return chosen, {at: jnp.where(chosen, each > threshold, kept[at]) for at, each in entries.items()}


def _zeroing(updates: Any, params: Any, pruned: dict[str, jax.Array]) -> Any:
    """Updates that take the pruned entries of e to zero exactly."""
    targets = {id(one.e): at for at, one in _adaloras(updates).items()}
    return jax.tree.map(
        lambda update, value: jnp.where(pruned[targets[id(update)]], -value, update) if id(update) in targets else update, updates, params
    )


class ProjectionState(NamedTuple):
    """inverse: (A Aᵀ)⁻¹ / s² [..., R, R] by path of B."""

    inverse: dict[str, jax.Array]


def project_frozen_a(params: dict) -> optax.GradientTransformation:
    """B's gradient in the metric in which its step is the nearest that a frozen A allows to a step of the weight itself.

    Args:
        params: the whole tree, with A and scale.

    Raises:
        ValueError: nothing in the tree is a LoRA with a frozen A.
    """
    found = _frozen_a(params)
    if not found:
        raise ValueError("config.optimizer.project_frozen_a is set, and nothing that is trained is a LoRA with a frozen A (freeze_a=True)")

    def init(_):
        return ProjectionState({at: _inverse(one.a, one.scale) for at, one in found.items()})

    def update(grads, state, params=None):
        places = {id(one.b): at for at, one in _frozen_a(grads).items()}

        def projected(leaf):
            if id(leaf) not in places:
                return leaf
            return jnp.einsum("...rs,...so->...ro", state.inverse[places[id(leaf)]], leaf)

        return jax.tree.map(projected, grads), state

    return optax.GradientTransformation(init, update)


def _frozen_a(tree: Any) -> dict[str, LoRAFA]:
    return {f"{path}/{one.name}": one for path, value in walk(tree) if isinstance(value, Kernel)
            for one in nodes(value) if isinstance(one, LoRAFA)}


def _inverse(a: jax.Array, scale: jax.Array) -> jax.Array:
    gram = jnp.einsum("...ri,...si->...rs", a, a)
    identity = jnp.broadcast_to(jnp.eye(a.shape[-2]), gram.shape)
    # A pseudo-inverse: rows that are zero, past the rank of a layer, have no step.
    return jnp.linalg.pinv(gram + RIDGE * identity, rtol=1e-6, hermitian=True) / jnp.square(scale)[..., None, None]
