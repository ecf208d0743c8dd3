"""An adapter into a directory that HF PEFT loads: adapter_config.json and adapter_model.safetensors, by the tables of peft_methods.

    write_peft("out/peft", adapter, base.config, base_uri)

PEFT stores no scale, so alpha is written as scale x rank (or what else divides it), and ranks and alphas that differ go into the patterns
by whole module names. What PEFT has no place for is an error that names it.
"""

import collections
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from peftjax.interop.exchange import peft_table as t
from peftjax.interop.exchange.adapter import Adapter, Piece
from peftjax.interop.exchange.folder import write_tensors
from peftjax.interop.exchange.modules import Modules, layer_of, logical
from peftjax.interop.exchange.peft_config import Written, peft_config
from peftjax.interop.exchange.peft_context import context_content, is_context
from peftjax.interop.exchange.peft_masks import closed
from peftjax.interop.exchange.peft_methods import METHODS
from peftjax.interop.exchange.peft_rules import ENDS, TIED
from peftjax.interop.exchange.plain_form import in_plain_form
from peftjax.interop.exchange.tensors import Tensor, fuse, trimmed
from peftjax.interop.json_file import write_json
from peftjax.nn.shared import STORE
from peftjax.peft.lora import lora
from peftjax.peft.select import as_patterns, matches, resolve

PEFT_VERSION = "0.21.2"  # whose files these are like
PEFT_KNOWS = ("AdaLoRA",)  # of LoRA's relatives: all others are written as the plain LoRA that they are
# Fields of methods that PEFT says by module, or not at all.
_BY_MODULE = ("targets", "layers", "name")


def write_peft(folder: str | Path, adapter: Adapter, base_config: Any, base_uri: str = "", task: str = "CAUSAL_LM") -> None:
    """Writes the directory, config last.

    Args:
        base_uri: written as base_model_name_or_path.
        task: PEFT's task type.

    Raises:
        ValueError: pieces that PEFT has no place for; nothing is written then.
    """
    tensors, config = peft_content(adapter, base_config, base_uri, task)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / t.WEIGHTS, tensors, adapter.dtype)
    write_json(folder / t.CONFIG, config)


def peft_content(
    adapter: Adapter, base_config: Any, base_uri: str = "", task: str = "CAUSAL_LM"
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(tensors by their keys, the content of adapter_config.json). Errors as in `write_peft`."""
    about = {
        "task_type": task, "base_model_name_or_path": base_uri, "revision": None, "auto_mapping": None, "inference_mode": True,
        "peft_version": PEFT_VERSION,
    }
    adapter = in_plain_form(adapter, but=PEFT_KNOWS)
    if is_context(adapter):
        tensors, config = context_content(adapter, base_config)
        return tensors, about | config
    modules, method = Modules.of(base_config), _method(adapter)
    own = {table.node for table in method.tables}
    by_module: dict[str, dict[str, Piece]] = collections.defaultdict(dict)
    homeless = []
    for path, piece in adapter.pieces.items():
        module = path.rpartition("/")[0]
        if piece.kind in (*own, "TokenRows", "Trained") and module in modules.theirs:
            by_module[modules.theirs[module].name][path] = piece
        elif path.removeprefix(f"{STORE}/") not in {row.field for row in method.shared}:
            homeless.append(f"{path} ({piece.kind})")
    if homeless:
        raise ValueError(
            f"HF PEFT has no place for {', '.join(homeless[:5])}{', ...' if len(homeless) > 5 else ''}; "
            "bottleneck adapters go into AdapterHub's form"
        )
    writer = _Writer(modules, method, _settings(adapter, method), adapter)
    for name, pieces in by_module.items():
        writer.take(name, pieces)
    writer.tie(adapter)
    return writer.content(about)


def _method(adapter: Adapter) -> t.PeftMethod:
    """The one peft_type of an adapter; LORA for what needs none."""
    kinds = [method for method in METHODS.values() if any(isinstance(one, method.make) for one in adapter.methods)]
    if len(kinds) > 1:
        raise ValueError(f"HF PEFT has one method a file; here are {', '.join(kind.peft_type for kind in kinds)}: store them apart")
    return kinds[0] if kinds else METHODS["LORA"]


def _settings(adapter: Adapter, method: t.PeftMethod) -> Any:
    """The first of our methods of this type: what PEFT says once for all modules."""
    methods = [one for one in adapter.methods if isinstance(one, method.make)]
    if not methods:
        return lora(targets=())
    first = methods[0]
    by_module = {*_BY_MODULE, *(n.ours for n in method.numbers), *(n.ours_patterns for n in method.numbers)}
    said = [field.ours for field in method.fields] if method.make is lora else [f for f in vars(first) if f not in by_module]
    for other in methods[1:]:
        for field in said:
            if getattr(other, field) != getattr(first, field):
                values = f"{getattr(first, field)} and {getattr(other, field)}"
                raise ValueError(f"HF PEFT has one {field} for all modules; these {method.tables[-1].node}s have {values}")
    return first


class _Writer:
    """Tensors and what the config has to say of them, module by module of theirs."""

    def __init__(self, modules: Modules, method: t.PeftMethod, settings: Any, adapter: Adapter):
        self.modules, self.method, self.settings, self.adapter = modules, method, settings, adapter
        self.nodes = {table.node for table in method.tables}
        self.said = {field.theirs: field.write(getattr(settings, field.ours)) for field in method.fields} | method.unlike(settings, {})
        self.tensors: dict[str, np.ndarray] = {}
        self.written = Written()

    def put(self, name: str, suffix: str, array: np.ndarray) -> None:
        self.tensors[f"{t.PREFIX}{name}.{suffix}"] = array

    def take(self, name: str, pieces: Mapping[str, Piece]) -> None:
        """All pieces of one module of theirs."""
        biases = {_module(path): piece.arrays["value"] for path, piece in pieces.items() if path.endswith("/bias")}
        mains = {_module(path): piece for path, piece in pieces.items() if not path.endswith("/bias")}
        kinds = {piece.kind for piece in mains.values()}
        if len(kinds) > 1:
            raise ValueError(f"HF PEFT has one method a module; {name} has {' and '.join(sorted(kinds))}")
        if kinds & self.nodes:
            self._adapted(name, mains)
        elif kinds == {"TokenRows"}:
            (piece,) = mains.values()
            self.put(name, t.TOKENS.tensors[0].suffix, piece.arrays["rows"])
            self.written.tokens[name] = [int(i) for i in piece.arrays["ids"]]
        elif kinds == {"Trained"}:
            row = t.saved_row(self.modules.kind(next(iter(mains))))
            self.put(name, row.suffix, self._joined(name, row, {path: piece.arrays["value"] for path, piece in mains.items()}))
            self.written.saved.append(name)
        if biases:
            row = t.BIAS_BELOW if kinds & self.nodes else t.SAVED_BIAS
            self.put(name, row.suffix, self._joined(name, row, biases))
            if kinds != {"Trained"}:
                self.written.bias.append(name)

    def tie(self, adapter: Adapter) -> None:
        """What a tied head takes over from the embedding stands under the head's name too, as PEFT has it with ensure_weight_tying; where
        PEFT does not know the embedding by its name, the head is a target of its own with the same values."""
        embed, head = self.modules.theirs["embed"].name, self.modules.theirs.get("head")
        if not (getattr(self.modules.config, "tied", False) and _head_follows(adapter)) or head is None:
            return
        start = f"{t.PREFIX}{embed}."
        first = {key.removeprefix(start): array for key, array in self.tensors.items() if key.startswith(start)}
        if "lora_magnitude_vector" in first:
            raise ValueError(
                f"HF PEFT has no place for DoRA on {embed} that the tied {head.name} follows: there the head has lengths and magnitudes of "
                "its own; attach it with ensure_weight_tying=False, or merge it"
            )
        if "lora_embedding_A" in first:
            self.put(head.name, "lora_A.weight", first["lora_embedding_B"].T)
            self.put(head.name, "lora_B.weight", first["lora_embedding_A"].T)
        if "weight" in first:
            self.put(head.name, "weight", first["weight"])
        if not first.keys() & {"lora_embedding_A", "weight"}:
            return
        self.written.ensures_tying = embed.endswith(TIED)
        if not self.written.ensures_tying:
            if embed in self.written.numbers:
                self.written.numbers[head.name] = self.written.numbers[embed]
            if embed in self.written.saved:
                self.written.saved.append(head.name)

    def content(self, about: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """(tensors by their keys, the content of adapter_config.json)."""
        if not self.written.numbers and not self.written.bias:  # PEFT has types of their own for these
            saved, tokens = self.written.saved, self.written.tokens
            if saved and not tokens and all(self._norm(name) for name in saved):
                return self._reworded("LN_TUNING"), dict(about) | {
                    "peft_type": "LN_TUNING", "target_modules": self._short(saved), "exclude_modules": None, "modules_to_save": None,
                }
            if tokens and not saved and len({tuple(ids) for ids in tokens.values()}) == 1:
                return self._reworded("TRAINABLE_TOKENS"), dict(about) | {
                    "peft_type": "TRAINABLE_TOKENS", "target_modules": sorted({n.rpartition(".")[2] for n in tokens}),
                    "token_indices": next(iter(tokens.values())), "init_weights": True,
                }
        self._saved_with_biases()
        config = peft_config(self.method, self.settings, self.said, self.written, self.modules, about)
        for row in self.method.shared if self.written.numbers else ():
            self.tensors[f"base_model.{row.suffix}"] = self._held(row)
        return self.tensors, config

    # ---- parts -----------------------------------------------------------------------------------------------------------------

    def _adapted(self, name: str, pieces: Mapping[str, Piece]) -> None:
        """The method's own tensors of one module."""
        paths, first = self.modules.ours[name], next(iter(pieces.values()))
        kind = self.modules.kind(paths[0])
        self.written.conv1d |= kind == "conv1d"
        table = self.method.table_of(first.kind, kind, self.settings, logical(paths[0]))
        if table is None:
            what = f"{name}, a Conv1D there; merge it, or make it a LoRA" if kind == "conv1d" else name
            raise ValueError(f"HF PEFT has no {first.kind} on {what}")
        if self.method.make is lora:
            factors = {path: trimmed(piece.arrays) for path, piece in pieces.items()}
            arrays = factors[paths[0]] if len(paths) == 1 else self._fused(name, factors)
            theirs = {row: row.theirs(arrays[row.field]) for row in table.tensors if row.field in arrays}
        else:
            arrays = first.arrays
            theirs = {row: self._part(name, table.node, row, pieces) for row in table.tensors if row.field in arrays}
        mask = self._mask(name, arrays)
        sizes: dict[str, int] = {}
        for suffix in dict.fromkeys(row.suffix for row in theirs):
            lines = {row.line: array for row, array in theirs.items() if row.suffix == suffix}
            array = lines[None] if None in lines else np.stack([lines[number] for number in sorted(lines)])
            axes = next(row.axes for row in theirs if row.suffix == suffix)
            self.put(name, suffix, closed(axes, array, mask))
            sizes |= dict(zip(axes, array.shape, strict=True))
        for row in self.method.shared if self.method.repeated else ():
            self.put(name, row.suffix, self._held(row))
        self.written.numbers[name] = numbers = self._numbers(paths[0], sizes, arrays)
        inputs, outputs = self.modules.sizes(paths[0])[0], sum(self.modules.sizes(path)[-1] for path in paths)
        config = self.said | {number.theirs: numbers[number.ours] for number in self.method.numbers}
        for field, wanted in self.method.constant(numbers, config, inputs, outputs).items():
            if not np.array_equal(wanted, arrays[field]):
                raise ValueError(f"HF PEFT derives {field} of {table.node} from its config, and those on {name} are others")

    def _mask(self, name: str, arrays: Mapping[str, np.ndarray]) -> list[bool] | None:
        """Which ranks of a module are written: all, or where the adapter's training has begun those that it has not pruned."""
        if self.method.masked is None:
            return None
        field = self.method.masked.field
        begun = any(np.any(piece.arrays[field]) for piece in self.adapter.pieces.values() if field in piece.arrays)
        self.written.masks[name] = [bool(value) or not begun for value in arrays[field] != 0]
        return self.written.masks[name]

    def _part(self, name: str, node: str, row: Tensor, pieces: Mapping[str, Piece]) -> np.ndarray:
        """One tensor of a module: that of its only part, or of all of them together."""
        paths = self.modules.ours[name]
        if len(pieces) < len(paths) or (len(paths) > 1 and not self.method.parts):
            raise ValueError(f"HF PEFT has {node} on {name} as a whole, and here it stands on {', '.join(pieces)} alone; merge it")
        arrays = [row.theirs(pieces[path].arrays[row.field]) for path in paths]
        if len(arrays) > 1 and row.cut is not None:
            return np.concatenate(arrays, axis=row.cut)
        if any(not np.array_equal(array, arrays[0]) for array in arrays[1:]):
            raise ValueError(f"HF PEFT has one {node} on the input of {name}; those of {', '.join(pieces)} differ: merge them")
        return arrays[0]

    def _held(self, row: Tensor) -> np.ndarray:
        return row.theirs(self.adapter.pieces[f"{STORE}/{row.field}"].arrays["value"])

    def _numbers(self, path: str, sizes: Mapping[str, int], arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The numbers of one module by field of ours: of its shapes, of its scale, else of the method that stands there."""
        stands = next((m for m in self.adapter.methods if isinstance(m, self.method.make) and _covers(m, path)), self.settings)
        numbers: dict[str, Any] = {}
        for number in self.method.numbers:
            value = getattr(stands, number.ours)
            if number.axis in sizes:
                value = sizes[number.axis]
            elif number.ours_patterns:
                value = resolve(getattr(stands, number.ours_patterns), logical(path), layer_of(path), value)
            if number.ours == "alpha" and self.method.per:
                per = self.method.per(numbers["rank"], self.said)
                value = self._alpha(stands, per, numbers["rank"], float(arrays["scale"]))
            numbers[number.ours] = value
        return numbers

    def _alpha(self, stands: Any, per: float, rank: int, scale: float) -> float:
        """The alpha that PEFT turns back into this scale; one of the method's own numbers where it says the same."""
        asked = stands.alpha if stands.alpha is not None else rank
        for candidate in (asked, *getattr(stands, "alpha_pattern", {}).values()):
            if np.float32(candidate / per) == np.float32(scale):
                return float(candidate)
        return scale * per

    def _reworded(self, kind: str) -> dict[str, np.ndarray]:
        """The tensors by the keys of a type that says in other words what a LoRA's file says."""
        if kind == "TRAINABLE_TOKENS" and getattr(self.modules.config, "tied", False) and "head" in self.modules.theirs:
            embed, head, suffix = *(self.modules.theirs[ours].name for ours in ("embed", "head")), t.TOKENS.tensors[0].suffix
            self.put(head, suffix, self.tensors[f"{t.PREFIX}{embed}.{suffix}"])
        tensors = {}
        for key, array in self.tensors.items():
            end = next((end for end in ENDS[kind].items() if key.endswith(end[1])), ("", ""))
            tensors[key.removesuffix(end[1]) + end[0]] = array
        return tensors

    def _norm(self, name: str) -> bool:
        return self.modules.kind(self.modules.ours[name][0]) == "norm"

    def _short(self, names: list[str]) -> list[str]:
        return self.modules.shortest(names, dotted=True, among=list(self.modules.ours))

    def _fused(self, name: str, factors: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        parts = [(self.modules.theirs[path].part, factors[path]) for path in self.modules.ours[name] if path in factors]
        whole = sum(self.modules.sizes(path)[-1] for path in self.modules.ours[name])
        lengths = [part["magnitude"] for _, part in parts if "magnitude" in part]
        if lengths and len(lengths) < len(self.modules.ours[name]):
            raise ValueError(f"HF PEFT has DoRA on {name} as a whole, and here it stands on {', '.join(factors)} alone; merge it")
        return fuse(parts, whole) | ({"magnitude": np.concatenate(lengths)} if lengths else {})

    def _joined(self, name: str, row: Tensor, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """What stands in the parts of a module, as their one tensor; a fused module is saved as a whole or not at all."""
        paths = self.modules.ours[name]
        if len(arrays) != len(paths):
            raise ValueError(f"HF PEFT saves {name} as a whole; only {', '.join(arrays)} of it is trained")
        return row.theirs(np.concatenate([arrays[path] for path in paths], axis=-1) if len(paths) > 1 else arrays[paths[0]])

    def _saved_with_biases(self) -> None:
        """Refuses modules saved whole without the bias that they have."""
        for name in self.written.saved:
            for path in self.modules.ours[name]:
                if self.modules.has_bias(path) and f"{t.PREFIX}{name}.bias" not in self.tensors:
                    raise ValueError(f"HF PEFT saves {name} with its bias, which is not trained here")


def _module(path: str) -> str:
    """`blocks/7/attn/q/kernel` -> `blocks/7/attn/q`."""
    return path.rpartition("/")[0]


def _covers(method: Any, path: str) -> bool:
    """Whether a method stands on one of our modules, by its targets and layers."""
    layers = method.layers
    return (layers is None or layer_of(path) in set(layers)) and any(matches(p, logical(path)) for p in as_patterns(method.targets))


def _head_follows(adapter: Adapter) -> bool:
    """Whether a method on the embedding takes the tied head with it."""
    embed, head = adapter.pieces.get("embed/embedding"), adapter.pieces.get("head/kernel")
    if embed is None or embed.kind == "TokenRows" or head is not None:
        return False
    return all(getattr(method, "ensure_weight_tying", True) for method in adapter.methods if _touches_embedding(method))


def _touches_embedding(method: Any) -> bool:
    targets = getattr(method, "targets", None) or ()
    return any(matches(target, "embed") for target in as_patterns(targets))
