"""An adapter apart from its base: what all formats are read into and written from.

    Adapter(methods=(lora(rank=4, targets=("q_proj",)),),
            pieces={"blocks/0/attn/q/kernel": Piece("LoRA", {"a": [R, in], "b": [R, out], "scale": []}),
                    "blocks/1/attn/q/kernel": Piece("LoRA", {...})})

A piece is one node or entry of one layer, or a value that layers share (`shared/vera/a`): its class, and its arrays without the layer
axis. Neither the adapter's name nor the way the stack is cut is in it, so that an adapter fits any cut and is named when it is inserted:

    adapter = extract(params, methods)          tree -> adapter
    params = insert(base, adapter, "tone")      base -> tree; anything missing, extra or misshapen is an error
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.interop.exchange.tensors import trimmed
from peftjax.nn.kernels import Entry, Kernel
from peftjax.nn.shared import STORE, SharedValue, is_shared
from peftjax.nn.tree import place, put, walk
from peftjax.peft.attach import adapters, attach
from peftjax.peft.compose import decompose

LISTED = 20
# What attaching finds again from the method's own settings and the base; everything else of a node is stored.
_NOT_STORED = ("base", "dropout", "stochastic_depth", "orthogonality", "squares", "settled")


class Piece(NamedTuple):
    """The arrays of one node or entry of one layer, by field; `kind` is the node's class."""

    kind: str
    arrays: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter apart from its base.

    Attributes:
        methods: what is attached to make room for it.
        pieces: by path with the layer's number, `blocks/7/attn/q/kernel` or `blocks/7/mlp_out`.
        dtype: that its tensors were stored in; they are float32 here.
        base: fingerprint of the base it was made for, where that is known.
        tokenizer: fingerprint of the tokenizer, where that is known.
        lineage: where it comes from, as plain data: run, data, earlier formats.
        notes: what a reader left out or derived on purpose, one sentence each.
    """

    methods: tuple[Any, ...]
    pieces: Mapping[str, Piece]
    dtype: str = "float32"
    base: str | None = None
    tokenizer: str | None = None
    lineage: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


def extract(params: dict, methods: Sequence[Any], name: str | None = None, **about: Any) -> Adapter:
    """The adapter called `name` (default: the only one) out of a tree, which is the same in whatever composition.

    Args:
        methods: those it was attached with.
        about: further fields of `Adapter`.

    Raises:
        ValueError: no such adapter, or two of its nodes on one kernel.
    """
    params = decompose(params)
    present = adapters(params)
    if name is None and len(present) == 1:
        name = present[0]
    if name not in present:
        raise ValueError(f"no adapter is called {name!r}; the tree holds {', '.join(present) or 'none'}: name one of them")
    pieces: dict[str, Piece] = {}
    for path, value in walk(params):
        for place_of, node in _nodes(path, value, name):
            for layer, key in _keys(place_of, node):
                arrays = {
                    field: np.asarray(leaf if layer is None else leaf[layer]) for field, leaf in _stored(node).items()
                }
                if key in pieces:
                    raise ValueError(f"two nodes of adapter {name!r} stand at {key}: it can be stored only as two adapters of two names")
                # Padding says how the stack is cut, and would not fit where a layer has a stack of its own.
                pieces[key] = Piece(type(node).__name__, trimmed(arrays, node.ranked) if getattr(node, "ranked", ()) else arrays)
    return Adapter(tuple(method for method in methods if method.name == name), pieces, **about)


def insert(params: dict, adapter: Adapter, name: str = "default", origin: str = "the adapter") -> dict:
    """A base tree, whole or cut, with the adapter attached under `name`. The base's arrays are shared.

    Raises:
        ValueError: lists every missing, extra and misshapen array.
    """
    methods = [dataclasses.replace(method, name=name) for method in adapter.methods]
    return fill(attach(params, methods, jax.random.key(0)), adapter, name, origin)


def fill(params: dict, adapter: Adapter, name: str = "default", origin: str = "the adapter") -> dict:
    """A tree in which the adapter's methods are attached under `name`, with the adapter's values in them. Errors as in `insert`."""
    expected = {key: (node, layer) for path, value in walk(params) for p, node in _nodes(path, value, name)
                for layer, key in _keys(p, node)}
    _check(expected, adapter, origin)
    for path, value in list(walk(params)):
        if any(True for _ in _nodes(path, value, name)):
            params = put(params, path, _filled(path, value, name, adapter))
    return params


def digest(adapter: Adapter) -> str:
    """sha256 (hex) over all pieces: path, class, field, shape and bytes."""
    total = hashlib.sha256()
    for path, piece in sorted(adapter.pieces.items()):
        for field, array in sorted(piece.arrays.items()):
            total.update(f"{path} {piece.kind} {field} {list(array.shape)} {array.dtype.name}\n".encode())
            total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def _nodes(path: str, value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """(path of the piece, node) of those nodes at a path that belong to the adapter. Of what layers share, the path is without its name."""
    if isinstance(value, SharedValue):
        if value.name == name:
            yield path.replace(f"{STORE}/{name}/", f"{STORE}/", 1), value
    elif isinstance(value, Entry) and value.name == name:
        yield path.rpartition("/")[0], value
    while isinstance(value, Kernel):
        if getattr(value, "name", None) == name:
            yield path, value
        value = getattr(value, "base", None)


def _stored(node: Any) -> dict[str, Any]:
    """The leaves of a node that are stored, by field."""
    leaves = {field: getattr(node, field) for field in node.array_fields if field not in _NOT_STORED}
    return {field: leaf for field, leaf in leaves.items() if leaf is not None and not is_shared(leaf)}


def _keys(path: str, node: Any) -> list[tuple[int | None, str]]:
    """(index along the layer axis, key of the piece) for each layer of a node."""
    stored = _stored(node)
    if not stored:  # all that it has is shared
        return []
    logical, layers = place(path, next(iter(stored.values())).shape[0] if path.startswith("blocks") else 0)
    if layers is None:
        return [(None, path)]
    return [(i, logical.replace("blocks/", f"blocks/{layer}/", 1)) for i, layer in enumerate(layers)]


def _check(expected: Mapping[str, tuple[Any, int | None]], adapter: Adapter, origin: str) -> None:
    lines = [f"missing   {key} ({type(node).__name__})" for key, (node, _) in expected.items() if key not in adapter.pieces]
    lines += [f"extra     {key} ({piece.kind})" for key, piece in adapter.pieces.items() if key not in expected]
    for key, (node, layer) in expected.items():
        piece = adapter.pieces.get(key)
        if piece is None:
            continue
        if piece.kind != type(node).__name__:
            lines.append(f"other     {key}: stored {piece.kind}, the methods put {type(node).__name__} there")
            continue
        wanted = {field: leaf.shape if layer is None else leaf.shape[1:] for field, leaf in _stored(node).items()}
        for field in sorted(wanted.keys() | piece.arrays.keys()):
            shape = tuple(piece.arrays[field].shape) if field in piece.arrays else None
            if shape is None or field not in wanted:
                lines.append(f"{'missing  ' if shape is None else 'extra    '} {key} {field}")
            elif not _fits(shape, wanted[field], field in getattr(node, "ranked", ())):
                lines.append(f"misshapen {key} {field}: stored {list(shape)}, this base wants {list(wanted[field])}")
    if lines:
        more = f"\n  and {len(lines) - LISTED} more" if len(lines) > LISTED else ""
        raise ValueError(f"{origin} does not fit this base:\n  " + "\n  ".join(sorted(lines)[:LISTED]) + more)


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...], ranked: bool) -> bool:
    return shape == wanted or (ranked and len(shape) == len(wanted) and shape[0] <= wanted[0] and shape[1:] == wanted[1:])


def _filled(path: str, value: Any, name: str, adapter: Adapter) -> Any:
    """A node, with what it wraps, in which the adapter's arrays stand."""
    own = dict(_nodes(path, value, name))
    if isinstance(value, Kernel) and value is not next(iter(own.values())):
        return dataclasses.replace(value, base=_filled(path, value.base, name, adapter))
    (place_of, node), = own.items()
    new = {}
    for field, leaf in _stored(node).items():
        parts = [adapter.pieces[key].arrays[field] for _, key in _keys(place_of, node)]
        stacked = leaf.ndim > 0 and _keys(place_of, node)[0][0] is not None
        shape = leaf.shape[1:] if stacked else leaf.shape
        parts = [_padded(np.asarray(part), shape) for part in parts]
        # A new buffer: what is trained is donated later, and must not share memory with the adapter.
        new[field] = jnp.array(np.stack(parts) if stacked else parts[0], leaf.dtype, copy=True)
    return dataclasses.replace(node, **new)


def _padded(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Zero rows behind a factor whose layer has a lower rank than its stack."""
    if array.shape == shape:
        return array
    return np.pad(array, [(0, shape[0] - array.shape[0])] + [(0, 0)] * (array.ndim - 1))
