"""What the metadata of a GGUF file say about the architecture: a DecoderConfig.

Some things llama.cpp has in its code and not in the file: which layers of a Gemma are local, the base of their rotary positions, the
query scale of its largest sizes, the activation of each family. They are here as there. Llama 3's rope scaling comes as a tensor of
divisors, one for each rotary pair, Phi-3's as two.

What would change the computation and is not implemented is refused: mixtures of experts, and every key of the architecture's own
namespace that this reader does not know.
"""

import difflib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from peftjax.interop.gguf_file import GGUFFile
from peftjax.interop.weights import Source
from peftjax.models import rope
from peftjax.models.config import DecoderConfig

# Tensors that are settings: divisors of the rotary frequencies.
ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_NEEDED = ("block_count", "embedding_length", "attention.head_count", "feed_forward_length")
_READ = _NEEDED + ("context_length", "attention.head_count_kv", "attention.key_length", "attention.value_length", "expert_count")
_ROPE = (
    "rope.dimension_count", "rope.freq_base", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length",
    "rope.scaling.attn_factor", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow", "attention.layer_norm_rms_epsilon",
)  # fmt: skip
_WINDOW = ("attention.sliding_window",)
_GEMMA = (*_ROPE, *_WINDOW, "attention.sliding_window_pattern", "final_logit_softcapping")
_OWN = {
    "llama": _ROPE + _WINDOW,
    "qwen2": _ROPE,
    "qwen3": _ROPE,
    "gemma2": (*_GEMMA, "attn_logit_softcapping"),
    "gemma3": (*_GEMMA, "rope.freq_base_swa"),
    "phi3": _ROPE + _WINDOW,
    "gpt2": ("attention.layer_norm_epsilon",),
}
_HARMLESS = ("vocab_size", "expert_used_count", "tensor_data_layout", "rope.scaling.finetuned")


def config_from_file(file: GGUFFile, family: str, sources: Mapping[str, Source]) -> DecoderConfig:
    """The configuration that the metadata, and the tensors that are settings, describe.

    Raises:
        ValueError: a setting that is not supported, or one that is missing.
    """
    prefix = file.metadata["general.architecture"] + "."
    own = {key.removeprefix(prefix): value for key, value in file.metadata.items() if key.startswith(prefix)}
    epsilon = "attention.layer_norm_epsilon" if family == "gpt2" else "attention.layer_norm_rms_epsilon"
    _refuse_unsupported(file, prefix, own, family)
    for name in (*_NEEDED, epsilon):
        need(file, prefix + name)
    if "token_embd.weight" not in file.tensors:
        raise ValueError(f"{file.path} has no tensor token_embd.weight; its tensors are {', '.join(list(file.tensors)[:5])}, ...")
    heads = _same_in_all_layers(file, prefix + "attention.head_count", own["attention.head_count"])
    head_size = own.get("attention.key_length", own["embedding_length"] // heads)
    turned = own.get("rope.dimension_count", head_size)
    for name in ("attention.value_length",) + (("rope.dimension_count",) if family != "phi3" else ()):
        if own.get(name, head_size) != head_size:
            raise ValueError(f"{file.path}: {prefix}{name} is {own[name]}, but heads have size {head_size}; that is not supported")
    base, length = _decimal(own.get("rope.freq_base", 10000.0)), own.get("context_length", 2048)
    fields = {
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "width": own["embedding_length"],
        "layers": own["block_count"],
        "heads": heads,
        "kv_heads": _same_in_all_layers(file, prefix + "attention.head_count_kv", own.get("attention.head_count_kv", heads)),
        "head_size": head_size,
        "ff": _same_in_all_layers(file, prefix + "feed_forward_length", own["feed_forward_length"]),
        "rope_base": base,
        "norm_eps": _decimal(own[epsilon]),
        "max_length": length,
        "tied": "output.weight" not in file.tensors,
        "qkv_bias": "blk.0.attn_q.bias" in file.tensors,
        "out_bias": "blk.0.attn_output.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
        "window": own.get("attention.sliding_window") or None,
        "family": family,
        "rope_scaling": _scaling(file, own, sources, base, turned, length),
        "rotary_size": None if turned == head_size else turned,
    }
    return DecoderConfig(**fields | _family(family, own, fields))


def need(file: GGUFFile, key: str) -> Any:
    """The value of a key that has to be there; the error names the nearest ones."""
    if key not in file.metadata:
        near = difflib.get_close_matches(key, file.metadata, n=3)
        raise ValueError(f"{file.path} has no metadata key {key!r}; nearest: {', '.join(near) or 'none'}")
    return file.metadata[key]


def _family(family: str, own: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """What is so for all files of a family."""
    if family == "qwen3":
        return {"qk_norm": True}
    if family == "gpt2":
        always = dict.fromkeys(("qkv_bias", "out_bias", "mlp_bias", "learned_positions", "layer_norm"), True)
        return always | {"gated": False, "activation": "gelu_tanh"}
    if family not in ("gemma2", "gemma3"):
        return {}
    second = family == "gemma2"
    window = own.get("attention.sliding_window", 4096 if second else 0)
    period = own.get("attention.sliding_window_pattern", 2 if second else 6)
    kinds = period if isinstance(period, list) else [(layer + 1) % period for layer in range(fields["layers"])]
    full = tuple(layer for layer, local in enumerate(kinds) if not local)
    if not window or len(full) == fields["layers"]:
        window, full = None, ()
    largest = fields["layers"] == (46 if second else 62)
    scalar = float(fields["width"] // fields["heads"]) if largest else None
    caps = {"attention_softcap": own.get("attn_logit_softcapping", 50.0), "logit_softcap": own.get("final_logit_softcapping", 30.0)}
    later = {
        "qk_norm": True, "logit_softcap": own.get("final_logit_softcapping"),
        "local_rope_base": _decimal(own.get("rope.freq_base_swa", 10000.0)) if window else None,
    }  # fmt: skip
    return {
        "activation": "gelu_tanh", "norm_offset": 1.0, "post_norms": True, "embedding_scale": fields["width"] ** 0.5, "window": window,
        "full_layers": full, "query_scalar": None if scalar == fields["head_size"] else scalar,
    } | (caps if second else later)  # fmt: skip


def _scaling(file: GGUFFile, own: Mapping[str, Any], sources: Mapping[str, Source], base: float, turned: int, length: int) -> Any:
    """How rotary frequencies are rescaled: by a formula named in the metadata, or by divisors in tensors."""
    kind, factor = own.get("rope.scaling.type", "none"), own.get("rope.scaling.factor", 1.0)
    original, attention = own.get("rope.scaling.original_context_length", length), own.get("rope.scaling.attn_factor", 1.0)
    always, long, short = (tuple(map(_decimal, sources[name].read(slice(None)))) if name in sources else None for name in ROPE_TENSORS)
    if always and (long or kind != "none"):
        raise ValueError(f"{file.path} rescales rotary positions twice: by rope_freqs.weight, and by {kind} or rope_factors")
    if always:
        return _llama3(always, base, turned) or rope.LongRope(always, always, original, attention)
    if long and short:
        usual = rope.longrope_attention(length / original, original)
        return rope.LongRope(short, long, original, usual if math.isclose(usual, attention, rel_tol=1e-6) else attention)
    if kind == "linear" and attention == 1.0:
        return rope.Linear(_decimal(factor))
    if kind == "yarn":
        fast, slow = own.get("rope.scaling.yarn_beta_fast", 32.0), own.get("rope.scaling.yarn_beta_slow", 1.0)
        factor = _decimal(factor)
        # ggml multiplies its own attention factor by that of the file.
        attention = None if attention == 1.0 else attention * (1.0 + 0.1 * math.log(factor))
        return rope.Yarn(factor, original, attention, _decimal(fast), _decimal(slow))
    if kind != "none" or attention != 1.0:
        raise ValueError(f"{file.path}: rope scaling {kind} with attention factor {attention} is not supported (supported: linear, yarn)")
    return None


def _llama3(divisors: tuple[float, ...], base: float, turned: int) -> rope.Llama3 | None:
    """The rule of Llama 3.1 to 3.3 if it gives these divisors: then an export says what their own config.json says."""
    rule = rope.Llama3(max(divisors), 1.0, 4.0, 8192)
    plain = base ** (-np.arange(0, turned, 2, dtype=np.float32) / turned)
    return rule if np.allclose(plain / np.asarray(rule.apply(plain, base, 0)[0]), divisors, rtol=1e-4) else None


def _refuse_unsupported(file: GGUFFile, prefix: str, own: dict[str, Any], family: str) -> None:
    known = _READ + _OWN[family] + _HARMLESS
    problems = [f"{prefix}{key} = {str(own[key])[:60]}" for key in own if key not in known]
    if own.get("expert_count", 0):
        problems.append(f"a mixture of {own['expert_count']} experts")
    if problems:
        raise ValueError(f"{file.path} uses settings that are not supported: {'; '.join(problems)}")


def _same_in_all_layers(file: GGUFFile, key: str, value: int | list[int]) -> int:
    if isinstance(value, list):
        if len(set(value)) != 1:
            raise ValueError(f"{file.path}: {key} differs between layers ({sorted(set(value))}); that is not supported")
        return value[0]
    return value


def _decimal(value: float) -> float:
    """The decimal number that was meant: GGUF holds 1e-5 as the float32 9.999999747378752e-06."""
    return float(str(np.float32(value)))
