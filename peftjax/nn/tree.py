"""Paths of a parameter tree: built here and nowhere else.

A path is what a person would write: `blocks/attn/q/kernel`. Adapters add to it, never change it: the leaves of a LoRA named
"tone" on that kernel are `blocks/attn/q/kernel/tone/a` and `.../tone/b`, while the frozen weight under it keeps its path,
however many adapters wrap it.

A stack of layers is one scanned module whose leaves carry a leading layer axis. The whole stack is called `blocks`; when it
is cut into segments, each is called `blocks_<start>_<stop>`. The *logical* path of `blocks_20_30/attn/q/kernel` is
`blocks/attn/q/kernel`, with layers 20 to 29: methods match, and draw their initial values, by logical path and layer, so
that a cut changes nothing.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

_LAYER = re.compile(r"^blocks/(\d+)/(.*)$")
_STACK = re.compile(r"^blocks(?:_(\d+)_(\d+))?$")


class Place(NamedTuple):
    """A path with its stack taken out: `logical` path, and the `layers` its leading axis runs over (None: no such axis)."""

    logical: str
    layers: range | None


def stack_name(start: int, stop: int, layers: int) -> str:
    """Name of the module that holds layers `start` to `stop - 1` of a stack of `layers`."""
    return "blocks" if (start, stop) == (0, layers) else f"blocks_{start}_{stop}"


def place(path: str, leading: int) -> Place:
    """Takes a path apart. `leading` is the size of the first axis, the number of layers where the path lies in a stack."""
    head, _, rest = path.partition("/")
    match = _STACK.match(head)
    if not match:
        return Place(path, None)
    start = int(match[1] or 0)
    return Place(f"blocks/{rest}" if rest else "blocks", range(start, start + leading))


def numbered(path: str) -> tuple[str, int | None]:
    """`blocks/7/attn/q` -> (`blocks/attn/q`, 7): a path with the layer's number taken apart; the number is None outside the stack."""
    match = _LAYER.match(path)
    return (path, None) if match is None else (f"blocks/{match[2]}", int(match[1]))


def path_of(keys) -> str:
    """The path of a JAX key path. Empty key names (the base under a node) add nothing."""
    parts = []
    for key in keys:
        for attribute in ("key", "name", "idx"):
            if hasattr(key, attribute):
                part = str(getattr(key, attribute))
                break
        else:
            raise TypeError(f"no name in tree key {key!r}")
        if part:
            parts.append(part)
    return "/".join(parts)


def flatten(tree: Any) -> dict[str, Any]:
    """All leaves by path, sorted by path.

    Raises:
        ValueError: two leaves have one path (two adapters of one name on one kernel).
    """
    leaves = [(path_of(keys), leaf) for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]
    flat = dict(leaves)
    if len(flat) < len(leaves):
        seen, doubles = set(), []
        for path, _ in leaves:
            if path in seen:
                doubles.append(path)
            seen.add(path)
        raise ValueError(f"two leaves have one path: {', '.join(doubles)}; give the adapters different names")
    return dict(sorted(flat.items()))


def unflatten_like(tree: Any, flat: dict[str, Any]) -> Any:
    """The structure of `tree` with its leaves replaced by those of `flat`, by path. The paths must be the same."""
    paths = set(flatten(tree))
    if paths != set(flat):
        missing, extra = sorted(paths - set(flat)), sorted(set(flat) - paths)
        raise ValueError(f"paths differ: missing {missing or 'none'}, extra {extra or 'none'}")
    return jax.tree_util.tree_map_with_path(lambda keys, _: flat[path_of(keys)], tree)


def walk(params: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Everything that is not a dict, with its path: arrays, kernel nodes and site entries whole."""
    for name in sorted(params):
        path = f"{prefix}/{name}" if prefix else name
        if isinstance(params[name], dict):
            yield from walk(params[name], path)
        else:
            yield path, params[name]


def get(params: dict, path: str, default: Any = None) -> Any:
    """What stands at a path of nested dicts, or `default`."""
    for part in path.split("/"):
        if not isinstance(params, dict) or part not in params:
            return default
        params = params[part]
    return params


def put(params: dict, path: str, value: Any) -> dict:
    """A copy of `params` in which `path` holds `value`; a value of None removes it, and a dict that became empty with it.
    Arrays are shared, dicts along the path are new."""
    part, _, rest = path.partition("/")
    new = dict(params)
    if rest:
        value = put(new.get(part, {}), rest, value) or None
    if value is None:
        new.pop(part, None)
    else:
        new[part] = value
    return new
