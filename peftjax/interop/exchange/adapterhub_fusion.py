"""AdapterHub's AdapterFusion, read and written: a folder of its own, beside those of the adapters that it weighs.

| file | what |
|---|---|
| adapter_fusion_config.json | adapter_names, and which of query, key and value are trained |
| model_adapter_fusion.safetensors | <place>.adapter_fusion_layer.A,B. query.weight (D, D), .bias; key.weight, .bias; value.weight |

    en, de = (read_adapterhub(f"hub/{name}", base.config) for name in ("en", "de"))          inserted under these names,
    params = insert(params, read_adapterhub("hub/fusion", base.config), "mix")               and the fusion after them
    params = compose(params, Fuse("en", "de", by="mix"))

A head beside it is its own, and acts with it.

The bias of the keys is the same for all adapters, so that the softmax does not see it: it is left out, and written as zeros. AdapterHub
weighs outputs before their gate and norm_after, which ours come behind: the adapters have neither.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from peftjax.interop.exchange.adapter import Adapter, Piece
from peftjax.interop.exchange.adapterhub_file import Stored
from peftjax.interop.exchange.adapterhub_table import Asked, known_places
from peftjax.interop.exchange.folder import open_tensors
from peftjax.interop.exchange.heads import of_head, read_head
from peftjax.interop.exchange.modules import Modules, layer_of
from peftjax.interop.exchange.tensors import Tensor
from peftjax.interop.json_file import read_json
from peftjax.peft.fusion import fusion

CONFIG, WEIGHTS = "adapter_fusion_config.json", "model_adapter_fusion.safetensors"
PICKLE, POOL, PENALTY = "pytorch_model_adapter_fusion.bin", "adapter_fusion_layer", 0.01
DEFAULTS = {
    "dropout_prob": None, "key": True, "query": True, "query_before_ln": False, "regularization": True, "residual_before": False,
    "temperature": False, "value": True, "value_before_softmax": True, "value_initialized": True,
}  # fmt: skip
# Config fields that must be as they are in DEFAULTS, each with what it would ask for; value may be computed behind the softmax too.
OFF = {
    "key": "adapters weighed without keys", "query": "adapters weighed without a query", "query_before_ln": "a query before the sum",
    "residual_before": "values with the residual stream in them", "temperature": "a temperature that falls with every call",
}  # fmt: skip
_ROWS = (
    Tensor("query", "query.weight", ("D", "D"), flip=True), Tensor("query_bias", "query.bias", ("D",)),
    Tensor("key", "key.weight", ("D", "D"), flip=True), Tensor("key_bias", "key.bias", ("D",)),
)  # fmt: skip
_VALUE = Tensor("value", "value.weight", ("D", "D"), flip=True)


def read_fusion(folder: Path, base_config: Any, base_params: Any = None) -> Adapter:
    """What weighs adapters of other folders. Arguments and errors as of `read_adapterhub`; its host is known."""
    document = read_json(folder / CONFIG)
    config, names = DEFAULTS | dict(document.get("config") or {}), document.get("adapter_names") or []
    names = names.split(",") if isinstance(names, str) else list(names)
    problems = [f"{name}: {why}" for name, why in OFF.items() if bool(config[name]) != DEFAULTS[name]]
    problems += [f"{name} = {config[name]!r}, which is not known here" for name in config if name not in DEFAULTS and config[name]]
    if problems:
        raise ValueError(f"{folder / CONFIG} asks for what is not supported:\n  " + "\n  ".join(problems))
    modules = Modules.of(base_config)
    asked, pieces = Asked(config, modules), {}
    stored = Stored(folder, asked.host.trunk, known_places(modules), document.get("name"), open_tensors(folder, WEIGHTS, PICKLE))
    method = fusion(of=tuple(names), value=bool(config["value"]), penalty=PENALTY if config["regularization"] else 0.0,
                    dropout=config["dropout_prob"] or 0.0)  # fmt: skip
    for layer in range(base_config.layers):
        for site, place in {"attn_out": asked.host.attention, "mlp_out": asked.host.output}.items():
            if stored.holds(POOL, place.format(layer=layer)):
                taken = stored.take(POOL, place.format(layer=layer), _rows(method), {"D": base_config.width})
                own = {field: array for field, array in taken[0].items() if field != "key_bias"} if taken else {}
                pieces[f"blocks/{layer}/{site}"] = Piece("Fusion", own | _numbers(method))
    stored.refuse()
    head = read_head(folder, modules, base_params)
    lineage = {"format": "AdapterHub", "version": document.get("version"), "name": document.get("name"), "head": head.form,
               "model_name": document.get("model_name")}  # fmt: skip
    notes = ("the bias of its keys is the same for all adapters, does nothing, and was left out", *head.notes)
    return Adapter((method, *head.methods), pieces | dict(head.pieces), dtype=next(iter(stored.dtypes), "float32"), lineage=lineage,
                   notes=notes)  # fmt: skip


def fusion_content(adapter: Adapter, modules: Modules) -> tuple[dict[str, np.ndarray], dict[str, Any], str]:
    """(tensors, the config with the adapters' names, the fusion's name) of an adapter that is a fusion.

    Raises:
        ValueError: what AdapterHub has no place for.
    """
    method = next(method for method in adapter.methods if isinstance(method, fusion))
    pieces = {path: piece for path, piece in adapter.pieces.items() if not of_head(path, piece)}
    asked, name = Asked(DEFAULTS, modules), ",".join(method.of)
    places = {"attn_out": asked.host.attention, "mlp_out": asked.host.output}
    wrong = [f"{path} ({piece.kind})" for path, piece in pieces.items() if piece.kind != "Fusion" or path.split("/")[-1] not in places][:5]
    wrong += [f"penalty {method.penalty:g}"] if method.penalty not in (0, PENALTY) else []
    wrong += [f"temperature {method.temperature:g}"] if method.temperature != 1 else []
    if wrong:
        raise ValueError(
            f"AdapterHub's fusion has no place for {', '.join(wrong)}; it weighs bottlenecks, with penalty 0 or {PENALTY} and temperature 1"
        )
    bad = [each for each in method.of if not each or set(each) & set(".,")]
    if bad:
        raise ValueError(f"an adapter cannot be called {bad[0]!r} in AdapterHub's fusion, whose names are cut at dots and commas")
    tensors = {}
    for path, piece in pieces.items():
        stem = f"{places[path.rpartition('/')[2]].format(layer=layer_of(path))}.{POOL}.{name}"
        arrays = dict(piece.arrays) | {"key_bias": np.zeros_like(piece.arrays["query_bias"])}
        tensors |= {f"{stem}.{row.suffix}": row.theirs(arrays[row.field]) for row in _rows(method)}
    config = DEFAULTS | {"value": method.value, "value_initialized": method.value, "regularization": method.penalty > 0,
                         "dropout_prob": method.dropout or None}  # fmt: skip
    return tensors, {"config": config, "adapter_names": list(method.of)}, name


def is_fusion(adapter: Adapter) -> bool:
    """Whether an adapter weighs others."""
    return any(isinstance(method, fusion) for method in adapter.methods)


def _rows(method: fusion) -> tuple[Tensor, ...]:
    return (*_ROWS, _VALUE) if method.value else _ROWS


def _numbers(method: fusion) -> Mapping[str, np.ndarray]:
    return {"temperature": np.float32(method.temperature), "strength": np.float32(method.penalty)}
