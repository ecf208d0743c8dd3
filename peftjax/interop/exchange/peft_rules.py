"""HF PEFT's rules of names, as its version 0.21 reads them: which modules a config targets, and which entry of a pattern counts.

| field | rule |
|---|---|
| target_modules, exclude_modules | a list: the name is an entry or ends in ".entry"; a text: a regular expression over the whole name |
| layers_to_transform, layers_pattern | the layer's number, behind the layer list's name, is among them; with a list of names only |
| rank_pattern, alpha_pattern | a key is a regular expression over the name or over its end behind a dot; the first that fits counts |
| modules_to_save | saved is what, or in a module that, ends in an entry, with or without a dot before it; with a dot it is no target |

Two types say in other words what these fields say, and are read as a LoRA that adapts nothing (`in_other_words`):

| peft_type | is |
|---|---|
| LN_TUNING | modules_to_save of the norms that target_modules hits; keys end in ln_tuning_layers.weight |
| TRAINABLE_TOKENS | trainable_token_indices of target_modules; keys end in trainable_tokens_delta |

One type is another's old name (`under_new_name`): BONE's files are those of MISS, whose keys end in bone_block for miss_block.

Names are without `base_model.model.`. Source: peft's tuners/tuners_utils.py and utils/other.py, read in 2026.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

NOTHING = "dummy-target-modules"  # PEFT's own word for an adapter without LoRA
# By type, how the ends of its keys are called in a LoRA's file.
ENDS = {
    "LN_TUNING": {".ln_tuning_layers.weight": ".weight", ".ln_tuning_layers.bias": ".bias"},
    "TRAINABLE_TOKENS": {".trainable_tokens_delta": ".token_adapter.trainable_tokens_delta"},
}
# Types under their old names: the new one, and the ends of its keys.
RENAMED = {"BONE": ("MISS", {".bone_block": ".miss_block"})}
HEADS = ("lm_head", "score", "classifier")
TIED = "embed_tokens"  # the name by which ensure_weight_tying knows an embedding; under another (GPT-2's wte) it does nothing


def targeted(names: Sequence[str], linear: Sequence[str], config: Mapping[str, Any]) -> list[str]:
    """Those of a base's module names that a config adapts.

    Args:
        names: of all modules.
        linear: of those that "all-linear" means, before heads are left out.
    """
    wanted = config.get("target_modules")
    if wanted == "all-linear":
        chosen = [name for name in linear if name not in HEADS]
    else:
        chosen = [name for name in names if wanted is not None and _hit(wanted, name)]
    excluded = config.get("exclude_modules")
    chosen = [name for name in chosen if not (excluded and _hit(excluded, name)) and not _kept(config.get("modules_to_save"), name)]
    layers = config.get("layers_to_transform")
    if layers in (None, []) or isinstance(wanted, str) and wanted != "all-linear":
        return chosen
    layers = {layers} if isinstance(layers, int) else set(layers)
    return [name for name in chosen if _layer(name, config.get("layers_pattern")) in layers]


def pattern_value(patterns: Mapping[str, Any] | None, name: str, default: Any) -> Any:
    """The entry of rank_pattern or alpha_pattern that counts for a module."""
    for key, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({key})$", name):
            return value
    return default


def saved(entries: Sequence[str] | None, name: str) -> bool:
    """Whether modules_to_save names this module, or one that holds it."""
    parts = name.split(".")
    holders = [".".join(parts[: end + 1]) for end in range(len(parts))]
    return any(holder.endswith(entry) for entry in entries or () for holder in holders)


def _kept(entries: Sequence[str] | None, name: str) -> bool:
    """Whether a module is saved whole, and so no target."""
    return any(re.match(rf"(^|.*\.){entry}($|\..*)", name) for entry in entries or ())


def _hit(wanted: str | Sequence[str], name: str) -> bool:
    if isinstance(wanted, str):
        return re.fullmatch(wanted, name) is not None
    return any(name == entry or name.endswith(f".{entry}") for entry in wanted)


def _layer(name: str, patterns: str | Sequence[str] | None) -> int | None:
    if not patterns:
        match = re.match(r".*\.[^.]*\.(\d+)\.", name)
        return None if match is None else int(match[1])
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        match = re.match(rf"(?:.*\.)?{pattern}\.(\d+)\.", name)
        if match is not None:
            return int(match[1])
    return None


def in_other_words(config: Mapping[str, Any], names: Sequence[str], linear: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """(the config as that of a LoRA, their ends of keys against those of a LoRA's file); (the config, {}) of any other type.

    Args:
        names, linear: as of `targeted`.
    """
    ends = ENDS.get(config.get("peft_type"), {})
    if not ends:
        return dict(config), {}
    hit = targeted(names, linear, config)
    said = {name: value for name, value in config.items() if name not in ("target_modules", "exclude_modules", "token_indices")}
    said |= {"peft_type": "LORA", "target_modules": NOTHING}
    if config["peft_type"] == "LN_TUNING":
        return said | {"modules_to_save": [*(config.get("modules_to_save") or ()), *hit]}, ends
    return said | {"trainable_token_indices": {name: list(config.get("token_indices") or ()) for name in hit}}, ends


def under_new_name(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """(the config by the name that its type has now, the ends of the old keys against those of the new)."""
    kind, ends = RENAMED.get(config.get("peft_type"), (config.get("peft_type"), {}))
    return dict(config) | ({"peft_type": kind} if ends else {}), ends


def renamed(key: str, ends: Mapping[str, str]) -> str:
    """A key whose end is called otherwise."""
    for theirs, ours in ends.items():
        if key.endswith(theirs):
            return key.removesuffix(theirs) + ours
    return key
