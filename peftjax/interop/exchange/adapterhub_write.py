"""An adapter into a directory that AdapterHub's `adapters` loads, by the tables of adapterhub_methods.

    write_adapterhub("out/adapterhub", adapter, base.config, name="tone")

One config of each architecture, in a union where there are several; a trained head goes beside them. What AdapterHub has no place for (LoRA
on o_proj or gate_proj of Llama, several ranks, a site of ours alone) is an error that names it.
"""

import collections
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from peftjax.interop.exchange import adapterhub_table as t
from peftjax.interop.exchange.adapter import Adapter, Piece
from peftjax.interop.exchange.adapterhub_methods import METHODS
from peftjax.interop.exchange.folder import write_tensors
from peftjax.interop.exchange.heads import flexible, head_content, of_head
from peftjax.interop.exchange.modules import Modules, layer_of, logical
from peftjax.interop.hf import document_from_config
from peftjax.interop.json_file import write_json
from peftjax.peft.select import KERNELS


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
    modules = Modules.of(base_config)
    pieces = {path: piece for path, piece in adapter.pieces.items() if not of_head(path, piece)}
    homeless = [f"{path} ({piece.kind})" for path, piece in pieces.items() if all(piece.kind != method.node for method in METHODS)]
    if homeless:
        raise ValueError(f"AdapterHub has no place for {', '.join(homeless[:5])}")
    tensors: dict[str, np.ndarray] = {}
    configs: list[dict[str, Any]] = []
    for method in _chosen(pieces, adapter):
        held = _held(method, pieces, adapter, modules)
        configs.append(dict(t.DEFAULTS[method.architecture]) | method.config(held))
        _write(method, t.Asked(configs[-1], modules), held, name, tensors)
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


def _chosen(pieces: Mapping[str, Piece], adapter: Adapter) -> list[t.HubMethod]:
    """The tables of these pieces, in the order of the adapter's methods, which configs keep.

    Raises:
        ValueError: two of one architecture.
    """
    kinds = {piece.kind for piece in pieces.values()}
    chosen = [method for method in METHODS if method.node in kinds]
    for architecture in {method.architecture for method in chosen}:
        alike = [method.node for method in chosen if method.architecture == architecture]
        if len(alike) > 1:
            kind = {"lora": "LoRA", None: "bottleneck"}.get(architecture, architecture)
            raise ValueError(f"AdapterHub has one kind of {kind} for the whole adapter; here are {', '.join(alike)}")

    def first(method: t.HubMethod) -> int:
        return next((number for number, each in enumerate(adapter.methods) if isinstance(each, method.make)), len(adapter.methods))

    return sorted(chosen, key=first)


def _held(method: t.HubMethod, pieces: Mapping[str, Piece], adapter: Adapter, modules: Modules) -> t.Held:
    own = {path: piece for path, piece in pieces.items() if piece.kind == method.node}
    return t.Held({_stem(path): piece for path, piece in own.items()}, [m for m in adapter.methods if isinstance(m, method.make)], modules)


def _stem(path: str) -> str:
    """`blocks/7/attn/q/kernel` -> `blocks/7/attn/q`; a site is what it is."""
    head, _, last = path.rpartition("/")
    return head if last in KERNELS else path


def _write(method: t.HubMethod, asked: t.Asked, held: t.Held, name: str, tensors: dict[str, np.ndarray]) -> None:
    """Adds the tensors of one method, a fused module's parts one behind another."""
    places, by_place = method.places(asked), collections.defaultdict(list)
    for path in held.pieces:
        theirs = places[logical(path).removeprefix("blocks/")]
        by_place[asked.modules.theirs[path].name if theirs is None else theirs.format(layer=layer_of(path))].append(path)
    for place, paths in by_place.items():
        if place in asked.modules.ours:
            paths.sort(key=asked.modules.ours[place].index)
        for row in method.rows(asked.config):
            parts = [row.theirs(held.pieces[path].arrays[row.field]) for path in paths]
            tensors[f"{place}.{method.pool}.{name}.{row.suffix}"] = np.concatenate(parts)
