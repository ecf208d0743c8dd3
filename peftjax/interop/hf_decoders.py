"""config.json of decoders, and the names in their checkpoints: what `peftjax.interop.hf` asks where a family is a decoder's.

Read in the form of transformers 4 (`rope_theta`, `rope_scaling`, `sliding_window_pattern`) and of transformers 5 (`rope_parameters`,
`layer_types`), and written with both. What a config.json is silent about is what transformers takes there. Settings that would
change the computation and are not implemented are refused by name; what a config.json of its family cannot say is not written.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from peftjax.hints import did_you_mean
from peftjax.interop.families import family_named
from peftjax.interop.hf_rope import FULL, LOCAL, read_rotary, rotary_entries
from peftjax.models.config import DecoderConfig

T = TypeVar("T")
Document = Mapping[str, Any]

ACTIVATIONS = {"silu": "silu", "swish": "silu", "relu": "relu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
_REQUIRED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "rms_norm_eps")


class Dialect(NamedTuple):
    """How the config.json of an architecture says what a DecoderConfig says.

    model_type: as it is written. defaults: what transformers takes where it is silent. read: fields beyond the common ones.
    write: entries beyond the common ones. activation: (key, the name to write for gelu_tanh). unread: keys that transformers' code
    does not look at. refused: keys with the values that are implemented. names: their keys for the common ones.
    """

    model_type: str
    read: Callable[[Document], dict[str, Any]]
    write: Callable[[DecoderConfig], dict[str, Any]]
    defaults: dict[str, Any] = {}
    activation: tuple[str, str] = ("hidden_act", "gelu_pytorch_tanh")
    unread: tuple[str, ...] = ()
    refused: dict[str, tuple] = {}
    names: dict[str, str] = {}


def config_from_document(document: Document, family: str, origin: str) -> DecoderConfig:
    """The configuration in the content of a config.json of a `family`. `origin` is said in errors.

    Raises:
        ValueError: a setting that is not supported, or a size that is not given.
    """
    architecture = document["architectures"][0]
    multimodal = architecture == "Gemma3ForConditionalGeneration"
    if multimodal:  # the text part has a document of its own
        document = document.get("text_config") or {}
        architecture = "Gemma3ForCausalLM"
    dialect = DIALECTS[architecture]
    document = dialect.defaults | {key: value for key, value in document.items() if key not in dialect.unread}
    document |= {common: document[theirs] for theirs, common in dialect.names.items() if theirs in document}
    if architecture == "GPT2LMHeadModel" and document.get("intermediate_size") is None and document.get("hidden_size"):
        document["intermediate_size"] = 4 * document["hidden_size"]
    absent = [name for name in _REQUIRED if document.get(name) is None]
    if absent:
        raise ValueError(f"{origin} lacks {', '.join(absent)}")
    problems = _unsupported(document, dialect)
    base, local_base, scaling, turned = read_rotary(document, architecture, problems)
    if problems:
        raise ValueError(f"{origin} has settings that are not supported: {'; '.join(problems)}")
    heads = document["num_attention_heads"]
    head_size = document.get("head_dim") or document["hidden_size"] // heads
    fields = {
        "vocab_size": document["vocab_size"],
        "width": document["hidden_size"],
        "layers": document["num_hidden_layers"],
        "heads": heads,
        "kv_heads": document.get("num_key_value_heads") or heads,
        "head_size": head_size,
        "ff": document["intermediate_size"],
        "rope_base": base,
        "norm_eps": float(document["rms_norm_eps"]),
        "max_length": document.get("max_position_embeddings") or 2048,
        "tied": bool(document.get("tie_word_embeddings")),
        "activation": ACTIVATIONS[document.get(dialect.activation[0]) or "silu"],
        "family": family,
        "rope_scaling": scaling,
        "local_rope_base": local_base,
        "rotary_size": None if turned == 1.0 else int(head_size * turned),
        "multimodal": multimodal,
    }
    return DecoderConfig(**fields | dialect.read(document))


def document_from_config(config: DecoderConfig, dtype: str) -> dict[str, Any]:
    """The content of a config.json that transformers 4 and 5 read. Of a model of text and images it is that of the text part alone.

    Raises:
        ValueError: the config says what a config.json of its family cannot.
    """
    config = dataclasses.replace(config, multimodal=False)
    # Of Llama's two only Mistral's code looks at sliding_window.
    architecture = "MistralForCausalLM" if config.family == "llama" and config.window else family_named(config.family).hf[0]
    dialect = DIALECTS[architecture]
    document = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.ff,
        dialect.activation[0]: _written(config.activation, dialect.activation[1]),
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_length,
        "tie_word_embeddings": config.tied,
    }
    document = {"architectures": [architecture], "model_type": dialect.model_type} | {
        {common: theirs for theirs, common in dialect.names.items()}.get(key, key): value for key, value in document.items()
    }
    if not config.learned_positions:
        document |= rotary_entries(config, architecture)
    # Unsaid, the ids of special tokens would be those of the family's first vocabulary.
    document |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    document |= dialect.write(config) | {"torch_dtype": dtype, "dtype": dtype}
    document = {key: value for key, value in document.items() if value is not ...}
    again = config_from_document(document, config.family, "the document")
    lost = [f.name for f in dataclasses.fields(config) if getattr(again, f.name) != getattr(config, f.name)]
    if lost:
        said = ", ".join(f"{name}={getattr(config, name)!r} (but {getattr(again, name)!r})" for name in lost)
        raise ValueError(f"a config.json of {architecture} cannot say {said}")
    return document


def canonical(tensors: Mapping[str, T], config: DecoderConfig) -> dict[str, T]:
    """The tensors of a checkpoint under the names of the family's table, without what is left aside.

    GPT-2 on the hub was saved without its head: `h.0` is `transformer.h.0`. Of a Gemma 3 for text and images the text part is taken,
    and the part for images left aside.
    """
    found = {}
    for name, tensor in tensors.items():
        if config.family == "gpt2" and name.startswith(("wte.", "wpe.", "h.", "ln_f.")):
            name = f"transformer.{name}"
        if config.family == "gemma3":
            if name.removeprefix("model.").startswith(("vision_tower.", "multi_modal_projector.")):
                continue
            for theirs, ours in (("language_model.model.", "model."), ("model.language_model.", "model."), ("language_model.", "")):
                if name.startswith(theirs):
                    name = ours + name.removeprefix(theirs)
                    break
        found[name] = tensor
    return found


def _llama(document: Document) -> dict[str, Any]:
    bias = bool(document.get("attention_bias"))
    return {
        "qkv_bias": bias, "out_bias": bias, "mlp_bias": bool(document.get("mlp_bias")), "window": document.get("sliding_window") or None
    }


def _write_llama(config: DecoderConfig) -> dict[str, Any]:
    entries = {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias}
    return entries | ({"sliding_window": config.window} if config.window else {})


def _qwen2(document: Document) -> dict[str, Any]:
    window = document.get("sliding_window") if document.get("use_sliding_window") else None
    first = document.get("max_window_layers", 28)
    return {"qkv_bias": True} | _windows(document, window, lambda layer: layer >= first)


def _write_qwen2(config: DecoderConfig) -> dict[str, Any]:
    first = config.local_layers.index(True) if config.window else config.layers
    return {
        "use_sliding_window": config.window is not None, "sliding_window": config.window, "max_window_layers": first,
        "layer_types": _layer_types(config),
    }


def _qwen3(document: Document) -> dict[str, Any]:
    bias = bool(document.get("attention_bias"))
    return _qwen2(document) | {"qkv_bias": bias, "out_bias": bias, "qk_norm": True}


def _write_qwen3(config: DecoderConfig) -> dict[str, Any]:
    return _write_qwen2(config) | {"attention_bias": config.qkv_bias}


def _gemma(document: Document, pattern: int) -> dict[str, Any]:
    bias, scalar = bool(document.get("attention_bias")), float(document["query_pre_attn_scalar"])
    return {
        "qkv_bias": bias,
        "out_bias": bias,
        "norm_offset": 1.0,
        "post_norms": True,
        "query_scalar": None if scalar == document["head_dim"] else scalar,
        "logit_softcap": document.get("final_logit_softcapping"),
        "embedding_scale": document["hidden_size"] ** 0.5,
    } | _windows(document, document.get("sliding_window"), lambda layer: (layer + 1) % pattern)


def _write_gemma(config: DecoderConfig) -> dict[str, Any]:
    scalar = config.head_size if config.query_scalar is None else config.query_scalar
    return {
        "attention_bias": config.qkv_bias,
        "query_pre_attn_scalar": int(scalar) if scalar == int(scalar) else scalar,
        "sliding_window": config.window,
        "layer_types": _layer_types(config),
        "final_logit_softcapping": config.logit_softcap,
        "attn_logit_softcapping": config.attention_softcap,
    }


def _gemma2(document: Document) -> dict[str, Any]:
    return _gemma(document, 2) | {"attention_softcap": document.get("attn_logit_softcapping")}


def _gemma3(document: Document) -> dict[str, Any]:
    pattern = document.get("sliding_window_pattern") or document.get("_sliding_window_pattern") or 6
    fields = _gemma(document, pattern) | {"qk_norm": True}
    return fields | ({} if fields["window"] else {"local_rope_base": None})


def _phi3(document: Document) -> dict[str, Any]:
    return {"window": document.get("sliding_window") or None}


def _write_phi3(config: DecoderConfig) -> dict[str, Any]:
    turned = 1.0 if config.rotary_size is None else config.rotary_size / config.head_size
    return {"sliding_window": config.window, "head_dim": ..., "partial_rotary_factor": turned}


def _gpt2(document: Document) -> dict[str, Any]:
    return dict.fromkeys(("qkv_bias", "out_bias", "mlp_bias", "learned_positions", "layer_norm"), True) | {"gated": False}


def _write_gpt2(config: DecoderConfig) -> dict[str, Any]:
    return {"num_key_value_heads": ..., "head_dim": ..., "n_ctx": config.max_length}


DIALECTS = {
    "LlamaForCausalLM": Dialect("llama", _llama, _write_llama, unread=("sliding_window",)),
    "MistralForCausalLM": Dialect(
        "mistral", _llama, _write_llama, {"sliding_window": 4096, "num_key_value_heads": 8}, unread=("attention_bias", "mlp_bias")
    ),
    "Qwen2ForCausalLM": Dialect(
        "qwen2", _qwen2, _write_qwen2, {"sliding_window": 4096, "num_key_value_heads": 32}, unread=("attention_bias",)
    ),
    "Qwen3ForCausalLM": Dialect("qwen3", _qwen3, _write_qwen3, {"sliding_window": 4096, "num_key_value_heads": 32, "head_dim": 128}),
    "Gemma2ForCausalLM": Dialect(
        "gemma2", _gemma2, _write_gemma,
        {
            "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
            "num_key_value_heads": 4, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "query_pre_attn_scalar": 256, "sliding_window": 4096,
            "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0,
        },
        ("hidden_activation", "gelu_pytorch_tanh"), refused={"use_bidirectional_attention": (None, False)},
    ),
    "Gemma3ForCausalLM": Dialect(
        "gemma3_text", _gemma3, _write_gemma,
        {
            "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
            "num_key_value_heads": 4, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "query_pre_attn_scalar": 256, "sliding_window": 4096,
        },
        ("hidden_activation", "gelu_pytorch_tanh"), ("attn_logit_softcapping",), {"use_bidirectional_attention": (None, False)},
    ),
    "Phi3ForCausalLM": Dialect("phi3", _phi3, _write_phi3),
    "GPT2LMHeadModel": Dialect(
        "gpt2", _gpt2, _write_gpt2,
        {"tie_word_embeddings": True, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "n_positions": 1024},
        ("activation_function", "gelu_new"),
        refused={"scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,)},
        names={
            "n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads", "n_inner": "intermediate_size",
            "n_positions": "max_position_embeddings", "layer_norm_epsilon": "rms_norm_eps",
        },
    ),
}  # fmt: skip


def _windows(document: Document, window: int | None, local: Callable[[int], Any]) -> dict[str, Any]:
    """Fields `window` and `full_layers`: by layer_types where the document has them, else by `local(layer)`."""
    layers = range(document["num_hidden_layers"])
    kinds = document.get("layer_types") or [LOCAL if local(layer) else FULL for layer in layers]
    full = tuple(layer for layer in layers if kinds[layer] == FULL)
    if not window or len(full) == len(layers):
        return {"window": None}
    return {"window": window, "full_layers": full}


def _layer_types(config: DecoderConfig) -> list[str]:
    return [LOCAL if local else FULL for local in config.local_layers]


def _written(activation: str, gelu_tanh: str) -> str:
    """The name that config.json has for one of our activations."""
    if activation == "gelu_tanh":
        return gelu_tanh
    for theirs, ours in ACTIVATIONS.items():
        if ours == activation:
            return theirs
    raise ValueError(f"config.json cannot name the activation {activation!r}; it can name {', '.join(ACTIVATIONS.values())}")


def _unsupported(document: Document, dialect: Dialect) -> list[str]:
    problems = [
        f"{key} = {document[key]!r} (supported: {' or '.join(map(repr, allowed))})"
        for key, allowed in dialect.refused.items() if key in document and document[key] not in allowed
    ]  # fmt: skip
    if document.get("quantization_config"):
        method = document["quantization_config"].get("quant_method", "unnamed")
        problems.append(f"weights quantised with {method!r} (supported: float weights, or a GGUF file)")
    key = dialect.activation[0]
    activation = document.get(key) or "silu"
    if activation not in ACTIVATIONS:
        problems.append(f"{key} {activation!r} (supported: {', '.join(ACTIVATIONS)}{did_you_mean(activation, ACTIVATIONS)})")
    kinds = document.get("layer_types") or []
    if kinds and (set(kinds) - {LOCAL, FULL} or len(kinds) != document["num_hidden_layers"]):
        problems.append(f"layer_types of {len(kinds)} layers, {', '.join(sorted(set(kinds)))} (supported: {LOCAL}, {FULL}, one for each)")
    return problems
