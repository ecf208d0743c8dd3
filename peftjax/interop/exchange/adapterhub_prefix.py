"""AdapterHub's prefix tuning, read and written (see `adapterhub_methods`).

| flat | entry | tensors behind <trunk>.prefix_tuning.prefix_tunings.N.self_prefix. |
|---|---|---|
| yes | Prefix | control_trans (P · L · 2 · G K): keys and values of each layer that has a prefix |
| no | PrefixEncoder | wte.weight (P, D); control_trans.0.weight (M, D), .bias; control_trans.2.weight (L · 2 · G K, M), .bias |

Every attention layer, one without a prefix too, has a copy of them all, at <attention>.prefix_tuning.pool, and of its own a gate:
<attention>.prefix_tuning.prefix_gates.N.weight (1 or 2, D), .bias. Positions of tokens begin at 0. With PyTorch's scaled-dot-product
attention, its default, AdapterHub computes with a wrong mask; what is held to it is what it computes with attn_implementation="eager".
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from peftjax.interop.exchange.adapter import Adapter, Piece
from peftjax.interop.exchange.adapterhub_file import Stored
from peftjax.interop.exchange.adapterhub_table import ACTIVATION, DROPOUT, Asked, Held, written
from peftjax.interop.exchange.tensors import Field, Tensor
from peftjax.nn.context import KEYS_VALUES
from peftjax.nn.shared import STORE
from peftjax.peft.prefix import prefix

ARCHITECTURE, POOL, GATES = "prefix_tuning", "prefix_tunings", "prefix_gates"
KINDS = ("Prefix", "PrefixEncoder")
SHARED = ("embedding", "down", "down_bias")
FIELDS = (Field("prefix_length", "length", 30), DROPOUT)
_GATE = (Tensor("gate", "weight", ("gates", "D")), Tensor("gate_bias", "bias", ("gates",)))


def prefix_problem(asked: Asked) -> str:
    """Why what a config asks for cannot be held, "" where it can."""
    config, base = asked.config, asked.modules.config
    if not config["flat"] and ACTIVATION.read(config) is None:
        return f"non_linearity {config['non_linearity']!r} is not supported"
    return "" if base.width == base.heads * base.head_size else (
        f"a head of AdapterHub's prefixes is {base.width // base.heads} wide, and here it is {base.head_size}"
    )


def read_prefix(asked: Asked, stored: Stored) -> tuple[dict[str, Piece], tuple[prefix, ...], list[str]]:
    """(pieces, methods, notes); complaints go to `stored`."""
    config, host, layers = asked.config, asked.host, asked.layers
    rows, sizes, gates = _rows(config), _sizes(asked), _gates(config)
    taken = stored.take(POOL, f"{host.trunk}.prefix_tuning", rows, sizes)
    for place in _copies(asked):
        copy = stored.take(POOL, place, rows, sizes) if stored.holds(POOL, place) else taken
        if taken and copy and any(not np.array_equal(array, copy[0][field]) for field, array in taken[0].items()):
            stored.problems.append(f"other     {place}: differs from {host.trunk}.prefix_tuning, of which it is a copy")
    own = {layer: {} for layer in layers}
    for layer in layers if gates else ():
        gate = stored.take(GATES, f"{host.self_attention}.prefix_tuning".format(layer=layer), _GATE, sizes | {"gates": gates})
        own[layer] = gate[0] if gate else {}
    if not taken or not layers:
        return {}, (), []
    (arrays,) = taken
    kind = "Prefix" if config["flat"] else "PrefixEncoder"
    pieces = {} if config["flat"] else {f"{STORE}/prefix/{field}": Piece("SharedValue", {"value": arrays[field]}) for field in SHARED}
    for number, layer in enumerate(layers):
        pieces[f"blocks/{layer}/attn/{KEYS_VALUES}"] = Piece(kind, _of_layer(arrays, number, len(layers), config) | own[layer])
    method = prefix(
        **{field.ours: field.read(config) for field in FIELDS}, hidden=None if config["flat"] else config["bottleneck_size"],
        activation=ACTIVATION.read(config) or "tanh", offset=False, gates=gates, gating="mean" if gates else "token",
        layers=None if len(layers) == asked.modules.config.layers else tuple(layers),
    )  # fmt: skip
    note = "its gates are means over a whole row of a batch, padding included; here they are those over the tokens of a text"
    return pieces, (method,), [note] if gates else []


def prefix_content(held: Held, name: str, shared: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(config fields, tensors by key) of a prefix.

    Args:
        shared: what the layers share of its network, by field.

    Raises:
        ValueError: what AdapterHub has no place for.
    """
    (method,), base, host = held.methods, held.modules.config, held.host
    wrong = [what for what, bad in {
        "offset=True: its positions begin at 0": method.offset,
        "slides=True on a base with a window": method.slides and getattr(base, "window", None) is not None,
        "a gate of each token: its gates are means over a row, gating='mean'": method.gates and method.gating != "mean",
    }.items() if bad]  # fmt: skip
    if wrong:
        raise ValueError(f"AdapterHub has no place for a prefix with {'; '.join(wrong)}")
    config = written(FIELDS, {field.ours: getattr(method, field.ours) for field in FIELDS}) | {
        "flat": method.hidden is None, "leave_out": held.left_out({path: KEYS_VALUES for path in held.pieces}),
        "use_gating": bool(method.gates), "shared_gating": method.gates != 2,
    }  # fmt: skip
    if method.hidden is not None:
        config |= written((ACTIVATION,), {"activation": method.activation}) | {"bottleneck_size": method.hidden}
    asked = Asked({"non_linearity": "tanh"} | config, held.modules)
    why = prefix_problem(asked)
    if why:
        raise ValueError(f"AdapterHub has no place for this prefix: {why}")
    arrays = dict(shared) | _of_all([held.pieces[f"blocks/{layer}/attn/{KEYS_VALUES}"].arrays for layer in asked.layers], config)
    tensors = {}
    for place in (f"{host.trunk}.prefix_tuning", *_copies(asked)):
        tensors |= {f"{place}.{POOL}.{name}.{row.suffix}": row.theirs(arrays[row.field]) for row in _rows(config)}
    for layer in asked.layers if method.gates else ():
        own, place = held.pieces[f"blocks/{layer}/attn/{KEYS_VALUES}"].arrays, f"{host.self_attention}.prefix_tuning".format(layer=layer)
        tensors |= {f"{place}.{GATES}.{name}.{row.suffix}": row.theirs(own[row.field]) for row in _GATE}
    return config, tensors


def is_prefixed(adapter: Adapter) -> bool:
    """Whether a prefix is among an adapter's pieces."""
    return any(piece.kind in KINDS for piece in adapter.pieces.values())


def _rows(config: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """The tensors that all layers share, in the order of theirs."""
    if config["flat"]:
        return (Tensor("flat", "self_prefix.control_trans", ("P L 2 GK",)),)
    return (
        Tensor("embedding", "self_prefix.wte.weight", ("P", "D")),
        Tensor("down", "self_prefix.control_trans.0.weight", ("M", "D")), Tensor("down_bias", "self_prefix.control_trans.0.bias", ("M",)),
        Tensor("up", "self_prefix.control_trans.2.weight", ("L 2 GK", "M")),
        Tensor("up_bias", "self_prefix.control_trans.2.bias", ("L 2 GK",)),
    )  # fmt: skip


def _sizes(asked: Asked) -> dict[str, int]:
    config, base = asked.config, asked.modules.config
    wide, length = len(asked.layers) * 2 * base.kv_heads * base.head_size, config["prefix_length"]
    return {"P": length, "D": base.width, "M": config["bottleneck_size"], "L 2 GK": wide, "P L 2 GK": length * wide}


def _gates(config: Mapping[str, Any]) -> int:
    return 0 if not config["use_gating"] else 1 if config["shared_gating"] else 2


def _copies(asked: Asked) -> Iterable[str]:
    return [f"{asked.host.self_attention}.prefix_tuning.pool".format(layer=layer) for layer in range(asked.modules.config.layers)]


def _of_layer(arrays: Mapping[str, np.ndarray], number: int, count: int, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """What is one layer's of their tensors."""
    if config["flat"]:
        parts = arrays["flat"].reshape(config["prefix_length"], count, 2, -1)
        return {name: np.ascontiguousarray(parts[:, number, at]) for at, name in enumerate("kv")}
    up = arrays["up"].reshape(count, -1, arrays["up"].shape[-1])[number]
    return {"up": np.ascontiguousarray(up.T), "up_bias": arrays["up_bias"].reshape(count, -1)[number]}


def _of_all(layers: list[Mapping[str, np.ndarray]], config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Back, from the arrays of all layers."""
    if config["flat"]:
        return {"flat": np.stack([np.stack([own["k"], own["v"]], axis=1) for own in layers], axis=1).reshape(-1)}
    return {"up": np.concatenate([own["up"].T for own in layers]), "up_bias": np.concatenate([own["up_bias"] for own in layers])}
