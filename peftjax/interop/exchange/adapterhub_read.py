"""An adapter out of a directory that AdapterHub's `adapters` wrote: adapter_config.json, adapter.safetensors and, beside them, a head; or a
fusion of adapters of other directories.

    adapter = read_adapterhub("my-adapter", base.config)

The config says which flags hold and how large things are. Old files are mended as the library mends them when it loads one: legacy module
names, "gelu" in files without a version, and the alpha of LoRAs saved before 1.1.0. Anything unread, missing or misshapen is an error that
names all of it.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from peftjax.hints import did_you_mean
from peftjax.interop.exchange import adapterhub_prefix as prefixes
from peftjax.interop.exchange import adapterhub_table as t
from peftjax.interop.exchange.adapter import Adapter, Piece
from peftjax.interop.exchange.adapterhub_file import SHARED, Stored
from peftjax.interop.exchange.adapterhub_fusion import CONFIG as FUSION
from peftjax.interop.exchange.adapterhub_fusion import read_fusion
from peftjax.interop.exchange.adapterhub_methods import methods_of
from peftjax.interop.exchange.adapterhub_prompt import prompt_clash
from peftjax.interop.exchange.folder import open_tensors
from peftjax.interop.exchange.heads import read_head
from peftjax.interop.exchange.modules import Modules
from peftjax.interop.json_file import read_json
from peftjax.nn.shared import STORE


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
    if base_config.family not in t.HOSTS:
        raise ValueError(
            f"{folder}: what AdapterHub computes on {base_config.family} is not known here; known are {', '.join(t.HOSTS)}"
        )
    if (folder / FUSION).is_file():
        return read_fusion(folder, base_config, base_params)
    document = read_json(folder / t.CONFIG)
    sources = open_tensors(folder, t.WEIGHTS, t.PICKLE)
    configs = _configs(document, sources, str(folder / t.CONFIG))
    modules = Modules.of(base_config)
    stored = Stored(folder, t.HOSTS[base_config.family].trunk, t.known_places(modules), document.get("name"), sources)
    pieces: dict[str, Piece] = {}
    methods: list[Any] = []
    notes: list[str] = []
    for config in configs:
        asked = t.Asked(t.DEFAULTS[config.get("architecture")] | config, modules)
        for new, theirs, said in _read(asked, stored):
            if pieces.keys() & new.keys():
                raise ValueError(f"{folder}: two methods of one adapter stand at {', '.join(sorted(pieces.keys() & new.keys()))}")
            pieces |= new
            methods += theirs
            notes += said
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
    problems += [clash for clash in (prompt_clash(configs),) if clash]
    if problems:
        raise ValueError(f"{origin} asks for what is not supported:\n  " + "\n  ".join(problems))
    return configs


def _problems(config: Mapping[str, Any]) -> Iterable[str]:
    """What one config asks for and is not supported."""
    methods, kind = methods_of(config), config.get("architecture")
    if kind in t.DEFAULTS and not methods and kind != prefixes.ARCHITECTURE:
        yield f"composition_mode = {config['composition_mode']!r}, which is not known here; 'add' and 'scale' are"
    if kind not in t.DEFAULTS:
        known = ", ".join(str(name) for name in t.DEFAULTS if name)
        why = f": {t.NOT_HERE[kind]}" if kind in t.NOT_HERE else ""
        yield f"architecture {kind!r}{why} (supported: bottlenecks, which have none, {known}, and unions of them)"
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


def _read(asked: t.Asked, stored: Stored) -> Iterable[tuple[dict[str, Piece], Iterable[Any], Iterable[str]]]:
    """(pieces, the methods that make room for them, notes) of each method that one config asks for; complaints go to `stored`.

    Raises:
        ValueError: what cannot be held.
    """
    if asked.config.get("architecture") == prefixes.ARCHITECTURE:
        _require(prefixes.prefix_problem(asked), stored)
        yield prefixes.read_prefix(asked, stored)
    for method in methods_of(asked.config):
        _require(method.problem(asked), stored)
        taken = _taken(method, asked, stored)
        found = {path: method.sizes(asked, path) for path in taken.arrays}
        settings = {field.ours: field.read(asked.config) for field in method.fields}
        methods = list(taken.methods(found, asked, settings)) if found else []
        yield _pieces(taken, asked.modules), methods, (*method.notes(asked), *taken.notes)


def _require(problem: str, stored: Stored) -> None:
    if problem:
        raise ValueError(f"{stored.folder}: {problem}")


def _taken(method: t.HubMethod, asked: t.Asked, stored: Stored) -> t.Taken:
    """The tensors of one method."""
    arrays: dict[str, dict[str, np.ndarray]] = {}
    first, constant = {}, method.constant(asked.config)
    for place, paths in asked.places(method).items():
        sizes = method.sizes(asked, paths[0])
        parts = stored.take(method.pool, place, method.rows(asked.config), sizes, len(paths))
        arrays |= {path: constant | own for path, own in zip(paths, parts or (), strict=parts is not None)}
        first = first or sizes
    shared = stored.take(SHARED, asked.host.trunk, method.shared, first) if method.shared else [{}]
    whole = t.Taken(arrays, shared[0] if shared else {}, method.node, method.methods)
    return whole if stored.problems else method.settle(whole, asked)


def _pieces(taken: t.Taken, modules: Modules) -> dict[str, Piece]:
    pieces = {path if path not in modules.theirs else modules.parameter(path): Piece(taken.node, dict(own))
              for path, own in taken.arrays.items()}
    return pieces | {f"{STORE}/{path}": Piece("SharedValue", {"value": value}) for path, value in taken.shared.items()}
