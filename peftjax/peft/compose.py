"""Composing: adapters that are attached under their names made to act together as a composition says; a tree in, a new tree out.

    params = attach(base, [lora(name="tone"), houlsby(name="en"), houlsby(name="de"), pfeiffer(name="task")], key)
    params = compose(params, Stack("tone", BatchSplit("en", "de"), "task"))
    logits = model.apply({"params": route(params, [0, 1, 1, 0])}, tokens)
    plain  = decompose(params)                                                the attached tree again

At each place the adapters that have something there are composed, and one that has nothing there changes nothing there: in a Stack it is
left out, in an Average it counts as what the others stand on. Where all that is left is one after another, plain nodes are nested in that
order and nothing is computed anew; elsewhere stand the nodes of `peftjax.peft.composed`.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.hints import did_you_mean
from peftjax.nn.context import KEYS_VALUES, PROMPT
from peftjax.nn.kernels import Entry, Kernel, Tied
from peftjax.nn.shared import STORE
from peftjax.nn.tree import get, put, walk
from peftjax.peft.attach import adapters, names_in
from peftjax.peft.composed import Composed, ComposedEntry, hung, placed, stacked
from peftjax.peft.composition import Average, Block, Composition, Fuse, Split, Stack, blocks, from_data, names
from peftjax.peft.dora import DoRA
from peftjax.peft.outcomes import on
from peftjax.peft.parts import Trained
from peftjax.peft.rows import RowContext
from peftjax.peft.select import KERNELS


def compose(params: dict, composition: Composition | dict) -> dict:
    """A new tree in which the adapters act as `composition` says, in the place of any composition before. Arrays are shared.

    Args:
        params: a tree with the adapters attached.
        composition: a block or a name, or data (`peftjax.peft.composition`). It names every adapter of the tree.

    Raises:
        ValueError: a name that no adapter has, an adapter that is left out, a fusion that is not attached where it is needed, or a block
            that cannot be where one of its adapters stands, with the place.
    """
    composition, params = from_data(composition), decompose(params)
    known, named = adapters(params), list(names(composition))
    for name in named:
        if name not in known:
            raise ValueError(f"no adapter is called {name!r}{did_you_mean(name, known)}; the tree holds {', '.join(known) or 'none'}")
    left_out = sorted(set(known) - set(named))
    if left_out:
        raise ValueError(f"the composition leaves out {', '.join(left_out)}; name them, or take them off: detach(params, {left_out})")
    _followed(composition, params)
    for path, value in list(walk(params)):
        if isinstance(value, Kernel) and names_in(value):
            params = put(params, path, _kernel(composition, path, value))
    for path, entries in list(_places(params)):
        params = put(params, path, (_context if path.rpartition("/")[2] in (KEYS_VALUES, PROMPT) else _site)(composition, path, entries))
    return params


def decompose(params: dict) -> dict:
    """The tree in which adapters are attached and not composed: the nodes of an adapter beside each other, all entries by name."""
    for path, value in list(walk(params)):
        if isinstance(value, Composed):
            base = value.base
            for part in value.parts.values():
                base = on(part, base)
            params = put(params, path, base)
        elif isinstance(value, ComposedEntry):
            params = put(params, path, dict(value.parts))
        elif isinstance(value, RowContext):
            params = put(params, path, value.base)
    return params


def _places(params: dict, prefix: str = "") -> Iterator[tuple[str, dict[str, Entry]]]:
    """(path, entries by name) of every place where entries hang."""
    for name, value in params.items():
        if isinstance(value, dict) and (prefix or name != STORE):
            path = f"{prefix}/{name}" if prefix else name
            if any(isinstance(child, Entry) for child in value.values()):
                yield path, value
            else:
                yield from _places(value, path)


def _kernel(composition: Composition, path: str, value: Kernel) -> Any:
    """A kernel's nodes as the composition has them."""
    parts, bottom = _apart(value)
    plan = _here(composition, set(parts), path)
    _bare(plan, parts, path, True)
    _fits(plan, path)
    plan, weights = _numbered(plan, _layers(path, value))
    return placed(plan, bottom, parts, weights, {})


def _site(composition: Composition, path: str, entries: dict[str, Entry]) -> Any:
    """A site's entries as the composition has them."""
    plan = _here(composition, set(entries), path)
    plan, weights = _numbered(plan, _layers(path, entries))
    return hung(plan, entries, weights, {})


def _context(composition: Composition, path: str, entries: dict[str, Entry]) -> dict[str, Entry]:
    """Entries that put something before a sequence, as the composition has them: all of them, and each for its own rows."""
    plan = _here(composition, set(entries), path)
    strange = next((block for block in blocks(plan) if isinstance(block, Average | Fuse | Split)), None)
    if strange is not None:
        raise ValueError(f"{type(strange).__name__} at {path}: what stands before a sequence is there for a row or is not; it can be part "
                         "of Stack, BatchSplit and Parallel")
    order = list(dict.fromkeys(names(plan)))
    if path == PROMPT and stacked(plan) is not None and order != sorted(order):
        raise ValueError(f"virtual tokens stand in the order of their adapters' names, which is not {', '.join(order)}; rename them")
    return {name: entry if stacked(plan) is not None else RowContext(entry, {}, plan, name) for name, entry in entries.items()}


def _apart(value: Any) -> tuple[dict[str, Kernel], Any]:
    """(nodes of each adapter around nothing, those nearest to the weight first; what all stand on)."""
    chain = []
    while isinstance(value, Kernel) and hasattr(value, "name"):
        chain.append(value)
        value = value.base
    parts: dict[str, Kernel] = {}
    for node in reversed(chain):
        parts[node.name] = dataclasses.replace(node, base=parts.get(node.name))
    return parts, value


def _here(plan: Composition, present: set[str], path: str) -> Composition | None:
    """The plan at one place: None in the place of what has nothing there."""
    if isinstance(plan, str):
        return plan if plan in present else None
    children = [_here(child, present, path) for child in plan.children]
    if not any(children):  # what a fusion's adapter has where it weighs nothing, a head, is its own
        return plan.by if isinstance(plan, Fuse) and plan.by in present else None
    if isinstance(plan, Stack):
        children = [child for child in children if child is not None]
        return children[0] if len(children) == 1 else plan.over(*children)
    if isinstance(plan, Fuse) and plan.by not in present:
        of = ", ".join(map(repr, names(Stack(*plan.children))))
        raise ValueError(f"Fuse at {path} needs {plan.by!r} there, which is not: attach fusion(of=({of}), name={plan.by!r}) after them")
    return plan.over(*children)


def _bare(plan: Composition | None, parts: dict[str, Kernel], path: str, bare: bool) -> None:
    """Refuses what stands in the place of the weight itself, or measures it, around another adapter."""
    if isinstance(plan, str):
        node = parts[plan]
        while node.base is not None:
            node = node.base
        if not bare and isinstance(node, DoRA | Trained):
            raise ValueError(f"{type(node).__name__} {plan!r} at {path} stands on the weight itself: name it first in its Stack")
        return
    for number, child in enumerate(plan.children if plan else ()):
        _bare(child, parts, path, bare and not (number and isinstance(plan, Stack)))


def _followed(composition: Composition, params: dict) -> None:
    """Refuses adapters beside each other of which some have a head of their own and some one that is tied to the embedding: where both are
    in a tree the head reads the embedding as it was before any adapter."""
    head, embedding = get(params, "head/kernel"), get(params, "embed/embedding")
    own, bottom = _apart(head)
    if not isinstance(bottom, Tied):
        return
    follow = sorted(names_in(embedding) - set(bottom.apart) - set(own))
    if follow and stacked(_here(composition, names_in(embedding) | set(own), "head/kernel")) is None:
        raise ValueError(f"{', '.join(follow)} would have the head follow the embedding, which others of this composition keep apart from "
                         'it: attach with targets "embed_tokens" and "lm_head", or with ensure_weight_tying=False')


def _fits(plan: Composition, path: str) -> None:
    """Refuses blocks that tell rows or positions apart where none are seen."""
    for block in blocks(plan):
        if path.rpartition("/")[2] not in KERNELS and not isinstance(block, Average | Stack):
            raise ValueError(f"{type(block).__name__} at {path}: a vector is the same for all rows; Stack and Average can hold its methods")
        if path == "head/kernel" and isinstance(block, Split):
            raise ValueError(f"Split at {path}: a head sees some positions only, in an order of their own; BatchSplit can hold its methods")


def _layers(path: str, value: Any) -> int | None:
    """The length of the leading axis of what lies in a stack of layers."""
    return jax.tree.leaves(value)[0].shape[0] if path.startswith("blocks") else None


def _numbered(plan: Composition, layers: int | None) -> tuple[Composition, dict[str, jax.Array]]:
    """(the plan with the number of each Average in the place of its weights, these by number, [N] or [L, N])."""
    weights: dict[str, jax.Array] = {}

    def replaced(plan):
        if not isinstance(plan, Block):
            return plan
        options = {}
        if isinstance(plan, Average):
            own = jnp.stack([jnp.asarray(w, jnp.float32) for w in plan.weights or (1.0,) * len(plan.children)])
            total = jnp.sum(own)
            if not isinstance(total, jax.core.Tracer) and not total > 0:
                raise ValueError(f"the weights of an Average, {list(map(float, own))}, do not add up to something positive")
            options["weights"] = str(len(weights))
            weights[options["weights"]] = jnp.broadcast_to(own / total, own.shape if layers is None else (layers, *own.shape))
        return plan.over(*map(replaced, plan.children), **options)

    return replaced(plan), weights
