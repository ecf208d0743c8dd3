"""Heads beside an AdapterHub adapter: what they are, and whether they are the base's own.

| head_config.json, model_head.safetensors | here |
|---|---|
| causal LM: a full copy of lm_head | left out where it is the base's, else a head trained apart: full(targets="lm_head") |
| flexible classification head: heads.N.1, heads.N.4 | classifier(hidden=True): dense, tanh, dense on the first token, no pooler |
| BertForSequenceClassification: classifier | classifier(hidden=False): behind the base's own pooler |
| RobertaForSequenceClassification: classifier.dense, classifier.out_proj | classifier(hidden=True) |
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from peftjax.interop.exchange import adapterhub_table as t
from peftjax.interop.exchange.adapter import Adapter, Piece
from peftjax.interop.exchange.folder import open_tensors
from peftjax.interop.exchange.modules import Modules
from peftjax.interop.exchange.tensors import read_float32
from peftjax.interop.json_file import read_json
from peftjax.nn.kernels import dense
from peftjax.nn.tree import get
from peftjax.peft.classifier import classifier
from peftjax.peft.parts import full

FLEXIBLE = {"1": "pool", "4": "head"}


class Head(NamedTuple):
    """A head beside an adapter: methods and pieces as of an adapter, notes, and its form, "flexible", "static" or ""."""

    methods: tuple[Any, ...] = ()
    pieces: Mapping[str, Piece] = {}
    notes: tuple[str, ...] = ()
    form: str = ""


def read_head(folder: Path, modules: Modules, base_params: Any) -> Head:
    """The head beside an adapter; an empty one where there is none.

    Raises:
        ValueError: a kind of head that is not supported, or one that does not fit the base.
    """
    if not (folder / t.HEAD_CONFIG).is_file():
        return Head()
    document = read_json(folder / t.HEAD_CONFIG)
    tensors = {
        name: read_float32(name, source, str(folder))[0] for name, source in open_tensors(folder, t.HEAD_WEIGHTS, t.HEAD_PICKLE).items()
    }
    if not hasattr(modules.config, "labels"):
        return _language_model(folder, tensors, modules, base_params)
    return _classification(folder, document, tensors, modules)


def _language_model(folder: Path, tensors: Mapping[str, np.ndarray], modules: Modules, base_params: Any) -> Head:
    head = modules.theirs["head"].name
    if set(tensors) != {f"{head}.weight"}:
        raise ValueError(f"{folder / t.HEAD_WEIGHTS} holds {', '.join(sorted(tensors))}; a language model's head is {head}.weight alone")
    array = tensors[f"{head}.weight"]
    if base_params is None:
        return Head(notes=(f"{head}.weight beside the adapter was left out and not compared with the base's",))
    kernel = get(base_params, "head/kernel")
    leaf = dense(get(base_params, "embed/embedding") if kernel is None else kernel)
    own = np.asarray(leaf, np.float32) if kernel is None else np.asarray(leaf, np.float32).T
    if own.shape != array.shape:
        raise ValueError(f"{folder / t.HEAD_WEIGHTS}: {head}.weight is {list(array.shape)}, this base wants {list(own.shape)}")
    if np.array_equal(own, np.asarray(array.astype(leaf.dtype), np.float32)):
        return Head(notes=(f"{head}.weight beside the adapter is the base's own and was left out",))
    return Head(
        (full(targets=("lm_head",)),), {"head/kernel": Piece("Trained", {"value": np.ascontiguousarray(array.T)})},
        (f"{head}.weight beside the adapter is not the base's: it is taken for a head trained with it",),
    )


def _classification(folder: Path, document: Mapping[str, Any], tensors: Mapping[str, np.ndarray], modules: Modules) -> Head:
    config = document.get("config")
    if config:
        wanted = {"head_type": "classification", "layers": 2, "activation_function": "tanh", "use_pooler": False, "bias": True}
        other = {name: config.get(name) for name, value in wanted.items() if config.get(name) != value}
        if other:
            raise ValueError(f"{folder / t.HEAD_CONFIG}: a head with {other} is not supported; supported is {wanted}")
        places = {f"heads.{document['name']}.{number}": ours for number, ours in FLEXIBLE.items()}
        ids = config.get("label2id")
    else:
        places = {modules.theirs[ours].name: ours for ours in ("pool", "head") if ours in modules.theirs}
        places = {name: ours for name, ours in places.items() if f"{name}.weight" in tensors}
        ids = document.get("label2id")
    unread = sorted(set(tensors) - {f"{name}.{leaf}" for name in places for leaf in ("weight", "bias")})
    missing = sorted({f"{name}.{leaf}" for name in places for leaf in ("weight", "bias")} - set(tensors))
    if unread or missing or "head" not in places.values():
        raise ValueError(
            f"{folder / t.HEAD_WEIGHTS} is no classification head of this base: missing {missing or 'none'}, extra {unread or 'none'}"
        )
    pieces = {}
    for name, ours in places.items():
        pieces[f"{ours}/kernel"] = Piece("Trained", {"value": np.ascontiguousarray(tensors[f"{name}.weight"].T)})
        pieces[f"{ours}/bias"] = Piece("Trained", {"value": tensors[f"{name}.bias"]})
    count = tensors[next(f"{name}.bias" for name, ours in places.items() if ours == "head")].shape[0]
    labels = tuple(sorted(ids, key=ids.get)) if ids and len(ids) == count else count
    return Head((classifier(labels=labels, hidden="pool" in places.values()),), pieces, form="flexible" if config else "static")


def of_head(path: str, piece: Piece) -> bool:
    """Whether a piece belongs to a head that was trained whole."""
    return piece.kind == "Trained" and path.partition("/")[0] in ("head", "pool")


def flexible(adapter: Adapter) -> bool:
    """Whether its head goes into AdapterHub's own classes: a fresh one of two layers, unless it came as the host's."""
    fresh = any(isinstance(method, classifier) and method.hidden for method in adapter.methods)
    return fresh and adapter.lineage.get("head") != "static"


def head_content(name: str, adapter: Adapter, modules: Modules, about: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(tensors by their keys, the content of head_config.json) of an adapter's head; ({}, {}) where it has none.

    Args:
        about: what every config of the directory says of the host.

    Raises:
        ValueError: a head that AdapterHub has no form for.
    """
    parts = {path: piece.arrays["value"] for path, piece in adapter.pieces.items() if of_head(path, piece)}
    if not parts:
        return {}, {}
    if not hasattr(modules.config, "labels"):
        if set(parts) != {"head/kernel"}:
            raise ValueError(f"AdapterHub's language-model head is one weight; here are {', '.join(sorted(parts))}")
        weight = {f"{modules.theirs['head'].name}.weight": np.ascontiguousarray(parts["head/kernel"].T)}
        return weight, dict(about) | {"config": None, "name": None}
    method = next(method for method in adapter.methods if isinstance(method, classifier))
    ids = {label: number for number, label in enumerate(method.labels)}
    places = {ours: f"heads.{name}.{number}" for number, ours in FLEXIBLE.items()} if flexible(adapter) else {
        ours: modules.theirs[ours].name for ours in ("pool", "head") if f"{ours}/kernel" in parts
    }
    tensors = {}
    for ours, theirs in places.items():
        tensors[f"{theirs}.weight"] = np.ascontiguousarray(parts[f"{ours}/kernel"].T)
        tensors[f"{theirs}.bias"] = parts[f"{ours}/bias"]
    if not flexible(adapter):
        return tensors, dict(about) | {"config": None, "name": None, "label2id": ids, "num_labels": len(ids)}
    config = {
        "activation_function": "tanh", "bias": True, "dropout_prob": None, "head_type": "classification", "label2id": ids, "layers": 2,
        "num_labels": len(ids), "use_pooler": False,
    }
    return tensors, dict(about) | {"config": config, "name": name}
