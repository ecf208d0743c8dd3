"""An adapter out of a directory that AdapterHub's `adapters` wrote: adapter_config.json, adapter.safetensors and, beside them, a head.

    adapter = read_adapterhub("my-adapter", base.config)

The config says which flags hold and how large things are. Old files are mended as the library mends them when it loads one: legacy module
names, "gelu" in files without a version, and the alpha of LoRAs saved before 1.1.0. Anything unread, missing or misshapen is an error that
names all of it.
"""

import collections
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from peftjax.hints import did_you_mean
from peftjax.interop.exchange import adapterhub_table as t
from peftjax.interop.exchange.adapter import Adapter, Piece
from peftjax.interop.exchange.adapterhub_file import Stored
from peftjax.interop.exchange.adapterhub_methods import methods_of
from peftjax.interop.exchange.folder import open_tensors
from peftjax.interop.exchange.heads import read_head
from peftjax.interop.exchange.modules import Modules
from peftjax.interop.json_file import read_json


def read_adapterhub(folder: str | Path, base_config: Any, base_params: Any = None) -> Adapter:
    """The adapter of a directory, for a base with this config.

    Args:
        base_params: the base's tree, with which a language-model head in the directory is compared.

    Raises:
        FileNotFoundError: no config or no tensors there.
        ValueError: an architecture, flag or host that is not supported, a pickle, a foreign base, or tensors that are missing, extra or
            misshapen.
    """
    folder = Path(folder)
    document = read_json(folder / t.CONFIG)
    if base_config.family not in t.HOSTS:
        raise ValueError(
            f"{folder}: what AdapterHub computes on {base_config.family} is not known here; known are {', '.join(t.HOSTS)}"
        )
    sources = open_tensors(folder, t.WEIGHTS, t.PICKLE)
    configs = _configs(document, sources, str(folder / t.CONFIG))
    modules = Modules.of(base_config)
    stored = Stored(folder, t.HOSTS[base_config.family].trunk, t.known_places(modules), document.get("name"), sources)
    pieces: dict[str, Piece] = {}
    methods: list[Any] = []
    notes: list[str] = []
    for config in configs:
        asked = t.Asked(t.DEFAULTS[config.get("architecture")] | config, modules)
        for method in methods_of(config):
            problem = method.problem(asked)
            if problem:
                raise ValueError(f"{folder}: {problem}")
            methods += _read(method, asked, stored, pieces)
            notes += method.notes(asked)
    stored.refuse()
    head = read_head(folder, modules, base_params)
    lineage = {
        "format": "AdapterHub", "version": document.get("version"), "name": document.get("name"), "model_name": document.get("model_name"),
        "head": head.form,
    }
    return Adapter(
        (*methods, *head.methods), pieces | dict(head.pieces), dtype=next(iter(stored.dtypes), "float32"), lineage=lineage,
        notes=(*notes, *head.notes),
    )


def _configs(document: Mapping[str, Any], keys: Iterable[str], origin: str) -> list[dict[str, Any]]:
    """The configs of an adapter, mended, those of a union one by one.

    Old task adapters name an invertible adapter that they never had: without such keys it is not asked for.

    Raises:
        ValueError: an architecture or a field that is not supported.
    """
    config = document.get("config")
    if not isinstance(config, Mapping):
        raise ValueError(
            f"{origin} holds no config of its own (config_id {document.get('config_id')!r}); load and save it with AdapterHub once"
        )
    configs = [dict(member) for member in config["configs"]] if config.get("architecture") == "union" else [dict(config)]
    if not any("invertible_adapters." in key for key in keys):
        configs = [member | {"inv_adapter": None} if member.get("architecture") is None else member for member in configs]
    version = str(document.get("version") or "").removeprefix("adapters.")
    configs = [_mended(member, version) for member in configs]
    problems = [problem for member in configs for problem in _problems(member)]
    if problems:
        raise ValueError(f"{origin} asks for what is not supported:\n  " + "\n  ".join(problems))
    return configs


def _problems(config: Mapping[str, Any]) -> Iterable[str]:
    """What one config asks for and is not supported."""
    methods, kind = methods_of(config), config.get("architecture")
    if not methods:
        known = ", ".join(str(name) for name in t.DEFAULTS if name)
        yield f"architecture {kind!r} (supported: bottlenecks, which have none, {known}, and unions of them)"
        return
    defaults = t.DEFAULTS[kind]
    for name, value in config.items():
        for method in methods:
            if name in method.off and value != defaults[name] and (value or defaults[name]):
                yield f"{name}: {method.off[name]}"
            for field in method.fields:
                if field.theirs == name and field.names and field.read(config) is None:
                    near = did_you_mean(str(value), field.names)
                    yield f"{name} {value!r} is not supported{near}; supported are {', '.join(field.names)}"
        if name not in defaults and value not in (None, False, [], {}):
            yield f"{name} = {str(value)[:60]!r}, which is not known here{did_you_mean(name, defaults)}"


def _mended(config: dict[str, Any], version: str) -> dict[str, Any]:
    """As the library mends the configs of old files: activations had other names, and before 1.1.0 a LoRA was trained with a scale of 1
    whatever its alpha (adapters pull request 770)."""
    if not version and config.get("non_linearity") in t.UNVERSIONED:
        config["non_linearity"] = t.UNVERSIONED[config["non_linearity"]]
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if config.get("architecture") == "lora" and numbers and numbers < (1, 1):
        config["alpha"] = config.get("r", t.DEFAULTS["lora"]["r"])
    return config


def _read(method: t.HubMethod, asked: t.Asked, stored: Stored, pieces: dict[str, Piece]) -> Iterable[Any]:
    """Takes the tensors of one method into `pieces`; the methods that make room for them."""
    constant, found = method.constant(asked.config), {}
    for place, paths in _places(method, asked).items():
        parts = stored.take(method.pool, place, method.rows(asked.config), method.sizes(asked, paths[0]), len(paths))
        for path, arrays in zip(paths, parts or (), strict=parts is not None):
            pieces[path if path not in asked.modules.theirs else asked.modules.parameter(path)] = Piece(method.node, constant | arrays)
            found[path] = method.sizes(asked, path)
    settings = {field.ours: field.read(asked.config) for field in method.fields}
    return method.methods(found, asked, settings)


def _places(method: t.HubMethod, asked: t.Asked) -> dict[str, list[str]]:
    """Our paths by the module of theirs that holds them, several in a fused one."""
    left_out, places = set(asked.config["leave_out"]), collections.defaultdict(list)
    for layer in (layer for layer in range(asked.modules.config.layers) if layer not in left_out):
        for ours, theirs in method.places(asked).items():
            path = f"blocks/{layer}/{ours}"
            places[asked.modules.theirs[path].name if theirs is None else theirs.format(layer=layer)].append(path)
    return places
