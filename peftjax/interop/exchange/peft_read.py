"""An adapter out of a directory that HF PEFT wrote: adapter_config.json and adapter_model.safetensors.

    adapter = read_peft("my-lora", base.config)

The tensors say what is there, the config how it is scaled; then the config's targets are held against the tensors. Whatever is unread,
missing, misshapen or not supported is an error that names all of it. The scale, which their file does not hold, is derived as PEFT derives
it and stored as a number.
"""

import collections
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from peftjax.hints import did_you_mean
from peftjax.interop.exchange import peft_table as t
from peftjax.interop.exchange.adapter import LISTED, Adapter, Piece
from peftjax.interop.exchange.folder import open_tensors, read_json
from peftjax.interop.exchange.lora_methods import Found, by_layers, lora_methods, named
from peftjax.interop.exchange.modules import Modules, logical
from peftjax.interop.exchange.peft_rules import TIED, pattern_value, saved, targeted
from peftjax.interop.exchange.tensors import Tensor, read_float32, split_key
from peftjax.peft.classifier import classifier
from peftjax.peft.parts import bitfit, full
from peftjax.peft.tokens import trainable_tokens


def read_peft(folder: str | Path, base_config: Any, base_params: Any = None) -> Adapter:
    """The adapter of a directory, for a base with this config.

    Args:
        base_params: the base's tree, with which copies of base weights in the file are compared; None takes them on trust and says so.

    Raises:
        FileNotFoundError: no config or no tensors there.
        ValueError: another method, a setting that is not supported, a pickle, a foreign base, or tensors that are missing, extra or
            misshapen.
    """
    folder = Path(folder)
    config = read_json(folder / t.CONFIG)
    _check_config(config, str(folder / t.CONFIG))
    sources = open_tensors(folder, t.WEIGHTS, t.PICKLE)
    reader = _Reader(folder, config, Modules.of(base_config), base_params)
    for key, source in sources.items():
        reader.take(key, *read_float32(key, source, str(folder)))
    return reader.adapter()


def _check_config(config: Mapping[str, Any], origin: str) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        known = " (a method of HF PEFT that is not exchanged yet)" if kind in t.OTHER_TYPES else ""
        raise ValueError(f"{origin}: peft_type is {kind!r}{known}; LORA can be read")
    problems = [f"{name}: {what}" for name, what in t.REFUSED.items() if config.get(name)]
    for name, value in config.items():
        if name not in t.READ and name not in t.REFUSED and value not in (None, False, {}, [], ""):
            problems.append(f"{name} = {str(value)[:60]!r}, which is not known here{did_you_mean(name, {*t.READ, *t.REFUSED})}")
    if t.MUTATING(config.get("init_lora_weights")):
        problems.append(
            f"init_lora_weights {config['init_lora_weights']!r}: the factors fit a base that was changed when training began. Save it in "
            "PEFT with path_initial_model_for_weight_conversion, which makes a plain LoRA of it"
        )
    if problems:
        raise ValueError(f"{origin} asks for what is not supported:\n  " + "\n  ".join(problems))


class _Reader:
    """Collects tensors into pieces, then checks them as a whole."""

    def __init__(self, folder: Path, config: Mapping[str, Any], modules: Modules, base_params: Any):
        self.folder, self.config, self.modules, self.base_params = folder, config, modules, base_params
        self.arrays: dict[str, dict[str, dict[str, np.ndarray]]] = collections.defaultdict(lambda: collections.defaultdict(dict))
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.label_count = 0
        self.copies: list[tuple[str, np.ndarray]] = []
        self.dtypes: collections.Counter[str] = collections.Counter()

    def take(self, key: str, array: np.ndarray, dtype: str) -> None:
        """Files one tensor under its module, or its complaint."""
        found = split_key(key.removeprefix(t.PREFIX), t.SUFFIXES) if key.startswith(t.PREFIX) else None
        if found is None or found[0] not in self.modules.ours:
            hint = did_you_mean(found[0], self.modules.ours) if found else ""
            self.problems.append(f"extra     {key} {list(array.shape)}: this base has no such place{hint}")
            return
        self.dtypes[dtype] += 1
        self.arrays[found[0]][found[1]] = {"array": array}

    def adapter(self) -> Adapter:
        """The whole; raises with every complaint."""
        pieces: dict[str, Piece] = {}
        found: dict[str, Found] = {}
        saved_modules, biases, tokens = [], [], {}
        tied = self._tied_duplicates()
        for name, entries in self.arrays.items():
            entries = {suffix: entry["array"] for suffix, entry in entries.items()}
            if t.COPY_OF_BASE in entries:
                self.copies.append((name, entries.pop(t.COPY_OF_BASE)))
            paths = self.modules.ours[name]
            if name in tied:
                continue
            if {"lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B"} & set(entries):
                self._lora(name, paths, entries, pieces, found)
            if t.TOKENS.tensors[0].suffix in entries:
                tokens[name] = self._tokens(name, paths[0], entries.pop(t.TOKENS.tensors[0].suffix), pieces)
            if t.BIAS_UNDER_LORA.suffix in entries:
                biases += self._bias(name, paths, t.BIAS_UNDER_LORA, entries.pop(t.BIAS_UNDER_LORA.suffix), pieces)
            if "weight" in entries:
                self._saved(name, paths, entries, pieces)
                saved_modules += paths
            elif "bias" in entries:
                biases += self._bias(name, paths, t.SAVED_BIAS, entries.pop("bias"), pieces)
            self.problems += [f"extra     {t.PREFIX}{name}.{suffix}: nothing here reads it" for suffix in entries]
        self._check_targets(found, saved_modules)
        self._check_copies()
        if self.problems:
            more = f"\n  and {len(self.problems) - LISTED} more" if len(self.problems) > LISTED else ""
            raise ValueError(f"{self.folder} does not fit this base:\n  " + "\n  ".join(sorted(self.problems)[:LISTED]) + more)
        return Adapter(
            (*self._lora_methods(found), *self._saved_methods(saved_modules), *self._bias_methods(biases), *_token_methods(tokens)),
            pieces,
            dtype=self.dtypes.most_common(1)[0][0],
            lineage={"format": "HF PEFT", "peft_version": self.config.get("peft_version"),
                     "base_model_name_or_path": self.config.get("base_model_name_or_path")},
            notes=tuple(self.notes),
        )

    # ---- one module ------------------------------------------------------------------------------------------------------------

    def _shaped(self, name: str, row: Tensor, array: np.ndarray, sizes: Mapping[str, int]) -> bool:
        wanted = row.shape(sizes)
        fits = len(wanted) == array.ndim and all(w in (None, n) for w, n in zip(wanted, array.shape, strict=True))
        if not fits:
            letters = [f"{axis}={size}" if size is not None else axis for axis, size in zip(row.axes, wanted, strict=True)]
            self.problems.append(f"misshapen {t.PREFIX}{name}.{row.suffix}: {list(array.shape)}, this base wants [{', '.join(letters)}]")
        return fits

    def _sizes(self, name: str) -> dict[str, int]:
        """in and out of their module, the parts of ours together."""
        paths = self.modules.ours[name]
        shapes = [self.modules.sizes(path) for path in paths]
        if self.modules.kind(paths[0]) == "embedding":
            return {"V": shapes[0][0], "D": shapes[0][1]}
        if paths == ["head"] and self._labelled():
            return {"in": shapes[0][0]}  # an adapter's head may have other labels than the base's
        return {"in": shapes[0][0], "out": sum(shape[-1] for shape in shapes)}

    def _labelled(self) -> bool:
        """Whether the base is an encoder, whose head gives labels."""
        return hasattr(self.modules.config, "labels")

    def _lora(self, name: str, paths: list[str], entries: dict[str, np.ndarray], pieces: dict, found: dict) -> None:
        table = t.LORA_EMBEDDING if self.modules.kind(paths[0]) == "embedding" else t.LORA_LINEAR
        rows = [row for row in table.tensors if row.suffix in entries]
        absent = [row.suffix for row in table.tensors if row.suffix not in entries and not row.optional]
        if absent:
            self.problems += [f"missing   {t.PREFIX}{name}.{suffix}" for suffix in absent]
            for row in rows:
                entries.pop(row.suffix)
            return
        array_of = {row.field: entries.pop(row.suffix) for row in rows}
        rank = array_of["a"].shape[0]
        sizes = self._sizes(name) | {"R": rank}
        if not all([self._shaped(name, row, array_of[row.field], sizes) for row in rows]):
            return
        expected = pattern_value(self.config.get("rank_pattern"), name, self.config.get("r", 8))
        if rank != expected:
            self.problems.append(f"misshapen {t.PREFIX}{name}: rank {rank}, the config says {expected}")
            return
        alpha = pattern_value(self.config.get("alpha_pattern"), name, self.config.get("lora_alpha", 8))
        scale = alpha / (rank**0.5 if self.config.get("use_rslora") else rank)
        for path in paths:
            arrays = {row.field: row.ours(array_of[row.field], self.modules.theirs[path].part) for row in rows}
            pieces[self.modules.parameter(path)] = Piece("LoRA", arrays | {"scale": np.float32(scale)})
            found[path] = Found(rank, alpha)

    def _tokens(self, name: str, path: str, array: np.ndarray, pieces: dict) -> tuple[int, ...]:
        indices = self.config.get("trainable_token_indices") or []
        if isinstance(indices, Mapping):
            indices = next((ids for module, ids in indices.items() if name == module or name.endswith(f".{module}")), [])
        shape = self.modules.sizes(path)
        row = t.TOKENS.tensors[0]
        if self._shaped(name, row, array, {"N": len(indices), "D": shape[1] if self.modules.kind(path) == "embedding" else shape[0]}):
            pieces[self.modules.parameter(path)] = Piece("TokenRows", {"rows": row.ours(array), "ids": np.asarray(indices, np.int32)})
        return tuple(indices)

    def _bias(self, name: str, paths: list[str], row: Tensor, array: np.ndarray, pieces: dict) -> list[str]:
        if not all(self.modules.has_bias(path) for path in paths):
            self.problems.append(f"extra     {t.PREFIX}{name}.{row.suffix}: this base has no bias there")
        elif self._shaped(name, row, array, {"out": self._sizes(name).get("out")} if self.modules.kind(paths[0]) != "norm" else {}):
            for path in paths:
                pieces[f"{path}/bias"] = Piece("Trained", {"value": row.ours(array, self.modules.theirs[path].part)})
            return paths
        return []

    def _saved(self, name: str, paths: list[str], entries: dict[str, np.ndarray], pieces: dict) -> None:
        kind = self.modules.kind(paths[0])
        row = next(table.tensors[0] for table in t.TABLES if table.node == "Trained" and kind in table.kinds)
        array = entries.pop("weight")
        if self._shaped(name, row, array, self._sizes(name)):
            for path in paths:
                pieces[self.modules.parameter(path)] = Piece("Trained", {"value": row.ours(array, self.modules.theirs[path].part)})
        if paths == ["head"]:
            self.label_count = array.shape[0]
        if any(self.modules.has_bias(path) for path in paths):
            if "bias" in entries:
                self._bias(name, paths, t.SAVED_BIAS, entries.pop("bias"), pieces)
            else:
                self.problems.append(f"missing   {t.PREFIX}{name}.bias")

    # ---- the whole -------------------------------------------------------------------------------------------------------------

    def _tied_duplicates(self) -> set[str]:
        """With ensure_weight_tying PEFT writes what it holds once under both names; the head's copy is checked and left out."""
        if not self._ensures():
            return set()
        head, embed = self.modules.theirs["head"].name, self.modules.theirs["embed"].name
        if head not in self.arrays or embed not in self.arrays:
            return set()
        pairs = {"lora_A.weight": ("lora_embedding_B", True), "lora_B.weight": ("lora_embedding_A", True), "weight": ("weight", False)}
        for suffix, entry in self.arrays[head].items():
            twin, flip = pairs.get(suffix, (suffix, False))
            other = self.arrays[embed].get(twin, {}).get("array")
            if suffix != t.COPY_OF_BASE and (other is None or not np.array_equal(entry["array"], other.T if flip else other)):
                self.problems.append(f"other     {t.PREFIX}{head}.{suffix}: ensure_weight_tying is on, yet it is not {embed}'s")
        return {head}

    def _check_targets(self, found: Mapping[str, Found], saved_modules: list[str]) -> None:
        names, origin = list(self.modules.ours), str(self.folder / t.CONFIG)
        wanted = set(targeted(names, self.modules.linear, self.config))
        there = {name for path, name in ((path, self.modules.theirs[path].name) for path in found)}
        complained = " ".join(self.problems)
        for name in sorted(wanted - there):
            if f".{name}." not in complained and f".{name}:" not in complained and name not in self._ensured():
                self.problems.append(f"missing   LoRA of {name}, which {origin} targets")
        self.problems += [f"extra     LoRA of {name}, which {origin} does not target" for name in sorted(there - wanted)]
        entries = self.config.get("modules_to_save") or []
        for name in names:
            has = self.modules.ours[name][0] in saved_modules
            if has != saved(entries, name) and name not in self._ensured():
                what = "extra     " if has else "missing   "
                self.problems.append(f"{what}{t.PREFIX}{name}.weight: modules_to_save is {entries}")

    def _ensured(self) -> set[str]:
        """Modules that ensure_weight_tying names beside or instead of what the tensors say."""
        return {self.modules.theirs[ours].name for ours in ("head", "embed")} if self._ensures() else set()

    def _ensures(self) -> bool:
        """Whether the embedding's adapter takes the tied head with it."""
        tied = getattr(self.modules.config, "tied", False) and self.modules.theirs["embed"].name.endswith(TIED)
        return bool(tied and self.config.get("ensure_weight_tying"))

    def _check_copies(self) -> None:
        for name, copy in self.copies:
            path = self.modules.ours[name][0]
            if self.base_params is None:
                self.notes.append(f"{name}.{t.COPY_OF_BASE}, a copy of the base's weight, was not compared with the base")
                continue
            theirs = self._base_weight(path)
            if theirs is not None and not np.array_equal(copy, theirs):
                self.problems.append(f"other     {t.PREFIX}{name}.{t.COPY_OF_BASE} differs from this base's weight: it is of another base")
            else:
                self.notes.append(f"{name}.{t.COPY_OF_BASE} is this base's own weight and was left out")

    def _base_weight(self, path: str) -> np.ndarray | None:
        from peftjax.nn.tree import get

        if path == "head" and getattr(self.modules.config, "tied", False):
            path = "embed"
        leaf = get(self.base_params, self.modules.parameter(path))
        if leaf is None:
            return None
        array = np.asarray(leaf, np.float32)
        return array.T if self.modules.kind(path) == "linear" else array

    def _lora_methods(self, found: Mapping[str, Found]) -> tuple[Any, ...]:
        if not found:
            return ()
        default = Found(self.config.get("r", 8), self.config.get("lora_alpha", 8))
        settings = {f.ours: f.read(self.config) for f in t.LORA_FIELDS} | {"ensure_weight_tying": self._ensures()}
        return lora_methods(found, self.modules.config.layers, default, **settings)

    def _saved_methods(self, paths: list[str]) -> tuple[Any, ...]:
        if not paths:
            return ()
        everywhere = set(range(self.modules.config.layers))
        partly = [module for module, layers in by_layers(paths).items() if layers not in ({None}, everywhere)]
        if partly:
            raise ValueError(f"{self.folder}: modules_to_save on some layers only is not supported: {', '.join(partly)}")
        if self._labelled() and "head" in paths:
            labels, count = self.modules.config.labels, self.label_count
            head = classifier(labels=labels if len(labels) == count else count, hidden="pool" in paths)
            others = [path for path in paths if path not in ("head", "pool")]
            return (head, *self._saved_methods(others))
        targets = tuple(sorted({named(logical(path)) for path in paths}))
        return (full(targets=targets, ensure_weight_tying=self._ensures()),)

    def _bias_methods(self, paths: list[str]) -> tuple[Any, ...]:
        mode = self.config.get("bias") or "none"
        if mode == "none" and not paths:
            return ()
        if mode == "none" or not paths:
            raise ValueError(f"{self.folder}: bias is {mode!r}, and the file holds {len(paths)} biases")
        if mode == "all":
            return (bitfit(targets="all"),)
        return (bitfit(targets=tuple(sorted({named(logical(path)) for path in paths}))),)


def _token_methods(tokens: Mapping[str, tuple[int, ...]]) -> tuple[Any, ...]:
    return tuple(
        trainable_tokens(ids=ids, targets="lm_head" if name.endswith("lm_head") else "embed_tokens") for name, ids in sorted(tokens.items())
    )
