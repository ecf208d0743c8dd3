"""An adapter into a directory that HF PEFT loads: adapter_config.json and adapter_model.safetensors, by the tables of peft_table.

    write_peft("out/peft", adapter, base.config, base_uri)

PEFT stores no scale, so alpha is written as scale x rank (x 1/sqrt(rank) with rsLoRA), and ranks and alphas that differ go into the
patterns by whole module names. What PEFT has no place for is an error that names it.
"""

import collections
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from peftjax.interop.exchange import peft_table as t
from peftjax.interop.exchange.adapter import Adapter, Piece
from peftjax.interop.exchange.folder import write_tensors
from peftjax.interop.exchange.modules import Modules
from peftjax.interop.exchange.peft_rules import TIED, pattern_value, targeted
from peftjax.interop.exchange.tensors import Tensor, fuse, trimmed
from peftjax.interop.json_file import write_json
from peftjax.peft.lora import lora
from peftjax.peft.select import as_patterns, matches

NOTHING = "dummy-target-modules"  # PEFT's own word for an adapter without LoRA
LOW_RANK = ("LoRA", "DoRA")
PEFT_VERSION = "0.21.2"  # whose files these are like


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
    modules = Modules.of(base_config)
    by_module: dict[str, dict[str, Piece]] = collections.defaultdict(dict)
    homeless = []
    for path, piece in adapter.pieces.items():
        module = path.rpartition("/")[0]
        if piece.kind in (*LOW_RANK, "TokenRows", "Trained") and module in modules.theirs:
            by_module[modules.theirs[module].name][path] = piece
        else:
            homeless.append(f"{path} ({piece.kind})")
    if homeless:
        raise ValueError(
            f"HF PEFT has no place for {', '.join(homeless[:5])}{', ...' if len(homeless) > 5 else ''}; "
            "bottleneck adapters go into AdapterHub's form"
        )
    writer = _Writer(modules, _lora_settings(adapter))
    for name, pieces in by_module.items():
        writer.take(name, pieces)
    writer.tie(adapter)
    return writer.tensors, writer.config(base_uri, task)


def _lora_settings(adapter: Adapter) -> lora:
    """The first LoRA method: what PEFT says once for all modules."""
    methods = [method for method in adapter.methods if isinstance(method, lora)]
    if not methods:
        return lora(targets=())
    first = methods[0]
    for other in methods[1:]:
        for field in (field.ours for field in t.LORA_FIELDS):
            if getattr(other, field) != getattr(first, field):
                values = f"{getattr(first, field)} and {getattr(other, field)}"
                raise ValueError(f"HF PEFT has one {field} for all modules; these LoRAs have {values}")
    return first


class _Writer:
    """Tensors and what the config has to say of them, module by module of theirs."""

    def __init__(self, modules: Modules, settings: lora):
        self.modules, self.settings = modules, settings
        self.tensors: dict[str, np.ndarray] = {}
        self.ranks: dict[str, int] = {}
        self.alphas: dict[str, float] = {}
        self.saved: list[str] = []
        self.bias: list[str] = []
        self.tokens: dict[str, list[int]] = {}
        self.conv1d = False
        self.ensures_tying = False

    def put(self, name: str, suffix: str, array: np.ndarray) -> None:
        self.tensors[f"{t.PREFIX}{name}.{suffix}"] = array

    def take(self, name: str, pieces: Mapping[str, Piece]) -> None:
        """All pieces of one module of theirs."""
        biases = {_module(path): piece.arrays["value"] for path, piece in pieces.items() if path.endswith("/bias")}
        mains = {_module(path): piece for path, piece in pieces.items() if not path.endswith("/bias")}
        kinds = {piece.kind for piece in mains.values()}
        if len(kinds) > 1:
            raise ValueError(f"HF PEFT has one method a module; {name} has {' and '.join(sorted(kinds))}")
        if kinds & set(LOW_RANK):
            self._lora(name, mains)
        elif kinds == {"TokenRows"}:
            (piece,) = mains.values()
            self.put(name, t.TOKENS.tensors[0].suffix, piece.arrays["rows"])
            self.tokens[name] = [int(i) for i in piece.arrays["ids"]]
        elif kinds == {"Trained"}:
            row = t.saved_row(self.modules.kind(next(iter(mains))))
            self.put(name, row.suffix, self._joined(name, row, {path: piece.arrays["value"] for path, piece in mains.items()}))
            self.saved.append(name)
        if biases:
            row = t.BIAS_UNDER_LORA if kinds & set(LOW_RANK) else t.SAVED_BIAS
            self.put(name, row.suffix, self._joined(name, row, biases))
            if kinds != {"Trained"}:
                self.bias.append(name)

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
        self.ensures_tying = embed.endswith(TIED)
        if not self.ensures_tying:
            if embed in self.ranks:
                self.ranks[head.name], self.alphas[head.name] = self.ranks[embed], self.alphas[embed]
            if embed in self.saved:
                self.saved.append(head.name)

    def config(self, base_uri: str, task: str) -> dict[str, Any]:
        """The content of adapter_config.json."""
        s = self.settings
        rank = s.rank if s.rank in self.ranks.values() or not self.ranks else collections.Counter(self.ranks.values()).most_common(1)[0][0]
        plain = [self.alphas[name] for name in self.ranks if self.ranks[name] == rank] or [rank]
        alpha = s.alpha if s.alpha in plain else collections.Counter(plain).most_common(1)[0][0]
        linear_and_embedding = [name for name, paths in self.modules.ours.items() if self.modules.kind(paths[0]) != "norm"]
        config = {
            "peft_type": "LORA", "task_type": task, "base_model_name_or_path": base_uri, "revision": None, "auto_mapping": None,
            "inference_mode": True, "peft_version": PEFT_VERSION,
            "r": rank, "lora_alpha": _whole_number(alpha), **{field.theirs: field.write(getattr(s, field.ours)) for field in t.LORA_FIELDS},
            "bias": self._bias_mode(), "init_lora_weights": True, "fan_in_fan_out": self.conv1d,
            "target_modules": self.modules.shortest(self.ranks, dotted=True, among=linear_and_embedding) or NOTHING,
            "exclude_modules": None,
            "rank_pattern": {f"^{re.escape(n)}": r for n, r in sorted(self.ranks.items()) if r != rank},
            "alpha_pattern": {f"^{re.escape(n)}": _whole_number(a) for n, a in sorted(self.alphas.items()) if a != alpha},
            "layers_to_transform": None, "layers_pattern": None, "modules_to_save": self._saved_names(),
            "ensure_weight_tying": self.ensures_tying,
        }
        if self.tokens:
            config["trainable_token_indices"] = {name.rpartition(".")[2]: ids for name, ids in sorted(self.tokens.items())}
        self._check(config)
        return config

    # ---- parts -----------------------------------------------------------------------------------------------------------------

    def _lora(self, name: str, pieces: Mapping[str, Piece]) -> None:
        paths = self.modules.ours[name]
        kind = self.modules.kind(paths[0])
        self.conv1d |= kind == "conv1d"
        factors = {path: trimmed(piece.arrays) for path, piece in pieces.items()}
        arrays = factors[paths[0]] if len(paths) == 1 else self._fused(name, factors)
        for row in t.low_rank(next(iter(pieces.values())).kind, kind).tensors:
            if row.field in arrays:
                self.put(name, row.suffix, row.theirs(arrays[row.field]))
        self.ranks[name] = arrays["a"].shape[0]
        self.alphas[name] = self._alpha(self.ranks[name], float(arrays["scale"]))

    def _fused(self, name: str, factors: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        parts = [(self.modules.theirs[path].part, factors[path]) for path in self.modules.ours[name] if path in factors]
        whole = sum(self.modules.sizes(path)[-1] for path in self.modules.ours[name])
        lengths = [part["magnitude"] for _, part in parts if "magnitude" in part]
        if lengths and len(lengths) < len(self.modules.ours[name]):
            raise ValueError(f"HF PEFT has DoRA on {name} as a whole, and here it stands on {', '.join(factors)} alone; merge it")
        return fuse(parts, whole) | ({"magnitude": np.concatenate(lengths)} if lengths else {})

    def _alpha(self, rank: int, scale: float) -> float:
        """The alpha that PEFT turns back into this scale; one of the method's own numbers where it says the same."""
        root = rank**0.5 if self.settings.rslora else rank
        asked = self.settings.alpha if self.settings.alpha is not None else rank
        for candidate in (asked, *self.settings.alpha_pattern.values()):
            if np.float32(candidate / root) == np.float32(scale):
                return float(candidate)
        return scale * root

    def _joined(self, name: str, row: Tensor, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """What stands in the parts of a module, as their one tensor; a fused module is saved as a whole or not at all."""
        paths = self.modules.ours[name]
        if len(arrays) != len(paths):
            raise ValueError(f"HF PEFT saves {name} as a whole; only {', '.join(arrays)} of it is trained")
        return row.theirs(np.concatenate([arrays[path] for path in paths], axis=-1) if len(paths) > 1 else arrays[paths[0]])

    def _saved_names(self) -> list[str] | None:
        for name in self.saved:
            for path in self.modules.ours[name]:
                if self.modules.has_bias(path) and f"{t.PREFIX}{name}.bias" not in self.tensors:
                    raise ValueError(f"HF PEFT saves {name} with its bias, which is not trained here")
        names, whole = set(self.saved), []
        for parent in sorted({name.rpartition(".")[0] for name in self.saved} - {""}):
            inside = {name for name in self.modules.ours if name.startswith(f"{parent}.")}
            if len(inside) > 1 and inside <= names:  # all of a module that holds others, as RoBERTa's classifier does
                whole.append(parent)
                names -= inside
        return whole + self.modules.shortest(names, dotted=False, among=self.modules.ours) or None

    def _bias_mode(self) -> str:
        if not self.bias:
            return "none"
        with_bias = {name for name, paths in self.modules.ours.items() if self.modules.has_bias(paths[0])}
        if set(self.bias) == with_bias - set(self.saved):
            return "all"
        if set(self.bias) == set(self.ranks) & with_bias:
            return "lora_only"
        raise ValueError(
            "HF PEFT trains the biases of none, of all modules or of those with LoRA; here they are those of "
            + ", ".join(sorted(self.bias)[:5])
        )

    def _check(self, config: Mapping[str, Any]) -> None:
        """What PEFT will make of the config, by its own rules, must be what is in the tensors."""
        hit = set(targeted(list(self.modules.ours), self.modules.linear, config)) ^ set(self.ranks)
        wrong = [f"{name}: targeted or not, against what is there" for name in sorted(hit)]
        for name, rank in self.ranks.items():
            fields = (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha"))
            read = tuple(pattern_value(config[patterns], name, config[default]) for patterns, default in fields)
            if read != (rank, self.alphas[name]):
                wrong.append(f"{name}: rank and alpha {read}, not {(rank, self.alphas[name])}")
        if wrong:
            raise AssertionError(f"the config written says something else than the tensors: {'; '.join(wrong[:5])}")


def _module(path: str) -> str:
    """`blocks/7/attn/q/kernel` -> `blocks/7/attn/q`."""
    return path.rpartition("/")[0]


def _head_follows(adapter: Adapter) -> bool:
    """Whether a method on the embedding takes the tied head with it."""
    embed, head = adapter.pieces.get("embed/embedding"), adapter.pieces.get("head/kernel")
    if embed is None or embed.kind == "TokenRows" or head is not None:
        return False
    return all(getattr(method, "ensure_weight_tying", True) for method in adapter.methods if _touches_embedding(method))


def _touches_embedding(method: Any) -> bool:
    targets = getattr(method, "targets", None) or ()
    return any(matches(target, "embed") for target in as_patterns(targets))


def _whole_number(value: float) -> float | int:
    return int(value) if float(value).is_integer() else float(value)
