"""An adapter out of a directory that AdapterHub's `adapters` wrote: adapter_config.json, adapter.safetensors and, beside them, a head.

    adapter = read_adapterhub("my-adapter", base.config)

The config says which flags hold, the tensors how large things are. Old files are mended as the library mends them when it loads one:
legacy module names, "gelu" in files without a version, and the alpha of LoRAs saved before 1.1.0. Anything unread, missing or misshapen is
an error that names all of it.
"""

import collections
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from peftjax.hints import did_you_mean
from peftjax.interop.exchange import adapterhub_table as t
from peftjax.interop.exchange.adapter import LISTED, Adapter, Piece
from peftjax.interop.exchange.folder import open_tensors
from peftjax.interop.exchange.heads import read_head
from peftjax.interop.exchange.modules import Modules
from peftjax.interop.exchange.placing import Found, lora_methods
from peftjax.interop.exchange.tensors import Tensor, read_float32
from peftjax.interop.json_file import read_json
from peftjax.peft.bottleneck import bottleneck

_LEGACY = re.compile(r"\.(?:attention|layer)_text_(?:task|lang)_adapters\.")


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
    tensors = open_tensors(folder, t.WEIGHTS, t.PICKLE)
    configs = _configs(document, tensors, str(folder / t.CONFIG))
    version = str(document.get("version") or "").removeprefix("adapters.")
    reader = _Reader(folder, Modules.of(base_config), document.get("name"))
    for key, source in tensors.items():
        reader.take(key, *read_float32(key, source, str(folder)))
    pieces: dict[str, Piece] = {}
    methods: list[Any] = []
    for config in configs:
        if config.get("architecture") == "lora":
            methods += reader.loras(_mended_lora(config, version), pieces)
        else:
            methods += reader.bottlenecks(_mended_bottleneck(config, version), pieces)
    reader.refuse()
    head = read_head(folder, reader.modules, base_params)
    lineage = {
        "format": "AdapterHub", "version": document.get("version"), "name": document.get("name"), "model_name": document.get("model_name"),
        "head": head.form,
    }
    return Adapter(
        (*methods, *head.methods), pieces | dict(head.pieces), dtype=next(iter(reader.dtypes), "float32"), lineage=lineage,
        notes=(*reader.notes, *head.notes),
    )


def _configs(document: Mapping[str, Any], keys: Iterable[str], origin: str) -> list[dict[str, Any]]:
    """The configs of an adapter, those of a union one by one.

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
    problems = []
    for member in configs:
        kind = member.get("architecture")
        if kind not in (None, "lora"):
            problems.append(f"architecture {kind!r} (supported: bottleneck, lora, and unions of them)")
            continue
        refused, read = (t.REFUSED_LORA, t.READ_LORA) if kind == "lora" else (t.REFUSED, t.READ)
        problems += [f"{name}: {what}" for name, what in refused.items() if member.get(name)]
        for name, value in member.items():
            if name not in read | t.IDLE | set(refused) and value not in (None, False, [], {}):
                problems.append(f"{name} = {str(value)[:60]!r}, which is not known here{did_you_mean(name, read)}")
        if kind == "lora" and member.get("composition_mode", "add") != "add":
            problems.append(f"composition_mode {member['composition_mode']!r} (IA3 and the like)")
    if problems:
        raise ValueError(f"{origin} asks for what is not supported:\n  " + "\n  ".join(problems))
    return configs


def _mended_bottleneck(config: dict[str, Any], version: str) -> dict[str, Any]:
    config = t.defaults() | config
    if not version and config["non_linearity"] in t.UNVERSIONED:
        config["non_linearity"] = t.UNVERSIONED[config["non_linearity"]]
    return config


def _mended_lora(config: dict[str, Any], version: str) -> dict[str, Any]:
    """Before 1.1.0 a LoRA was trained with a scale of 1 whatever its alpha (adapters pull request 770)."""
    config = t.lora_defaults() | config
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers and numbers < (1, 1):
        config["alpha"] = config["r"]
    return config


class _Reader:
    """The tensors by place, taken by the configs one after another; what is left is extra."""

    def __init__(self, folder: Path, modules: Modules, name: str | None):
        self.folder, self.modules, self.name = folder, modules, name
        self.host = t.HOSTS[modules.config.family]
        self.layers = modules.config.layers
        self.places: dict[str, dict[str, np.ndarray]] = collections.defaultdict(dict)  # site -> suffix -> tensor
        self.loras_at: dict[str, dict[str, np.ndarray]] = collections.defaultdict(dict)  # their module -> suffix -> tensor
        self.keys: dict[tuple[str, str], str] = {}
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.dtypes: collections.Counter[str] = collections.Counter()

    def take(self, key: str, array: np.ndarray, dtype: str) -> None:
        """Files one tensor under its place, or its complaint."""
        name = _LEGACY.sub(".adapters.", key)
        if not name.startswith(self.host.prefix):
            name = self.host.prefix + name  # of a bare model
        match = re.fullmatch(r"(?P<place>.+?)\.(?P<pool>adapters|loras)\.(?P<name>[^.]+)\.(?P<suffix>.+)", name)
        where = None
        if match and self.name in (None, match["name"]):
            known = match["place"] if match["place"] in self.modules.ours else None
            where = self._site(match["place"]) if match["pool"] == "adapters" else known
        if where is None:
            self.problems.append(f"extra     {key} {list(array.shape)}: this base and this adapter have no such place")
            return
        self.dtypes[dtype] += 1
        (self.places if match["pool"] == "adapters" else self.loras_at)[where][match["suffix"]] = array
        self.keys[where, match["suffix"]] = key

    def _site(self, place: str) -> str | None:
        """`model.layers.7.output_adapters` -> `blocks/7/mlp_out`."""
        for site, template in (("attn_out", self.host.attention), ("mlp_out", self.host.output)):
            pattern = re.escape(template).replace(re.escape("{layer}"), r"(\d+)")
            match = re.fullmatch(pattern, place)
            if match and int(match[1]) < self.layers:
                return f"blocks/{int(match[1])}/{site}"
        return None

    def refuse(self) -> None:
        """Raises with every complaint, and whatever no config took."""
        for where, tensors in (*self.places.items(), *self.loras_at.items()):
            self.problems += [f"extra     {self.keys[where, suffix]}: nothing in the config asks for it" for suffix in tensors]
        if self.problems:
            more = f"\n  and {len(self.problems) - LISTED} more" if len(self.problems) > LISTED else ""
            raise ValueError(f"{self.folder} does not fit this base:\n  " + "\n  ".join(sorted(self.problems)[:LISTED]) + more)

    # ---- bottlenecks -----------------------------------------------------------------------------------------------------------

    def bottlenecks(self, config: Mapping[str, Any], pieces: dict[str, Piece]) -> list[bottleneck]:
        """Takes the tensors of one bottleneck config; the methods that make room for them."""
        flags = tuple(bool(config[flag]) if config[flag] in (True, False) else config[flag] for flag in t.FLAGS)
        reads = t.READS.get(flags)
        if reads is None:
            raise ValueError(f"{self.folder}: the flags {dict(zip(t.FLAGS, flags, strict=True))} make something that is not supported")
        settings = {field.ours: field.read(config) for field in t.BOTTLENECK_FIELDS}
        if settings["activation"] is None:
            asked = str(config["non_linearity"])
            raise ValueError(
                f"{self.folder}: non_linearity {asked!r} is not supported{did_you_mean(asked, t.ACTIVATIONS)}; "
                f"supported are {', '.join(t.ACTIVATIONS)}"
            )
        sites = [site for site, on in (("attn_out", config["mh_adapter"]), ("mlp_out", config["output_adapter"])) if on]
        target = {site: site for site in sites}
        if reads == "behind":
            if self.host.post_norm and sites != ["mlp_out"]:
                raise ValueError(f"{self.folder}: an adapter behind the norm of attention has no site here")
            target = {"mlp_out": "block_out"} if self.host.post_norm else target
            reads = "output" if self.host.post_norm else "sum"
        if config["stochastic_depth"]:
            self.notes.append(f"stochastic_depth {config['stochastic_depth']} acts at training time only and is not applied here")
        left_out = set(config["leave_out"])
        sizes: dict[tuple[str, int], list[int]] = collections.defaultdict(list)
        for site in sites:
            for layer in range(self.layers):
                if layer not in left_out:
                    arrays = self._one(f"blocks/{layer}/{site}", config)
                    if arrays is not None:
                        pieces[f"blocks/{layer}/{target[site]}"] = Piece("Bottleneck", arrays)
                        sizes[target[site], arrays["down"].shape[0]].append(layer)
        norm = {(False, False): "none", (True, False): "before", (False, True): "after", (True, True): "both"}
        settings["init"] = settings["init"] or "bert"  # how it began is of no consequence now
        settings |= {"reads": reads, "norm": norm[bool(config["ln_before"]), bool(config["ln_after"])]}
        return list(_bottleneck_methods(sizes, self.layers, settings))

    def _one(self, where: str, config: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
        """The arrays of one bottleneck, or None after a complaint."""
        rows = t.bottleneck_rows(bool(config["ln_before"]), bool(config["ln_after"]), config["scaling"])
        tensors = self.places.get(where, {})
        missing = [row.suffix for row in rows if row.suffix not in tensors]
        # A file may hold the norm once; it is the same module under two names.
        missing = [s for s in missing if s.replace("adapter_norm_before", "adapter_down.0") not in tensors]
        if missing:
            self.problems += [f"missing   {where} {suffix}" for suffix in missing]
            return None
        width = self.modules.config.width
        size = tensors[next(row.suffix for row in rows if row.field == "down")].shape[0]
        arrays: dict[str, np.ndarray] = {}
        for row in rows:
            if row.suffix not in tensors:
                continue
            array = tensors.pop(row.suffix)
            if tuple(array.shape) != row.shape({"M": size, "D": width}):
                wanted = list(row.shape({"M": size, "D": width}))
                self.problems.append(f"misshapen {self.keys[where, row.suffix]}: {list(array.shape)}, this base wants {wanted}")
                return None
            ours = row.ours(array)
            if row.field in arrays and not np.array_equal(arrays[row.field], ours):
                self.problems.append(f"other     {self.keys[where, row.suffix]}: differs from its second copy")
            arrays[row.field] = ours
        expected = self._size(where, config)
        if size != expected:
            self.problems.append(f"misshapen {where}: a bottleneck of {size}, reduction_factor makes it {expected}")
        return {"scale": np.float32(config["scaling"])} | arrays if not isinstance(config["scaling"], str) else arrays

    def _size(self, where: str, config: Mapping[str, Any]) -> int:
        factor = config["reduction_factor"]
        if isinstance(factor, Mapping):
            factor = factor.get(where.split("/")[1], factor.get("default"))
        return max(1, int(self.modules.config.width // factor))

    # ---- LoRA ------------------------------------------------------------------------------------------------------------------

    def loras(self, config: Mapping[str, Any], pieces: dict[str, Piece]) -> tuple[Any, ...]:
        """Takes the tensors of one LoRA config; the methods that make room for them."""
        letters = [letter for letter in "qkv" if letter in config["attn_matrices"]] if config["selfattn_lora"] else []
        ours = [f"attn/{letter}" for letter in letters]
        ours += [self.host.intermediate] if config["intermediate_lora"] else []
        ours += [self.host.mlp_output] if config["output_lora"] else []
        left_out, rank, found = set(config["leave_out"]), int(config["r"]), {}
        scale, rows = np.float32(config["alpha"] / rank), t.DORA if config["use_dora"] else t.LORA
        if config["use_dora"]:
            self._require_dora(config, scale, ours)
        for layer in (layer for layer in range(self.layers) if layer not in left_out):
            by_module: dict[str, list[str]] = collections.defaultdict(list)
            for module in ours:
                path = f"blocks/{layer}/{module}"
                by_module[self.modules.theirs[path].name].append(path)
            for name, paths in by_module.items():
                for path, arrays in self._factors(name, paths, rank, rows):
                    pieces[f"{path}/kernel"] = Piece("DoRA" if rows is t.DORA else "LoRA", arrays | {"scale": scale})
                    found[path] = Found(rank, config["alpha"])
        return lora_methods(found, self.layers, Found(rank, config["alpha"]), **{f.ours: f.read(config) for f in t.LORA_FIELDS})

    def _require_dora(self, config: Mapping[str, Any], scale: np.float32, modules: Iterable[str]) -> None:
        biased = next((self.modules.theirs[f"blocks/0/{m}"].name for m in modules if self.modules.has_bias(f"blocks/0/{m}")), None)
        why = t.no_dora(self.modules.config.family, scale, biased)
        if why:
            raise ValueError(f"{self.folder}: use_dora is not supported here, where AdapterHub's DoRA is another function: {why}")
        if config["dropout"]:
            self.notes.append(f"dropout {config['dropout']} acts as in HF PEFT's DoRA: what it takes away passes through the base alone")

    def _factors(self, name: str, paths: list[str], rank: int, rows: Sequence[Tensor]) -> Iterable[tuple[str, dict[str, np.ndarray]]]:
        """(our path, its arrays) of each part of one of their modules; nothing after a complaint."""
        tensors = self.loras_at.get(name, {})
        missing = [row.suffix for row in rows if row.suffix not in tensors]
        if missing:
            self.problems += [f"missing   {name}.loras.{self.name}.{suffix}" for suffix in missing]
            return
        a, b, *lengths = (tensors.pop(row.suffix) for row in rows)
        inputs, outputs = self.modules.sizes(paths[0])[0], [self.modules.sizes(path)[-1] for path in paths]
        if a.shape != (rank * len(paths), inputs) or b.shape != (sum(outputs), rank):
            self.problems.append(
                f"misshapen {name}: lora_A {list(a.shape)} and lora_B {list(b.shape)}, this base wants "
                f"{[rank * len(paths), inputs]} and {[sum(outputs), rank]}"
            )
            return
        if any(array.shape != (sum(outputs), 1) for array in lengths):
            self.problems.append(f"misshapen {name}: m.weight {list(lengths[0].shape)}, this base wants {[sum(outputs), 1]}")
            return
        end = 0
        for number, path in enumerate(paths):
            start, end = end, end + outputs[number]
            parts = (a[number * rank : (number + 1) * rank], b[start:end], *(array[start:end] for array in lengths))
            yield path, {row.field: row.ours(part) for row, part in zip(rows, parts, strict=True)}


def _bottleneck_methods(
    sizes: Mapping[tuple[str, int], list[int]], layers: int, options: Mapping[str, Any]
) -> Iterable[bottleneck]:
    """One method for all sites of one size on the same layers."""
    groups: dict[tuple[int, tuple[int, ...]], list[str]] = collections.defaultdict(list)
    for (site, size), on in sizes.items():
        groups[size, tuple(on)].append(site)
    for (size, on), sites in sorted(groups.items()):
        yield bottleneck(size=size, sites=tuple(sites), layers=None if on == tuple(range(layers)) else on, **options)
