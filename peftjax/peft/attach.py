"""Attaching, detaching and choosing adapters: trees in, new trees out.

A method is a frozen dataclass with a `name` and a pure `attach(params, key) -> params`. The name is the adapter's: methods that share one
are attached, chosen, saved and detached together.
"""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import jax

from peftjax.nn.kernels import Entry, Kernel, Tied
from peftjax.nn.tree import flatten, put, walk
from peftjax.peft.composed import Composed, ComposedEntry, without
from peftjax.peft.select import cuts


class Method(Protocol):
    """What every transformation is."""

    name: str

    def attach(self, params: dict, key: jax.Array) -> dict:
        """A new tree with this method in it."""


def attach(params: dict, methods: Sequence[Method], key: jax.Array) -> dict:
    """A new tree with all `methods`. Initial values depend on `key`, path and name only, not on the order of the methods.

    Works on arrays and, under `jax.eval_shape` or `jit`, on abstract trees. Arrays of `params` are shared with the result.

    Raises:
        ValueError: a rule that matches nothing, two methods that claim one leaf, or adapters that are composed already.
    """
    composed = [path for path, value in walk(params) if isinstance(value, Composed | ComposedEntry)]
    if composed:
        raise ValueError(f"adapters are composed at {composed[0]}: decompose(params), attach, and compose with the new ones")
    for method in methods:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", method.name):
            raise ValueError(
                f"an adapter cannot be called {method.name!r}: letters, digits, '_', '.', '-' make a name, which is part of a path"
            )
        params = method.attach(params, key)
    flatten(params)  # refuses two leaves of one path
    return params


def adapters(params: dict) -> list[str]:
    """The names of all adapters in the tree."""
    names: set[str] = set()
    for _, value in walk(params):
        names.update(names_in(value))
    return sorted(names)


def names_in(value: Any) -> set[str]:
    """The adapters of one kernel node or site entry."""
    if isinstance(value, Composed | ComposedEntry):
        return set(value.parts) | names_in(getattr(value, "base", None))
    if isinstance(value, Entry):
        return {value.name}
    if isinstance(value, Kernel):
        own = {value.name} if hasattr(value, "name") else set(getattr(value, "apart", ()))
        return own | names_in(getattr(value, "base", None))
    return set()


def detach(params: dict, names: Iterable[str] | None = None) -> dict:
    """A new tree without the named adapters (default: without any): what remains computes bit for bit what it did before they came.

    Raises:
        ValueError: a name that no adapter has, or one of adapters that are composed beside each other, of which others would stay.
    """
    present = adapters(params)
    names = set(present if names is None else names)
    unknown = sorted(names - set(present))
    if unknown:
        raise ValueError(f"no adapter is called {', '.join(map(repr, unknown))}; the tree holds {', '.join(present) or 'none'}")
    for path, value in list(walk(params)):
        if names_in(value) & names:
            params = put(params, path, _strip(value, names))
    return params


def _strip(value: Any, names: set[str]) -> Any:
    """What is left of a node or entry; None where nothing stood before."""
    if isinstance(value, ComposedEntry):
        return without(value, names)
    if isinstance(value, Entry):
        return None if value.name in names else value
    left = _unwrap(value, names)
    return None if isinstance(left, Tied) and not left.apart else left


def _unwrap(value: Any, names: set[str]) -> Any:
    if isinstance(value, Tied):
        return dataclasses.replace(value, apart=tuple(name for name in value.apart if name not in names))
    if isinstance(value, Composed):
        left = without(value, names)
        return dataclasses.replace(left, base=_unwrap(left.base, names)) if isinstance(left, Composed) else _unwrap(left, names)
    if not isinstance(value, Kernel) or not hasattr(value, "name"):
        return value
    base = _unwrap(value.base, names)
    return base if value.name in names else dataclasses.replace(value, base=base)


def activate(params: dict, names: Iterable[str]) -> dict:
    """A new tree in which only the named adapters act; no name at all is the base."""
    names = set(names)
    unknown = sorted(names - set(adapters(params)))
    if unknown:
        raise ValueError(f"no adapter is called {', '.join(map(repr, unknown))}; the tree holds {', '.join(adapters(params)) or 'none'}")
    return detach(params, [name for name in adapters(params) if name not in names])


def cut_points(methods: Sequence[Method], layers: int) -> tuple[int, ...]:
    """Lengths of the scanned segments that these methods' `layers` ask for; () where one stack will do."""
    everything, segments = set(range(layers)), [layers]
    for method in methods:
        wanted = getattr(method, "layers", None)
        if wanted is not None:
            ends = _ends(segments) | _ends(cuts(everything, set(wanted)))
            segments = [stop - start for start, stop in zip([0, *sorted(ends)], sorted(ends), strict=False)]
    return () if len(segments) == 1 else tuple(segments)


def _ends(segments: Sequence[int]) -> set[int]:
    return {sum(segments[: i + 1]) for i in range(len(segments))}
