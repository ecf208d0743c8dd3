"""Which parameters a method touches: rules over logical paths.

A target is a regular expression over the logical path of a module (`blocks/attn/q`, `.*/(q|v)`), or one of the field's names:
`q_proj`, `down_proj`, `embed_tokens`, `lm_head`, ..., `all-linear` (every linear kernel of the blocks; not the head), as in HF PEFT.
Every target of a list must match something: a rule that matches nothing is an error.
"""

import dataclasses
import difflib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from peftjax.nn.kernels import Entry, Kernel, Tied
from peftjax.nn.tree import get, place, put, walk

# The field's names (those of Hugging Face's Llama and BERT modules) -> regular expressions over our logical paths.
NAMES = {
    "q_proj": r"blocks/attn/q",
    "k_proj": r"blocks/attn/k",
    "v_proj": r"blocks/attn/v",
    "o_proj": r"blocks/attn/o",
    "gate_proj": r"blocks/mlp/gate",
    "up_proj": r"blocks/mlp/up",
    "down_proj": r"blocks/mlp/down",
    "query": r"blocks/attn/q",
    "key": r"blocks/attn/k",
    "value": r"blocks/attn/v",
    "embed_tokens": r"embed",
    "lm_head": r"head",
    "all-linear": r"blocks/.+",
}
KERNELS = ("kernel", "embedding")


class Target(NamedTuple):
    """One matched parameter: its `path` in the tree, `logical` path, `layers` of its leading axis (None: no such axis), and `value`."""

    path: str
    logical: str
    layers: range | None
    value: Any


def parameters(params: dict, names: tuple[str, ...]) -> list[Target]:
    """All parameters whose last name is one of `names`, nodes whole, in the order of their paths."""
    found = []
    for path, value in walk(params):
        if path.rpartition("/")[2] in names and not isinstance(value, Entry):  # an adapter may be called "kernel"
            logical, layers = place(path, value.shape[0] if value.shape else 0)
            found.append(Target(path, logical, layers, value))
    return found


def module_of(logical: str) -> str:
    """`blocks/attn/q/kernel` -> `blocks/attn/q`."""
    return logical.rpartition("/")[0]


def named(module: str) -> str:
    """The field's name of one of our modules where there is one: `blocks/attn/q` -> `q_proj`."""
    return next((name for name, pattern in NAMES.items() if pattern == module), module)


def as_patterns(targets: str | Sequence[str]) -> list[str]:
    """Targets as a list, one string or many."""
    return [targets] if isinstance(targets, str) else list(targets)


def matches(pattern: str, module: str) -> bool:
    """Whether one target names the module at a logical path."""
    return re.fullmatch(NAMES.get(pattern, pattern), module) is not None


def select(
    params: dict, targets: str | Sequence[str], layers: Sequence[int] | None = None, names: tuple[str, ...] = KERNELS
) -> list[Target]:
    """The kernels that `targets` name, on the given layers.

    Raises:
        ValueError: a target matches nothing, or nothing on these layers; a layer does not exist; the layers cut a scanned stack in two.
    """
    everything = parameters(params, names)
    modules = sorted({module_of(t.logical) for t in everything})
    chosen: dict[str, set[str]] = {}
    for pattern in as_patterns(targets):
        try:
            chosen[pattern] = {module for module in modules if matches(pattern, module)}
        except re.error as error:
            raise ValueError(f"target {pattern!r} is no regular expression: {error}") from error
        if not chosen[pattern]:
            raise ValueError(unmatched(pattern, modules))
    picked = on_layers([t for t in everything if module_of(t.logical) in set().union(*chosen.values())], layers)
    left = {module_of(t.logical) for t in picked}
    for pattern, hits in chosen.items():
        if not hits & left:
            raise ValueError(f"target {pattern!r} names {', '.join(sorted(hits))}, which lies on no layer; layers={list(layers)}")
    return picked


def unmatched(pattern: str, modules: list[str]) -> str:
    """The error for a target that names nothing."""
    if pattern in NAMES and NAMES[pattern] == "head":
        return "target 'lm_head' matches nothing: the head is tied to the embedding and there is no place for it; target 'embed_tokens'"
    near = difflib.get_close_matches(pattern, [name for name in (*NAMES, *modules) if name != pattern], n=3)
    hint = f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else "."
    return f"target {pattern!r} matches no kernel{hint} Kernels are {', '.join(modules)}; names are {', '.join(NAMES)}"


def on_layers(targets: list[Target], layers: Sequence[int] | None) -> list[Target]:
    """Those of `targets` that lie on `layers`; parameters outside the stack are kept only where `layers` is None."""
    if layers is None:
        return targets
    wanted = set(layers)
    stacked = [t for t in targets if t.layers is not None]
    known = {layer for t in stacked for layer in t.layers}
    if not known:
        raise ValueError(
            f"layers {sorted(wanted)} of {', '.join(t.path for t in targets)}: these lie outside the stack and belong to no layer"
        )
    if not wanted or not wanted <= known:
        raise ValueError(
            f"layers {sorted(wanted)}: {sorted(wanted - known) or 'none given'} not among layers 0 to {max(known, default=-1)}"
        )
    picked = []
    for target in stacked:
        hit = wanted & set(target.layers)
        if hit and hit != set(target.layers):
            raise ValueError(
                f"layers {sorted(hit)} are part of the scanned stack {target.path.split('/')[0]} (layers {target.layers.start} to "
                f"{target.layers.stop - 1}), which has one set of adapters; cut the stack there: segments={cuts(known, wanted)}"
            )
        if hit:
            picked.append(target)
    return picked


def cuts(known: set[int], wanted: set[int]) -> tuple[int, ...]:
    """Segment lengths that separate the wanted layers from the others."""
    order = sorted(known)
    lengths = [1]
    for before, after in zip(order, order[1:], strict=False):
        if (before in wanted) == (after in wanted):
            lengths[-1] += 1
        else:
            lengths.append(1)
    return tuple(lengths)


def resolve(patterns: dict[str, Any], module: str, layer: int | None, default: Any) -> Any:
    """The value of the first pattern that names the module, or the module of one layer (`blocks/7/attn/q`); else `default`."""
    at_layer = module if layer is None else module.replace("blocks/", f"blocks/{layer}/", 1)
    for pattern, value in patterns.items():
        if matches(pattern, module) or re.fullmatch(pattern, at_layer):
            return value
    return default


def require_used(patterns: dict[str, Any], targets: list[Target], what: str) -> None:
    """Every key of a pattern table must name one of the targets."""
    for pattern in patterns:
        for t in targets:
            module = module_of(t.logical)
            if any(resolve({pattern: True}, module, layer, False) for layer in (t.layers or [None])):
                break
        else:
            modules = sorted({module_of(t.logical) for t in targets})
            raise ValueError(f"{what} {pattern!r} matches none of the targets {', '.join(modules)}")


def with_head(params: dict, apart: str | None = None) -> dict:
    """The tree with a place for a head of its own: where the head is tied, `head/kernel` reads the embedding as it was before any
    adapter, so that it does not matter which of the two is adapted first.

    Args:
        apart: name of an adapter of the embedding that the head must not follow, even when no other adapter of the head is left.
    """
    is_encoder = get(params, "type_embed/embedding") is not None  # its head, where it has one, tells classes apart and not tokens
    if get(params, "embed/embedding") is None or is_encoder:
        return params
    if get(params, "head/kernel") is not None:
        return params if apart is None else put(params, "head/kernel", _apart(get(params, "head/kernel"), apart))
    embedding = get(params, "embed/embedding")
    while isinstance(embedding, Kernel) and hasattr(embedding, "name"):
        embedding = embedding.base
    return put(params, "head/kernel", Tied(embedding, () if apart is None else (apart,)))


def _apart(head: Any, name: str) -> Any:
    """A head whose tie, where it has one underneath, knows the adapter."""
    if isinstance(head, Tied):
        return dataclasses.replace(head, apart=tuple(sorted({*head.apart, name})))
    base = getattr(head, "base", None)
    return dataclasses.replace(head, base=_apart(base, name)) if isinstance(base, Kernel) else head


def sibling(params: dict, path: str, name: str) -> Any:
    """What stands beside a parameter under another name, or None."""
    return get(params, f"{module_of(path)}/{name}")
