"""Base weights in the Hugging Face layout: a directory of config.json and safetensors, read and written.

    config.json                        -> DecoderConfig
    model.safetensors                  -> sources        or the shards that model.safetensors.index.json lists

config.json is read in the form of transformers 4 (`rope_theta` at the top) and of transformers 5 (`rope_parameters`), and written
with both. Settings that would change the computation and are not implemented are refused by name.
"""

import dataclasses
import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from peftjax.files import replacing
from peftjax.interop import hf_encoders
from peftjax.interop.families import Family, Weight, family_for, family_named
from peftjax.interop.safetensors_file import open_safetensors
from peftjax.interop.weights import Source
from peftjax.models.config import DecoderConfig
from peftjax.nn.tree import flatten

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_DTYPES = ("float32", "float16", "bfloat16")
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "relu": "relu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
# What transformers takes where config.json is silent, and keys that an architecture's code does not look at.
_DEFAULTS = {"MistralForCausalLM": {"sliding_window": 4096, "num_key_value_heads": 8}}
_UNREAD = {"LlamaForCausalLM": ("sliding_window",), "MistralForCausalLM": ("attention_bias", "mlp_bias")}


@dataclasses.dataclass(frozen=True)
class OpenedDirectory:
    """A directory in Hugging Face layout, described and not yet read."""

    path: Path
    config: DecoderConfig
    family: Family
    sources: dict[str, Source]


def open_directory(path: str | Path) -> OpenedDirectory:
    """Reads config.json and the headers of the weight files.

    Raises:
        FileNotFoundError: no config.json, no safetensors, or a shard that the index names is not there.
        ValueError: an architecture or setting that is not supported, or a damaged file.
    """
    folder = Path(path)
    document = _read_json(folder / "config.json")
    config = config_from_document(document, str(folder / "config.json"))
    sources = _sources(folder)
    if config.family in hf_encoders.FAMILIES:
        sources = hf_encoders.canonical(sources, config)
    return OpenedDirectory(folder, config, family_named(config.family), sources)


def config_from_document(document: Mapping[str, Any], origin: str) -> DecoderConfig:
    """The configuration in the content of a config.json. `origin` is said in errors.

    Raises:
        ValueError: an architecture or setting that is not supported, or a size that is not given.
    """
    architecture = (document.get("architectures") or ["(none named)"])[0]
    family = family_for("hf", architecture, origin)
    if family.name in hf_encoders.FAMILIES:
        return hf_encoders.config_from_document(document, family.name, origin)
    document = {key: value for key, value in document.items() if key not in _UNREAD.get(architecture, ())}
    document = _DEFAULTS.get(architecture, {}) | document
    required = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "rms_norm_eps")
    absent = [name for name in required if document.get(name) is None]
    if absent:
        raise ValueError(f"{origin} lacks {', '.join(absent)}")
    rope = document.get("rope_parameters") or document.get("rope_scaling") or {}
    _refuse_unsupported(document, rope, origin)
    heads = document["num_attention_heads"]
    attention_bias, mlp_bias = bool(document.get("attention_bias")), bool(document.get("mlp_bias"))
    return DecoderConfig(
        vocab_size=document["vocab_size"],
        width=document["hidden_size"],
        layers=document["num_hidden_layers"],
        heads=heads,
        kv_heads=document.get("num_key_value_heads") or heads,
        head_size=document.get("head_dim") or document["hidden_size"] // heads,
        ff=document["intermediate_size"],
        rope_base=float(rope.get("rope_theta") or document.get("rope_theta") or 10000.0),
        norm_eps=float(document["rms_norm_eps"]),
        max_length=document.get("max_position_embeddings") or 2048,
        tied=bool(document.get("tie_word_embeddings")),
        activation=_ACTIVATIONS[document.get("hidden_act") or "silu"],
        qkv_bias=attention_bias,
        out_bias=attention_bias,
        mlp_bias=mlp_bias,
        window=document.get("sliding_window") or None,
        family=family.name,
    )


def write_directory(
    path: str | Path, config: DecoderConfig, params: Any, tokenizer_json: str | None = None, shard_bytes: int = 5 << 30
) -> None:
    """Writes config.json, safetensors (in shards of at most `shard_bytes`, one tensor at least) and tokenizer.json.

    Args:
        params: a tree of plain arrays in one stack (`blocks/...`), of one dtype among float32, float16 and bfloat16.
        tokenizer_json: content of tokenizer.json; `Tokenizer.write_directory` writes the whole tokenizer instead.

    Raises:
        ValueError: the tree has other paths or shapes than the config says, or another dtype.
    """
    folder, family = Path(path), family_named(config.family)
    flat = flatten(params)
    dtypes = {str(leaf.dtype) for leaf in flat.values()}
    if len(dtypes) != 1 or not dtypes <= set(_DTYPES):
        raise ValueError(f"weights are written in one dtype of {', '.join(_DTYPES)}; these have {', '.join(sorted(dtypes))}")
    _check_tree(config, family, flat)
    folder.mkdir(parents=True, exist_ok=True)
    shards = list(_shards(config, family, shard_bytes // np.dtype(next(iter(flat.values())).dtype).itemsize))
    index = {}
    for number, names in enumerate(shards, 1):
        file = WEIGHTS if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_safetensors(folder / file, {name: _tensor(flat, *which) for name, which in names.items()})
        index |= dict.fromkeys(names, file)
    if len(shards) == 1:
        (folder / INDEX).unlink(missing_ok=True)  # of an earlier export: it would be read first
    else:
        _write_json(folder / INDEX, {"metadata": {"total_size": sum(leaf.nbytes for leaf in flat.values())}, "weight_map": index})
    if tokenizer_json is not None:
        with replacing(folder / "tokenizer.json") as partial:
            partial.write_text(tokenizer_json, "utf-8")
    _write_json(folder / "config.json", document_from_config(config, family, dtypes.pop()))


def document_from_config(config: DecoderConfig, family: Family, dtype: str) -> dict[str, Any]:
    """The content of a config.json that transformers 4 and 5 read."""
    if family.name in hf_encoders.FAMILIES:
        return hf_encoders.document_from_config(config, dtype)
    if config.qkv_bias != config.out_bias:
        raise ValueError("a Llama config.json has one attention_bias; q/k/v and output biases differ here")
    # Only Mistral's code looks at sliding_window.
    architecture = "MistralForCausalLM" if config.window else family.hf[0]
    if config.window and config.qkv_bias:
        raise ValueError("neither Llama's nor Mistral's config.json can say both a sliding window and biases")
    document = {
        "architectures": [architecture],
        "model_type": architecture.removesuffix("ForCausalLM").lower(),
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.ff,
        "hidden_act": _written(config.activation),
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_length,
        "tie_word_embeddings": config.tied,
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        "rope_theta": config.rope_base,
        "rope_parameters": {"rope_theta": config.rope_base, "rope_type": "default"},
        "torch_dtype": dtype,
        "dtype": dtype,
    }
    return document | ({"sliding_window": config.window} if config.window else {})


def _written(activation: str) -> str:
    """The name that Hugging Face has for one of our activations."""
    for theirs, ours in _ACTIVATIONS.items():
        if ours == activation:
            return theirs
    raise ValueError(f"config.json cannot name the activation {activation!r}; it can name {', '.join(_ACTIVATIONS.values())}")


def _refuse_unsupported(document: Mapping[str, Any], rope: Mapping[str, Any], origin: str) -> None:
    problems = []
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind != "default":
        problems.append(f"rope scaling {kind!r} (supported: none)")
    if any(isinstance(value, Mapping) for value in rope.values()):
        problems.append(f"rotary settings per layer type ({', '.join(rope)})")
    if document.get("partial_rotary_factor", 1.0) != 1.0 or rope.get("partial_rotary_factor", 1.0) != 1.0:
        problems.append("partial_rotary_factor other than 1")
    if document.get("quantization_config"):
        method = document["quantization_config"].get("quant_method", "unnamed")
        problems.append(f"weights quantised with {method!r} (supported: float weights, or a GGUF file)")
    activation = document.get("hidden_act") or "silu"
    if activation not in _ACTIVATIONS:
        near = difflib.get_close_matches(activation, _ACTIVATIONS, n=1)
        nearest = f"; nearest: {near[0]}" if near else ""
        problems.append(f"hidden_act {activation!r} (supported: {', '.join(_ACTIVATIONS)}{nearest})")
    if problems:
        raise ValueError(f"{origin} has settings that are not supported: {'; '.join(problems)}")


def _sources(folder: Path) -> dict[str, Source]:
    """The tensors of all weight files, index first."""
    if (folder / INDEX).is_file():
        weight_map = _read_json(folder / INDEX).get("weight_map")
        if not weight_map:
            raise ValueError(f"{folder / INDEX} has no weight_map")
        files = sorted(set(weight_map.values()))
        absent = [file for file in files if not (folder / file).is_file()]
        if absent:
            raise FileNotFoundError(f"{folder} lacks {len(absent)} of the {len(files)} shards in {INDEX}: {', '.join(absent)}")
        sources = {}
        for file in files:
            sources |= open_safetensors(folder / file)
        return sources
    if (folder / WEIGHTS).is_file():
        return open_safetensors(folder / WEIGHTS)
    found = sorted(p.name for p in folder.iterdir() if p.suffix in (".safetensors", ".bin", ".pt", ".pth", ".gguf"))
    raise FileNotFoundError(f"{folder} has neither {WEIGHTS} nor {INDEX}; weight files there: {', '.join(found) or 'none'}")


def _check_tree(config: DecoderConfig, family: Family, flat: Mapping[str, Any]) -> None:
    wanted = {w.path: ((config.layers,) if w.stacked else ()) + w.sizes(config) for w in family.present(config)}
    lines = [f"missing {path}" for path in wanted if path not in flat] + [f"extra {path}" for path in flat if path not in wanted]
    for path in wanted.keys() & flat.keys():
        if tuple(flat[path].shape) != wanted[path]:
            lines.append(f"misshapen {path}: {list(flat[path].shape)}, the config wants {list(wanted[path])}")
    if lines:
        listed = "\n  ".join(sorted(lines))
        raise ValueError(f"these parameters are not those of a plain base (merge or detach adapters first):\n  {listed}")


def _shards(config: DecoderConfig, family: Family, limit: int) -> Iterator[dict[str, tuple]]:
    """Names with (weights, layer), cut so that each part has at most `limit` elements or one tensor."""
    part, elements = {}, 0
    for weights in _fused(config, family):
        size = int(np.prod(weights[0].stored_sizes("hf", config)))
        for layer, name in enumerate(weights[0].names("hf", config)):
            if part and elements + size > limit:
                yield part
                part, elements = {}, 0
            part[name] = (weights, layer)
            elements += size
    yield part


def _fused(config: DecoderConfig, family: Family) -> list[list[Weight]]:
    """The weights of a model; those that are parts of one tensor together, in the order of the parts."""
    together = {}
    for weight in family.present(config):
        if weight.hf is None:
            raise ValueError(f"the Hugging Face layout of {family.name} has no place for {weight.path}")
        together.setdefault(weight.hf.name, []).append(weight)
    return [sorted(weights, key=lambda weight: weight.hf.part or (0,)) for weights in together.values()]


def _tensor(flat: Mapping[str, Any], weights: Sequence[Weight], layer: int) -> np.ndarray:
    """One tensor as the layout has it: turned, and with its parts joined along the output axis."""
    leaves = [flat[weight.path][layer] if weight.stacked else flat[weight.path] for weight in weights]
    stored = weights[0].hf
    value = np.concatenate([np.asarray(leaf) for leaf in leaves], axis=-1) if stored.part else np.asarray(leaves[0])
    return np.ascontiguousarray(value.T if stored.transpose else value)


def _write_safetensors(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    with replacing(file) as partial:
        save_file(dict(arrays), str(partial), metadata={"format": "pt"})


def _write_json(file: Path, document: Mapping[str, Any]) -> None:
    with replacing(file) as partial:
        partial.write_text(json.dumps(document, indent=2) + "\n", "utf-8")


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        found = sorted(p.name for p in file.parent.iterdir())[:10] if file.parent.is_dir() else []
        raise FileNotFoundError(f"{file.parent} has no {file.name} (found: {', '.join(found) or 'nothing'})")
    try:
        return json.loads(file.read_text("utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
