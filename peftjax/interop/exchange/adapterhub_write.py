"""An adapter into a directory that AdapterHub's `adapters` loads, by the tables of adapterhub_table.

    write_adapterhub("out/adapterhub", adapter, base.config, name="tone")

One bottleneck config and one LoRA config, in a union where there are both; a trained head goes beside them. What AdapterHub has no place
for (LoRA on o_proj or gate_proj of Llama, several ranks, a site of ours alone) is an error that names it.
"""

import collections
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from peftjax.interop.exchange import adapterhub_table as t
from peftjax.interop.exchange.adapter import Adapter, Piece
from peftjax.interop.exchange.folder import write_tensors
from peftjax.interop.exchange.heads import flexible, head_content, of_head
from peftjax.interop.exchange.modules import Modules, layer_of, logical
from peftjax.interop.hf import document_from_config
from peftjax.interop.json_file import write_json
from peftjax.peft.bottleneck import bottleneck
from peftjax.peft.lora import lora


def write_adapterhub(folder: str | Path, adapter: Adapter, base_config: Any, name: str = "default", base_uri: str = "") -> None:
    """Writes the directory, configs last.

    Args:
        name: of the adapter in AdapterHub; part of every key.
        base_uri: written as model_name.

    Raises:
        ValueError: pieces that AdapterHub has no place for; nothing is written then.
    """
    folder = Path(folder)
    tensors, document, head, head_document = adapterhub_content(adapter, base_config, name, base_uri)
    folder.mkdir(parents=True, exist_ok=True)
    if head:
        write_tensors(folder / t.HEAD_WEIGHTS, head, adapter.dtype)
        write_json(folder / t.HEAD_CONFIG, head_document)
    write_tensors(folder / t.WEIGHTS, tensors, adapter.dtype)
    write_json(folder / t.CONFIG, document)


def adapterhub_content(adapter: Adapter, base_config: Any, name: str, base_uri: str = "") -> tuple[dict, dict, dict, dict]:
    """(tensors, adapter_config.json, tensors of the head, head_config.json). Errors as in `write_adapterhub`."""
    if base_config.family not in t.HOSTS:
        raise ValueError(f"what AdapterHub computes on {base_config.family} is not known here; known are {', '.join(t.HOSTS)}")
    if not name or "." in name:
        raise ValueError(f"an adapter cannot be called {name!r} in AdapterHub, whose keys are cut at dots")
    modules, host = Modules.of(base_config), t.HOSTS[base_config.family]
    pieces = {path: piece for path, piece in adapter.pieces.items() if not of_head(path, piece)}
    homeless = [f"{path} ({piece.kind})" for path, piece in pieces.items() if piece.kind not in ("LoRA", "DoRA", "Bottleneck")]
    if homeless:
        raise ValueError(f"AdapterHub has no place for {', '.join(homeless[:5])}")
    tensors: dict[str, np.ndarray] = {}
    configs = []
    loras = {path.rpartition("/")[0]: piece for path, piece in pieces.items() if piece.kind in ("LoRA", "DoRA")}
    if loras:
        configs.append(_lora(loras, adapter.methods, modules, host, name, tensors))
    bottlenecks = {path: piece for path, piece in pieces.items() if piece.kind == "Bottleneck"}
    if bottlenecks:
        configs.append(_bottleneck(bottlenecks, adapter.methods, modules, host, name, tensors))
    if not configs:
        raise ValueError("AdapterHub saves an adapter; this one is a head alone")
    about = _about(adapter, base_config, base_uri)
    head, head_document = head_content(name, adapter, modules, about)
    config = configs[0] if len(configs) == 1 else {"architecture": "union", "configs": configs}
    return tensors, {"config": config, **about, "name": name}, head, head_document


def _about(adapter: Adapter, config: Any, base_uri: str) -> dict[str, Any]:
    document = document_from_config(config, "float32")
    model_class = document["architectures"][0]
    if flexible(adapter):
        model_class = f"{model_class.partition('For')[0].removesuffix('Model')}AdapterModel"
    return {
        "hidden_size": config.width, "model_class": model_class, "model_name": base_uri, "model_type": document["model_type"],
        "version": t.VERSION,
    }


def _one(values: Sequence[Any], what: str) -> Any:
    """The only value there is, or an error."""
    kinds = list(dict.fromkeys(values))
    if len(kinds) > 1:
        raise ValueError(f"AdapterHub has one {what} for the whole adapter; here are {', '.join(map(str, kinds))}")
    return kinds[0]


# ---- LoRA --------------------------------------------------------------------------------------------------------------------------


def _lora(loras: Mapping[str, Piece], methods: Sequence[Any], modules: Modules, host: t.Host, name: str, tensors: dict) -> dict[str, Any]:
    """Writes the factors; the config."""
    at = {"attn/q": "q", "attn/k": "k", "attn/v": "v", host.intermediate: "intermediate_lora", host.mlp_output: "output_lora"}
    on: dict[str, set[int]] = collections.defaultdict(set)
    for path, piece in loras.items():
        module = logical(path).removeprefix("blocks/")
        if module not in at or "bias" in piece.arrays:
            what = "a bias behind its LoRA" if "bias" in piece.arrays else "LoRA"
            raise ValueError(f"AdapterHub has no place for {what} on {modules.theirs[path].name}; LoRA goes on {', '.join(at)}")
        on[module].add(layer_of(path))
    layers = _one([tuple(sorted(on_layers)) for on_layers in on.values()], "set of layers")
    rank = _one([piece.arrays["a"].shape[0] for piece in loras.values()], "rank")
    scale = _one([float(piece.arrays["scale"]) for piece in loras.values()], "scale")
    kind = _one([piece.kind for piece in loras.values()], "kind of LoRA")
    if kind == "DoRA":
        why = t.no_dora(modules.config.family, scale, next((modules.theirs[path].name for path in loras if modules.has_bias(path)), None))
        if why:
            raise ValueError(f"AdapterHub has no place for this DoRA: {why}; merge it")
    of_lora = [method for method in methods if isinstance(method, lora)]
    settings = {f.theirs: f.write(_one([getattr(method, f.ours) for method in of_lora], f"{f.ours} of LoRA")) for f in t.LORA_FIELDS}
    by_module: dict[str, list[str]] = collections.defaultdict(list)
    for path in loras:
        by_module[modules.theirs[path].name].append(path)
    for theirs, paths in by_module.items():
        paths.sort(key=modules.ours[theirs].index)
        for row in t.DORA if kind == "DoRA" else t.LORA:
            parts = [row.theirs(loras[path].arrays[row.field]) for path in paths]
            tensors[f"{theirs}.loras.{name}.{row.suffix}"] = np.concatenate(parts)
    asked = [m.alpha for m in of_lora if m.alpha is not None and np.float32(m.alpha / rank) == np.float32(scale)]
    alpha = asked[0] if asked else scale * rank
    letters = [at[module] for module in sorted(on) if len(at[module]) == 1]
    return t.lora_defaults() | {
        "r": rank, "alpha": int(alpha) if float(alpha).is_integer() else alpha, **settings, "selfattn_lora": bool(letters),
        "attn_matrices": sorted(letters, key="qkv".index) or ["q", "v"], "leave_out": _left_out(layers, modules),
        "intermediate_lora": host.intermediate in on, "output_lora": host.mlp_output in on,
    }


# ---- bottlenecks -------------------------------------------------------------------------------------------------------------------


def _bottleneck(
    pieces: Mapping[str, Piece], methods: Sequence[Any], modules: Modules, host: t.Host, name: str, tensors: dict
) -> dict[str, Any]:
    """Writes the networks; the config."""
    found = [method for method in methods if isinstance(method, bottleneck)]
    read = {name: _one([getattr(m, name) for m in found], name) for name in ("reads", "norm", *(f.ours for f in t.BOTTLENECK_FIELDS))}
    sites = {path.rpartition("/")[2] for path in pieces}
    flags, places = _flags(read["reads"], sites, host)
    on: dict[str, set[int]] = collections.defaultdict(set)
    sizes: dict[int, set[int]] = collections.defaultdict(set)
    before, after = read["norm"] in ("before", "both"), read["norm"] in ("after", "both")
    for path, piece in pieces.items():
        layer, site = layer_of(path), path.rpartition("/")[2]
        on[site].add(layer)
        sizes[layer].add(piece.arrays["down"].shape[0])
        stem = f"{places[site].format(layer=layer)}.adapters.{name}"
        for row in t.bottleneck_rows(before, after, read["scale"]):
            tensors[f"{stem}.{row.suffix}"] = row.theirs(piece.arrays[row.field])
    layers = _one([tuple(sorted(on_layers)) for on_layers in on.values()], "set of layers")
    uneven = [layer for layer, here in sizes.items() if len(here) > 1]
    if uneven:
        raise ValueError(f"AdapterHub has one bottleneck size a layer; layers {uneven} have several")
    settings = {field.theirs: field.write(read[field.ours]) for field in t.BOTTLENECK_FIELDS}
    if settings["non_linearity"] is None:
        known = ", ".join(sorted(set(t.ACTIVATIONS.values())))
        raise ValueError(f"AdapterHub cannot name the activation {read['activation']!r}; it can name {known}")
    if not isinstance(settings["scaling"], str):
        settings["scaling"] = float(settings["scaling"])  # it refuses whole numbers
    return t.defaults() | flags | settings | {
        "mh_adapter": "attn_out" in sites, "output_adapter": bool(sites - {"attn_out"}), "ln_before": before, "ln_after": after,
        "leave_out": _left_out(layers, modules),
        "reduction_factor": _factor({layer: next(iter(here)) for layer, here in sizes.items()}, modules.config.width, found),
    }


def _flags(reads: str, sites: set[str], host: t.Host) -> tuple[dict[str, bool], dict[str, str]]:
    """(their flags, their place by our site) for what these bottlenecks compute."""
    places = {"attn_out": host.attention, "mlp_out": host.output}
    if host.post_norm and sites == {"block_out"} and reads == "output":
        reads, places = "behind", {"block_out": host.output}
    if not sites <= set(places):
        raise ValueError(f"AdapterHub has no place for bottlenecks at {', '.join(sorted(sites - set(places)))}; it has {', '.join(places)}")
    for flags, meaning in t.READS.items():
        if meaning == reads:
            return dict(zip(t.FLAGS, flags, strict=True)), places
    raise ValueError(f"AdapterHub has no bottleneck that reads {reads!r}; it has {', '.join(sorted(set(t.READS.values()) - {'behind'}))}")


def _factor(sizes: Mapping[int, int], width: int, methods: Sequence[bottleneck]) -> float | int | dict[str, float | int]:
    """The reduction factor, one or one a layer, of which AdapterHub makes these sizes."""
    asked = {method.reduction_factor for method in methods if method.size is None}
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


def _left_out(layers: Sequence[int], modules: Modules) -> list[int]:
    return [layer for layer in range(modules.config.layers) if layer not in set(layers)]
