"""An adapter into a directory that AdapterHub's `adapters` loads, by the tables of adapterhub_methods.

    write_adapterhub("out/adapterhub", adapter, base.config, name="tone")

One config of each architecture, in a union where there are several; a trained head goes beside them. A fusion is a directory of its own.
What AdapterHub has no place for (LoRA on o_proj or gate_proj of Llama, several ranks, a site of ours alone) is an error that names it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from peftjax.interop.exchange import adapterhub_fusion as fusions
from peftjax.interop.exchange import adapterhub_prefix as prefixes
from peftjax.interop.exchange import adapterhub_table as t
from peftjax.interop.exchange.adapter import Adapter
from peftjax.interop.exchange.adapterhub_file import SHARED
from peftjax.interop.exchange.adapterhub_methods import METHODS
from peftjax.interop.exchange.adapterhub_prompt import prompt_clash
from peftjax.interop.exchange.folder import write_tensors
from peftjax.interop.exchange.heads import flexible, head_content, of_head
from peftjax.interop.exchange.modules import Modules
from peftjax.interop.exchange.plain_form import in_plain_form
from peftjax.interop.hf import document_from_config
from peftjax.interop.json_file import write_json
from peftjax.nn.shared import STORE
from peftjax.peft.prefix import prefix
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
    weights, config = (fusions.WEIGHTS, fusions.CONFIG) if fusions.is_fusion(adapter) else (t.WEIGHTS, t.CONFIG)
    write_tensors(folder / weights, tensors, adapter.dtype)
    write_json(folder / config, document)


def adapterhub_content(adapter: Adapter, base_config: Any, name: str, base_uri: str = "") -> tuple[dict, dict, dict, dict]:
    """(tensors, adapter_config.json, tensors of the head, head_config.json). Errors as in `write_adapterhub`."""
    if base_config.family not in t.HOSTS:
        raise ValueError(f"what AdapterHub computes on {base_config.family} is not known here; known are {', '.join(t.HOSTS)}")
    if not name or "." in name:
        raise ValueError(f"an adapter cannot be called {name!r} in AdapterHub, whose keys are cut at dots")
    adapter, modules, about = in_plain_form(adapter), Modules.of(base_config), _about(adapter, base_config, base_uri)
    head, head_document = head_content(name, adapter, modules, about)
    if fusions.is_fusion(adapter):
        tensors, said, name = fusions.fusion_content(adapter, modules)
        return tensors, {**said, **about, "name": name}, head, head_document
    tensors: dict[str, np.ndarray] = {}
    configs: list[dict[str, Any]] = []
    for part, held in _parts(adapter, modules):
        if part is None:
            own, more = prefixes.prefix_content(held, name, _shared(adapter, "prefix/"))
            configs.append(dict(t.DEFAULTS[prefixes.ARCHITECTURE]) | own)
            tensors |= more
            continue
        own = part.config(held)
        if part.beside:
            own = _beside(own, configs)
        else:
            configs.append(dict(t.DEFAULTS[part.architecture]) | own)
        asked = t.Asked(t.DEFAULTS[part.architecture] | own, modules)
        tensors |= _tensors(part, asked, held, name, _shared(adapter))
    if not configs:
        raise ValueError("AdapterHub saves an adapter; this one is a head alone")
    if clash := prompt_clash(configs):
        raise ValueError(clash)
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


def _parts(adapter: Adapter, modules: Modules) -> list[tuple[t.HubMethod | None, t.Held]]:
    """Each table with the pieces that it holds, None of a prefix, in the order of the adapter's methods, which configs keep.

    Raises:
        ValueError: pieces that no table holds, or two tables of one architecture.
    """
    pieces = {path: piece for path, piece in adapter.pieces.items() if not of_head(path, piece)}
    kinds, parts = {piece.kind for piece in pieces.values()}, []
    for method in (*METHODS, None):
        nodes, make = (prefixes.KINDS, prefix) if method is None else ((method.node,), method.make)
        if kinds & set(nodes):
            own = {_stem(path): piece for path, piece in pieces.items() if piece.kind in nodes}
            parts.append((method, t.Held(own, [each for each in adapter.methods if isinstance(each, make)], modules)))
    stored = {f"{STORE}/{row.field}" for method, _ in parts if method for row in method.shared}
    stored |= {f"{STORE}/prefix/{field}" for field in prefixes.SHARED} if kinds & {"PrefixEncoder"} else set()
    homeless = [f"{path} ({piece.kind})" for path, piece in pieces.items()
                if path not in stored and not any(_stem(path) in held.pieces for _, held in parts)]
    if homeless:
        raise ValueError(f"AdapterHub has no place for {', '.join(homeless[:5])}")
    for architecture in {method.architecture for method, _ in parts if method}:
        alike = [method.node for method, _ in parts if method and method.architecture == architecture and not method.beside]
        if len(alike) > 1:
            kind = {"lora": "LoRA", None: "bottleneck"}.get(architecture, architecture)
            raise ValueError(f"AdapterHub has one kind of {kind} for the whole adapter; here are {', '.join(alike)}")
    order = {id(each): number for number, each in enumerate(adapter.methods)}
    return sorted(parts, key=lambda part: (bool(part[0] and part[0].beside), min(order[id(each)] for each in part[1].methods)))


def _shared(adapter: Adapter, below: str = "") -> dict[str, np.ndarray]:
    """What the layers of an adapter share, by its place below a place of our store."""
    head = f"{STORE}/{below}"
    return {path.removeprefix(head): piece.arrays["value"] for path, piece in adapter.pieces.items() if path.startswith(head)}


def _beside(own: dict[str, Any], configs: list[dict[str, Any]]) -> dict[str, Any]:
    """Puts config fields of one method into the config of the other that it stands beside, or into one that asks for nothing else."""
    config = next((config for config in configs if config.get("architecture") is None), None)
    if config is None:
        config = dict(t.DEFAULTS[None]) | {"output_adapter": False} | own
        configs.append(config)
    if config["non_linearity"] != own["non_linearity"]:
        raise ValueError("AdapterHub has one activation for a bottleneck and its invertible adapter; here are "
                         f"{config['non_linearity']} and {own['non_linearity']}")
    config |= own
    return own


def _stem(path: str) -> str:
    """`blocks/7/attn/q/kernel` -> `blocks/7/attn/q`; a site is what it is."""
    head, _, last = path.rpartition("/")
    return head if last in KERNELS else path


def _tensors(method: t.HubMethod, asked: t.Asked, held: t.Held, name: str, shared: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of one method by key, a fused module's parts one behind another.

    Raises:
        ValueError: an array that follows from the config there, and is another one here.
    """
    constant, tensors = method.constant(asked.config), {}
    for path, piece in held.pieces.items():
        for field, array in constant.items():
            if not np.array_equal(piece.arrays[field], array):
                raise ValueError(f"AdapterHub's {field} of {method.node} is {array:g}; that on {path} is {piece.arrays[field]}")
    for place, paths in asked.places(method).items():
        spread = [method.spread(held.pieces[path].arrays, asked.config, held) for path in paths if path in held.pieces]
        for row in method.rows(asked.config):
            tensors[f"{place}.{method.pool}.{name}.{row.suffix}"] = np.concatenate([row.theirs(own[row.field]) for own in spread])
    for row in method.shared:
        tensors[f"{asked.host.trunk}.{SHARED}.{name}.{row.suffix}"] = row.theirs(shared[row.field])
    return tensors
