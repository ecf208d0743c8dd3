"""Rotary positions in the config.json of decoders: base, turned part of a head, rescaling for long contexts.

    transformers 4    rope_theta, rope_scaling {type or rope_type, factor, ...}, rope_local_base_freq (Gemma 3), partial_rotary_factor
    transformers 5    rope_parameters {rope_theta, rope_type, factor, ...}, or one such for each type of layer (Gemma 3)

Both are read, and both are written.
"""

import math
from collections.abc import Mapping
from typing import Any

from peftjax.models import rope
from peftjax.models.config import DecoderConfig

LOCAL, FULL = "sliding_attention", "full_attention"
_SCALING_NEEDS = {
    "linear": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor"), "yarn": (),
    "longrope": ("short_factor", "long_factor"),
}  # fmt: skip


def read_rotary(document: Mapping[str, Any], architecture: str, problems: list[str]) -> tuple[float, float | None, Any, float]:
    """(base, base of local layers, scaling, turned fraction of a head); what is not supported is added to `problems`."""
    settings = document.get("rope_parameters") or document.get("rope_scaling") or {}
    base, local_base = document.get("rope_theta"), None
    if architecture == "Gemma3ForCausalLM":
        local = settings.get(LOCAL) or {}
        if local.get("rope_type", "default") != "default":
            problems.append(f"rope scaling {local['rope_type']!r} in local layers (supported there: none)")
        local_base = float(local.get("rope_theta") or document.get("rope_local_base_freq") or 10000.0)
        settings = (settings.get(FULL) or {}) if LOCAL in settings or FULL in settings else settings
        base = base or 1_000_000.0
    elif any(isinstance(value, Mapping) for value in settings.values()):
        problems.append(f"rotary settings per layer type ({', '.join(settings)})")
        settings = {}
    turned = settings.get("partial_rotary_factor") or document.get("partial_rotary_factor") or 1.0
    if turned != 1.0 and architecture != "Phi3ForCausalLM":
        problems.append("partial_rotary_factor other than 1")
    kind = settings.get("rope_type") or settings.get("type") or "default"
    if kind == "su" or (kind == "yarn" and architecture == "Phi3ForCausalLM"):
        kind = "longrope"  # names it had before
    scaling = None if kind == "default" else _scaling(kind, settings, document, problems)
    return float(settings.get("rope_theta") or base or 10000.0), local_base, scaling, turned


def _scaling(kind: str, settings: Mapping[str, Any], document: Mapping[str, Any], problems: list[str]) -> Any:
    """How frequencies are rescaled."""
    length = document.get("max_position_embeddings") or 2048
    original = document.get("original_max_position_embeddings") or settings.get("original_max_position_embeddings") or length
    if kind not in _SCALING_NEEDS:
        problems.append(f"rope scaling {kind!r} (supported: {', '.join(_SCALING_NEEDS)})")
        return None
    absent = [key for key in _SCALING_NEEDS[kind] if settings.get(key) is None]
    if absent:
        problems.append(f"rope scaling {kind!r} without {', '.join(absent)}")
        return None
    factor, attention = settings.get("factor") or length / original, settings.get("attention_factor")
    if kind == "linear":
        return rope.Linear(float(factor))
    if kind == "llama3":
        return rope.Llama3(float(factor), float(settings["low_freq_factor"]), float(settings["high_freq_factor"]), original)
    if kind == "yarn":
        scales = settings.get("mscale"), settings.get("mscale_all_dim")
        if attention is None and all(scales):
            above, below = (0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0 for scale in scales)
            attention = above / below
        fast, slow = settings.get("beta_fast") or 32, settings.get("beta_slow") or 1
        return rope.Yarn(float(factor), original, attention, float(fast), float(slow), bool(settings.get("truncate", True)))
    if document.get("original_max_position_embeddings"):
        factor = length / original
    attention = rope.longrope_attention(factor, original) if attention is None else float(attention)
    return rope.LongRope(tuple(map(float, settings["short_factor"])), tuple(map(float, settings["long_factor"])), original, attention)


def rotary_entries(config: DecoderConfig, architecture: str) -> dict[str, Any]:
    """The entries of config.json on rotary positions, in both forms."""
    theta, scaled = {"rope_theta": config.rope_base}, _scaling_entries(config, architecture)
    entries, kind = dict(theta), {"rope_type": scaled.get("type") or scaled.get("rope_type") or "default"}
    settings = theta | {key: value for key, value in scaled.items() if key != "type"} | kind
    if isinstance(config.rope_scaling, rope.LongRope):
        entries["original_max_position_embeddings"] = settings["original_max_position_embeddings"] = config.rope_scaling.original_length
    if scaled:
        entries["rope_scaling"] = scaled
    if architecture == "Gemma3ForCausalLM":
        local = 10000.0 if config.local_rope_base is None else config.local_rope_base
        return entries | {
            "rope_local_base_freq": local,
            "rope_parameters": {FULL: settings, LOCAL: {"rope_theta": local, "rope_type": "default"}},
        }
    if config.rotary_size is not None:
        settings["partial_rotary_factor"] = config.rotary_size / config.head_size
    return entries | {"rope_parameters": settings}


def _scaling_entries(config: DecoderConfig, architecture: str) -> dict[str, Any]:
    """The content of `rope_scaling`, or {}."""
    match config.rope_scaling:
        case None:
            return {}
        case rope.Linear(factor):
            return {"rope_type": "linear", "factor": factor}
        case rope.Llama3(factor, low, high, original):
            return {
                "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }
        case rope.Yarn(factor, original, attention, fast, slow, truncate):
            entries = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
            entries |= {} if attention is None else {"attention_factor": attention}
            return entries | {"beta_fast": fast, "beta_slow": slow} | ({} if truncate else {"truncate": False})
        case rope.LongRope(short, long, _, attention):
            # Phi-3's code in transformers 4 wants these three keys and no other; the attention factor is then the usual one.
            entries = {"short_factor": list(short), "long_factor": list(long)}
            return {"type": "longrope"} | entries | ({} if architecture == "Phi3ForCausalLM" else {"attention_factor": attention})
