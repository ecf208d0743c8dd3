"""AdapterHub's ReFT as a table (see `adapterhub_methods`).

It has two units, of the first and of the last positions, or one where they are tied; a unit of no positions is read by nothing. Edits are
as in `peftjax.peft.reft`. Its files do not say whether the projection is subtracted: what it saves as DiReFT, it loads as NoReFT, and so it
is read here. A DiReFT without an activation is written as the NoReFT that computes the same, of W + R in the place of W:

    Rᵀ(W h + b) = Rᵀ((W + R) h + b - R h)

The orthonormal rows of LoReFT are those of PyTorch's parametrisation (torch.nn.utils.parametrizations.orthogonal, with trivialisation):

    Rᵀ = base Q,    Q [D, R] = (I - τ₁ v₁ v₁ᵀ) ... (I - τ_R v_R v_Rᵀ) with signs,    τ_i = 2 / v_iᵀ v_i

where v_i is column i of originalᵀ below a one, and the signs are the diagonal of `original` cut to whole numbers. Written are
original = -I, of which Q = I, and a base whose first columns are Rᵀ.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from peftjax.interop.exchange.adapterhub_table import ACTIVATIONS, Asked, Held, HubMethod, Taken, written
from peftjax.interop.exchange.modules import layer_of
from peftjax.interop.exchange.tensors import Field, Tensor
from peftjax.peft.reft import reft

_ROUNDING = 1e-5  # of what counts as orthonormal


def householder(original: np.ndarray, base: np.ndarray) -> np.ndarray:
    """The rows R [R, D] of PyTorch's `original` [R, D] and `base` [D, D], computed in float64, as float32."""
    below = np.tril(np.asarray(original, np.float64).T, -1)
    rank = below.shape[1]
    q = np.eye(*below.shape)
    for i in reversed(range(rank)):
        v = below[:, i] + np.eye(len(below))[i]
        q -= np.outer(2 / (v @ v) * v, v @ q)
    return (np.asarray(base, np.float64) @ (q * np.trunc(np.diag(original)))).T.astype(np.float32)


def completed(rows: np.ndarray) -> np.ndarray:
    """An orthogonal matrix [D, D] whose first columns are the rows [R, D], as they are where they are orthonormal, else made so."""
    wide = np.asarray(rows, np.float64)
    q, r = np.linalg.qr(np.concatenate([wide.T, np.eye(wide.shape[1])], axis=1))
    first = (q[:, : len(wide)] * np.sign(np.diag(r)[: len(wide)])).T
    if np.abs(wide @ wide.T - np.eye(len(wide))).max() < _ROUNDING:
        first = wide
    return np.concatenate([first.T, q[:, len(wide) :]], axis=1).astype(np.float32)


def _units(config: Mapping[str, Any]) -> list[int]:
    """Those that edit something."""
    if config["tied_weights"]:
        return [0]
    return [unit for unit, positions in enumerate(("prefix_positions", "suffix_positions")) if config[positions]]


def _rows(config: Mapping[str, Any]) -> tuple[Tensor, ...]:
    rows = []
    for unit in range(1 if config["tied_weights"] else 2):
        stem = f"units.{unit}"
        rows += [Tensor(f"source/{unit}", f"{stem}.learned_source.weight", ("R", "D"))]
        rows += [Tensor(f"source_bias/{unit}", f"{stem}.learned_source.bias", ("R",))]
        if config["orthogonality"]:
            rows += [Tensor(f"original/{unit}", f"{stem}.projection.parametrizations.weight.original", ("R", "D"))]
            rows += [Tensor(f"base/{unit}", f"{stem}.projection.parametrizations.weight.0.base", ("D", "D"))]
        else:
            rows += [Tensor(f"projection/{unit}", f"{stem}.projection.weight", ("R", "D"))]
    return tuple(rows)


def _settled(taken: Taken, asked: Asked) -> Taken:
    """The units that edit something, one behind another, and the rows that are orthonormal there."""
    arrays = {}
    for path, own in taken.arrays.items():
        units = []
        for unit in _units(asked.config):
            projection = own.get(f"projection/{unit}")
            if projection is None:
                projection = householder(own[f"original/{unit}"], own[f"base/{unit}"])
                if np.abs(projection @ projection.T - np.eye(len(projection))).max() > 1e-3:
                    signs = np.diag(own[f"original/{unit}"])
                    raise ValueError(f"{path}: the diagonal of `original` in unit {unit} is {signs}, which AdapterHub cuts to "
                                     f"{np.trunc(signs)}: its rows are not orthonormal, and this is no LoReFT")
            units.append({"projection": projection, "source": own[f"source/{unit}"], "source_bias": own[f"source_bias/{unit}"]})
        arrays[path] = {field: np.stack([unit[field] for unit in units]) for field in units[0]} | {"scale": np.float32(1)}
    return taken._replace(arrays=arrays)


def _spread(arrays: Mapping[str, np.ndarray], config: Mapping[str, Any], held: Held) -> dict[str, np.ndarray]:
    """Back: a unit that edits nothing is a copy of the one that does."""
    used, found = _units(config), {}
    if not held.setting("subtract_projection"):
        arrays = dict(arrays) | {"source": arrays["source"] + arrays["projection"]}
    for unit in range(1 if config["tied_weights"] else 2):
        at = used.index(unit) if unit in used else 0
        found |= {f"{field}/{unit}": arrays[field][at] for field in ("source", "source_bias")}
        if config["orthogonality"]:
            base = completed(arrays["projection"][at])
            found |= {f"base/{unit}": base, f"original/{unit}": np.float32(0) - np.eye(config["r"], len(base), dtype=np.float32)}
        else:
            found[f"projection/{unit}"] = arrays["projection"][at]
    return found


def _problem(asked: Asked) -> str:
    config, width = asked.config, asked.modules.config.width
    if not config.get("subtract_projection", True):
        return "subtract_projection False: AdapterHub itself does not heed it, and computes a NoReFT"
    if config["orthogonality"] and config["r"] >= width:
        return f"r {config['r']}: as many orthonormal rows as the states are wide, {width}, are kept by another map in PyTorch"
    return "" if _units(config) and config["prefix_positions"] + config["suffix_positions"] else "it edits no positions"


def _notes(asked: Asked) -> Iterable[str]:
    config = asked.config
    if config["dropout"]:
        yield f"dropout {config['dropout']} is on the edit here, and on the whole edited state there; it acts at training time only"
    if not config["orthogonality"]:
        yield "it is read as NoReFT, as AdapterHub reads it; its files do not say whether it was a DiReFT"
    if not config["tied_weights"] and len(_units(config)) < 2:
        yield "the unit of no positions is read by nothing and was left out"


def _refts(found: Mapping[str, Any], asked: Asked, settings: Mapping[str, Any]) -> Iterable[reft]:
    layers = None if len(found) == asked.modules.config.layers else tuple(sorted(layer_of(path) for path in found))
    yield reft(**settings, init="random", layers=layers)


def _config(held: Held) -> dict[str, Any]:
    config = written(REFT.fields, {field.ours: held.setting(field.ours) for field in REFT.fields})
    layers = held.layers({path: "block_out" for path in held.pieces})
    config["layers"] = "all" if len(layers) == held.modules.config.layers else layers
    if not held.setting("subtract_projection") and held.setting("activation") != "linear":
        raise ValueError("AdapterHub has no place for DiReFT, whose files it loads as NoReFT; without an activation it would be one")
    why = _problem(Asked(config, held.modules))
    if why:
        raise ValueError(f"AdapterHub has no place for this ReFT: {why}")
    return config


REFT = HubMethod(
    "ReFT", reft, "reft", "refts", _rows, lambda asked: {"block_out": f"{asked.host.block}.reft_layer"},
    lambda asked, path: {"R": asked.config["r"], "D": asked.modules.config.width}, _refts, _config, settle=_settled, spread=_spread,
    constant=lambda config: {"scale": np.float32(1)},
    fields=(
        Field("r", "rank", 1), Field("orthogonality", "orthogonal", True), Field("prefix_positions", "prefix_positions", 3),
        Field("suffix_positions", "suffix_positions", 0), Field("tied_weights", "tied", False), Field("dropout", "dropout", 0.05),
        Field("non_linearity", "activation", None, {None: "linear", **ACTIVATIONS}),
    ),
    off={"output_reft": "ReFT elsewhere than behind blocks"}, problem=_problem, notes=_notes,
)  # fmt: skip
