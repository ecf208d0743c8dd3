"""AdapterHub's bottlenecks as tables (see `adapterhub_methods`).

What a bottleneck computes follows from its flags and from the host. R: residual stream into the sublayer, u: its output, f: the bottleneck.

| flags original_ln_before, original_ln_after, residual_before_ln | `reads` here | Llama, Mistral, GPT-2 | BERT, RoBERTa |
|---|---|---|---|
| T T T (seq_bn, Pfeiffer) | "sum" | R + u + f(R + u) | LN(R + u + f(LN(R + u))) |
| F T T (double_seq_bn, Houlsby) | "output" | R + u + f(u) | LN(R + u + f(u)) |
| T F F (AdapterPlus) | "sum"; on BERT "output" at block_out | R + u + f(R + u) | x = LN(R + u); x + f(x) |
| F T T with is_parallel | "residual" | R + u + f(R) | LN(R + u + f(R)) |
"""

import collections
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from peftjax.interop.exchange.adapterhub_table import ACTIVATION, DROPOUT, Asked, Held, HubMethod, written
from peftjax.interop.exchange.modules import layer_of
from peftjax.interop.exchange.tensors import Field, Tensor
from peftjax.peft.bottleneck import bottleneck
from peftjax.peft.compacter import compacter
from peftjax.peft.invertible import invertible

# (original_ln_before, original_ln_after, residual_before_ln, is_parallel) -> what is read.
FLAGS = ("original_ln_before", "original_ln_after", "residual_before_ln", "is_parallel")
READS = {
    (True, True, True, False): "sum",
    (False, True, True, False): "output",
    (True, False, False, False): "behind",  # of the whole block: "sum" on pre-norm hosts, a site of its own on post-norm ones
    (False, True, True, True): "residual",
}
INITS = {"bert": "bert", "mam_adapter": "identity", "houlsby": "houlsby"}
NORMS = {(False, False): "none", (True, False): "before", (False, True): "after", (True, True): "both"}


def _reads(config: Mapping[str, Any]) -> str | None:
    """What is read by these flags; None where they are of no method here."""
    return READS.get(tuple(bool(config[flag]) if config[flag] in (True, False) else config[flag] for flag in FLAGS))


def _sites(asked: Asked) -> dict[str, str]:
    config, host = asked.config, asked.host
    if _reads(config) == "behind" and host.post_norm:
        return {"block_out": host.output}
    places = {"attn_out": (config["mh_adapter"], host.attention), "mlp_out": (config["output_adapter"], host.output)}
    return {site: place for site, (on, place) in places.items() if on}


def _size(asked: Asked, path: str) -> int:
    factor, width = asked.config["reduction_factor"], asked.modules.config.width
    if isinstance(factor, Mapping):
        factor = factor.get(str(layer_of(path)), factor.get("default"))
    return max(1, int(width // factor))


def _flags_problem(asked: Asked) -> str:
    flags = {flag: asked.config[flag] for flag in FLAGS}
    reads = _reads(asked.config)
    if reads is None:
        return f"the flags {flags} make something that is not supported"
    if reads == "behind" and asked.host.post_norm and asked.config["mh_adapter"]:
        return "an adapter behind the norm of attention has no site here"
    return ""


def _bottleneck_rows(config: Mapping[str, Any]) -> tuple[Tensor, ...]:
    linear = "adapter_down.1" if config["ln_before"] else "adapter_down.0"
    rows = (
        Tensor("down", f"{linear}.weight", ("M", "D")), Tensor("down_bias", f"{linear}.bias", ("M",)),
        Tensor("up", "adapter_up.weight", ("D", "M"), flip=True), Tensor("up_bias", "adapter_up.bias", ("D",)),
    )  # fmt: skip
    norms = {"adapter_norm_before": "norm_before", "adapter_down.0": "norm_before"} if config["ln_before"] else {}
    norms |= {"adapter_norm_after": "norm_after"} if config["ln_after"] else {}
    for theirs, ours in norms.items():
        rows += (Tensor(ours, f"{theirs}.weight", ("D",)), Tensor(f"{ours}_bias", f"{theirs}.bias", ("D",)))
    if config["use_gating"]:
        rows += (Tensor("gate", "gate.weight", ("1", "D")), Tensor("gate_bias", "gate.bias", ("1",)))
    axis = {"learned": "1", "channel": "D"}.get(config["scaling"])
    return rows if axis is None else (*rows, Tensor("scale", "scaling", (axis,)))


def _scale(config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {} if isinstance(config["scaling"], str) else {"scale": np.float32(config["scaling"])}


def _bottlenecks(found: Mapping[str, Mapping[str, int]], asked: Asked, settings: Mapping[str, Any]) -> Iterable[bottleneck]:
    """One method for all sites of one size on the same layers."""
    settings = dict(settings) | {
        "reads": _ours(asked), "norm": NORMS[bool(asked.config["ln_before"]), bool(asked.config["ln_after"])],
        "init": INITS.get(asked.config["init_weights"], "bert"),  # how it began is of no consequence now
        "gate": "mean" if asked.config["use_gating"] else "none",
    }
    for size, on, sites in _by_size(found):
        yield bottleneck(size=size, sites=sites, layers=None if len(on) == asked.modules.config.layers else on, **settings)


def _ours(asked: Asked) -> str:
    """What is read, as our methods say it."""
    reads = _reads(asked.config)
    return reads if reads != "behind" else "output" if asked.host.post_norm else "sum"


def _by_size(found: Mapping[str, Mapping[str, int]]) -> Iterable[tuple[int, tuple[int, ...], tuple[str, ...]]]:
    """(size, layers, sites) of those that lie on the same layers."""
    layers: dict[tuple[str, int], list[int]] = collections.defaultdict(list)
    for path, sizes in found.items():
        layers[path.rpartition("/")[2], sizes["M"]].append(layer_of(path))
    groups: dict[tuple[int, tuple[int, ...]], list[str]] = collections.defaultdict(list)
    for (site, size), on in layers.items():
        groups[size, tuple(on)].append(site)
    for (size, on), sites in sorted(groups.items()):
        yield size, on, tuple(sites)


def _bottleneck_config(held: Held) -> dict[str, Any]:
    names = ("reads", "norm", "init", "gate", *(field.ours for field in BOTTLENECK.fields))
    read = {name: held.setting(name) for name in names}
    config = _placed(held, read["reads"])
    if read["gate"] == "token":
        raise ValueError("AdapterHub's gates are means over a row, gate='mean'; a gate of each token has no place there")
    if any("annealed" in piece.arrays for piece in held.pieces.values()):
        raise ValueError("AdapterHub has no place for an activation that is annealed; attach it with anneal=False")
    sizes: dict[int, set[int]] = collections.defaultdict(set)
    for path, piece in held.pieces.items():
        sizes[layer_of(path)].add(piece.arrays["down"].shape[0])
    uneven = [layer for layer, here in sizes.items() if len(here) > 1]
    if uneven:
        raise ValueError(f"AdapterHub has one bottleneck size a layer; layers {uneven} have several")
    before, after = next(flags for flags, norm in NORMS.items() if norm == read["norm"])
    scale = read["scale"] if isinstance(read["scale"], str) else float(read["scale"])  # it refuses whole numbers
    return config | {
        **written(BOTTLENECK.fields, read), "scaling": scale, "ln_before": before, "ln_after": after, "use_gating": read["gate"] == "mean",
        "init_weights": next((theirs for theirs, ours in INITS.items() if ours == read["init"]), "bert"),
        "reduction_factor": _factor({layer: next(iter(here)) for layer, here in sizes.items()}, held),
    }


def _placed(held: Held, reads: str) -> dict[str, Any]:
    """Their flags, sites and layers."""
    sites = {path: path.rpartition("/")[2] for path in held.pieces}
    known = {"attn_out", "mlp_out"}
    if held.host.post_norm and set(sites.values()) == {"block_out"} and reads == "output":
        reads, known = "behind", {"block_out"}
    if not set(sites.values()) <= known:
        homeless = sorted(set(sites.values()) - known)
        raise ValueError(f"AdapterHub has no place for bottlenecks at {', '.join(homeless)}; it has {', '.join(sorted(known))}")
    flags = next((flags for flags, meaning in READS.items() if meaning == reads), None)
    if flags is None:
        raise ValueError(f"AdapterHub has no bottleneck that reads {reads!r}; it has {', '.join(sorted(set(READS.values()) - {'behind'}))}")
    return dict(zip(FLAGS, flags, strict=True)) | {
        "mh_adapter": "attn_out" in sites.values(), "output_adapter": bool(set(sites.values()) - {"attn_out"}),
        "leave_out": held.left_out(sites),
    }


def _factor(sizes: Mapping[int, int], held: Held) -> float | int | dict[str, float | int]:
    """The reduction factor, one or one a layer, of which AdapterHub makes these sizes."""
    width = held.modules.config.width
    asked = {method.reduction_factor for method in held.methods if method.size is None}
    if len(asked) == 1 and all(max(1, int(width // next(iter(asked)))) == size for size in sizes.values()):
        return next(iter(asked))
    factors = {layer: _factor_of(size, width) for layer, size in sorted(sizes.items())}
    if len(set(factors.values())) == 1:
        return next(iter(factors.values()))
    return {str(layer): factor for layer, factor in factors.items()} | {"default": next(iter(factors.values()))}


def _factor_of(size: int, width: int) -> float | int:
    if width % size == 0:
        return width // size
    factor = width / size  # floor(width / factor) may fall one short of the size by rounding
    return factor if int(width // factor) == size else float(np.nextafter(factor, 0))


def _gates(asked: Asked) -> Iterable[str]:
    if asked.config["use_gating"]:
        yield "its gates are means over a whole row of a batch, padding included; here they are those over the tokens of a text"


_OFF = {"cross_adapter": "cross-attention adapters", "adapter_residual_before_ln": "the residual inside the adapter's own norm"}
BOTTLENECK = HubMethod(
    "Bottleneck", bottleneck, None, "adapters", _bottleneck_rows, _sites,
    lambda asked, path: {"M": _size(asked, path), "D": asked.modules.config.width}, _bottlenecks, _bottleneck_config,
    asked=lambda config: not config["phm_layer"], constant=_scale, off=_OFF, problem=_flags_problem, notes=_gates,
    fields=(ACTIVATION, Field("scaling", "scale", 1.0), DROPOUT, Field("stochastic_depth", "stochastic_depth", 0.0)),
)

# ---- Compacter ---------------------------------------------------------------------------------------------------------------------

_RULE = Tensor("rule", "phm_rule", ("N", "N", "N"))
_FACTORS = (
    Tensor("down_left", "adapter_down.0.W_left", ("N", "D / N", "R"), order=(0, 2, 1)),
    Tensor("down_right", "adapter_down.0.W_right", ("N", "R", "M / N")), Tensor("down_bias", "adapter_down.0.b", ("M",)),
    Tensor("up_left", "adapter_up.W_left", ("N", "M / N", "R"), order=(0, 2, 1)),
    Tensor("up_right", "adapter_up.W_right", ("N", "R", "D / N")), Tensor("up_bias", "adapter_up.b", ("D",)),
)


def _compacter_sizes(asked: Asked, path: str) -> dict[str, int]:
    width, size, parts = asked.modules.config.width, _size(asked, path), asked.config["phm_dim"]
    return {"N": parts, "R": asked.config["phm_rank"], "D": width, "M": size, "D / N": width // parts, "M / N": size // parts}


def _compacter_problem(asked: Asked) -> str:
    if isinstance(asked.config["scaling"], str):
        return f"scaling {asked.config['scaling']!r}: Compacter has no scale that is trained here"
    sizes = sorted({_size(asked, f"blocks/{layer}/mlp_out") for layer in asked.layers})
    if len(sizes) > 1:
        return f"reduction_factor makes Compacters of sizes {sizes}, and one adapter here has one"
    return _flags_problem(asked)


def _compacters(found: Mapping[str, Mapping[str, int]], asked: Asked, settings: Mapping[str, Any]) -> Iterable[compacter]:
    for size, on, sites in _by_size(found):
        layers = None if len(on) == asked.modules.config.layers else on
        yield compacter(size=size, sites=sites, reads=_ours(asked), layers=layers, **settings)


def _compacter_config(held: Held) -> dict[str, Any]:
    settings = {field.ours: held.setting(field.ours) for field in COMPACTER.fields}
    scale = held.one("scale", (float(piece.arrays["scale"]) for piece in held.pieces.values()))
    sizes = {layer_of(path): piece.arrays["down_bias"].shape[0] for path, piece in held.pieces.items()}
    factor = _factor({layer: held.one("size of Compacter", sizes.values()) for layer in sizes}, held)
    config = _placed(held, held.setting("reads")) | written(COMPACTER.fields, settings)
    return config | {"phm_layer": True, "scaling": scale, "reduction_factor": factor}


COMPACTER = HubMethod(
    "Compacter", compacter, None, "adapters", lambda config: _FACTORS, _sites, _compacter_sizes, _compacters, _compacter_config,
    asked=lambda config: bool(config["phm_layer"]), constant=_scale, shared=(_RULE,), problem=_compacter_problem,
    fields=(ACTIVATION, DROPOUT, Field("phm_dim", "phm_dim", 4), Field("phm_rank", "rank", 1), Field("learn_phm", "learn_rule", True)),
    off=_OFF | {
        "use_gating": "a gate on Compacter", "ln_before": "a norm before Compacter", "ln_after": "a norm behind Compacter",
        "shared_W_phm": "factors that all layers share", "factorized_phm_rule": "a rule in factors", "phm_bias": "Compacter without biases",
        "factorized_phm_W": "whole matrices in the place of Compacter's factors", "shared_phm_rule": "a rule of its own for each matrix",
        "stochastic_depth": "Compacter with stochastic depth",
    },
)  # fmt: skip

# ---- invertible adapters -----------------------------------------------------------------------------------------------------------

_COUPLING = tuple(
    Tensor(f"{ours}_{field}", f"{theirs}.{number}.{leaf}", axes, flip=field == "up")
    for ours, theirs, size, (wide_in, wide_out) in (("f", "F", "M", ("D2", "D1")), ("g", "G", "m", ("D1", "D2")))
    for number, leaf, field, axes in (
        (0, "weight", "down", (size, wide_in)), (0, "bias", "down_bias", (size,)), (2, "weight", "up", (wide_out, size)),
        (2, "bias", "up_bias", (wide_out,)),
    )
)  # fmt: skip


def _coupling_sizes(asked: Asked, path: str) -> dict[str, int]:
    width, factor = asked.modules.config.width, asked.config["inv_adapter_reduction_factor"]
    first, second = width // 2, width - width // 2
    return {"D1": first, "D2": second, "M": max(1, int(second // factor)), "m": max(1, int(first // factor))}


def _coupling_problem(asked: Asked) -> str:
    kind = asked.config["inv_adapter"]
    return "" if kind == "nice" else f"inv_adapter {kind!r} is not here: it scales what 'nice', the one that is, adds to"


def _coupling_config(held: Held) -> dict[str, Any]:
    settings = {field.ours: held.setting(field.ours) for field in INVERTIBLE.fields}
    return written(INVERTIBLE.fields, settings) | {"inv_adapter": "nice"}


INVERTIBLE = HubMethod(
    "Coupling", invertible, None, "invertible_adapters", lambda config: _COUPLING, lambda asked: {"embed_out": asked.host.trunk},
    _coupling_sizes, lambda found, asked, settings: (invertible(**settings),), _coupling_config,
    asked=lambda config: bool(config["inv_adapter"]), problem=_coupling_problem, stacked=False, beside=True,
    fields=(ACTIVATION, Field("inv_adapter_reduction_factor", "reduction_factor", 2)),
)  # fmt: skip
