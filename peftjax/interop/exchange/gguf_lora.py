"""An adapter as a GGUF file that llama.cpp loads beside its base (`--lora FILE`): LoRA alone, by the families' GGUF names.

    write_gguf_lora("out/adapter.gguf", adapter, base.config, name="tone")

| key or tensor | content |
|---|---|
| general.type, general.architecture | "adapter" and the base's architecture, which must be the same |
| adapter.type, adapter.lora.alpha | "lora" and one float32 alpha for the whole file |
| <base tensor>.lora_a, .lora_b | A (R, in) and B (out, R), B's rows in the order of the base's rows |
| token_embd.weight.lora_a, .lora_b | A transposed (V, R) and B (D, R), since rows of A are looked up |

llama.cpp multiplies by alpha / R, R that of the tensor, and by 1 where alpha is 0. So alpha is the most frequent scale x R that is not
zero, and where a module's differs (patterns, rsLoRA with several ranks) its B is multiplied by scale x R / alpha. Rows of q and k that the
base keeps interleaved are so in B too; fused tensors (attn_qkv, Phi-3's ffn_up) get the fused factors.

Read in llama.cpp's convert_lora_to_gguf.py, src/llama-adapter.cpp and src/llama-graph.cpp, version 0.5.0 (2026).
"""

import collections
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from peftjax.files import replacing
from peftjax.interop.exchange.adapter import Adapter, Piece
from peftjax.interop.exchange.modules import layer_of, logical
from peftjax.interop.exchange.plain_form import in_plain_form
from peftjax.interop.exchange.tensors import fuse, trimmed
from peftjax.interop.families import Stored, family_named
from peftjax.interop.weights import rotary_order

LLAMA_CPP_VERSION = "0.5.0"  # whose loader these files are for
DTYPES = ("float32", "float16")
# Why a kind of piece has no place in such a file.
HOMELESS = {
    "DoRA": "columns of a trained length are no product of two matrices; merge it into the base and write that as GGUF",
    "Bottleneck": "a nonlinear bottleneck is no product of two matrices",
    "TokenRows": "rows of the embedding are no product of two matrices",
    "Trained": "it has no weights trained whole; merge them into the base and write that as GGUF",
}


def write_gguf_lora(
    file: str | Path, adapter: Adapter, base_config: Any, name: str = "", base_uri: str = "", dtype: str = "float32"
) -> None:
    """Writes the file, whole or not at all.

    Args:
        name: written as general.name.
        base_uri: written as the base model's name.
        dtype: of the tensors, one of DTYPES.

    Raises:
        ValueError: what llama.cpp has no place for, with the reason; nothing is written then.
    """
    import gguf

    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} of a GGUF adapter is not one of {', '.join(DTYPES)}")
    tensors, alpha = gguf_lora_content(adapter, base_config)
    with replacing(Path(file)) as partial:
        writer = gguf.GGUFWriter(partial, family_named(base_config.family).gguf[0])
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
        writer.add_file_type(gguf.LlamaFileType.ALL_F32 if dtype == "float32" else gguf.LlamaFileType.MOSTLY_F16)
        if name:
            writer.add_name(name)
        if base_uri:
            writer.add_base_model_count(1)
            writer.add_base_model_name(0, base_uri)
        for tensor, array in tensors.items():
            writer.add_tensor(tensor, np.ascontiguousarray(array.astype(dtype)))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def gguf_lora_content(adapter: Adapter, base_config: Any) -> tuple[dict[str, np.ndarray], float]:
    """(float32 tensors by name, slowest axis first; alpha). Errors as in `write_gguf_lora`."""
    family = family_named(base_config.family)
    if not family.gguf:
        raise ValueError(f"a GGUF adapter needs a base that is read from GGUF; {family.name} is not")
    adapter = in_plain_form(adapter)
    _refuse(adapter, base_config)
    weights = {weight.path: weight for weight in family.weights}
    by_tensor: dict[str, list[tuple[Stored, Piece]]] = collections.defaultdict(list)
    for path, piece in adapter.pieces.items():
        if logical(path) not in weights:
            raise ValueError(f"{path} is no weight of {family.name}")
        stored = weights[logical(path)].gguf
        by_tensor[stored.name.format(layer=layer_of(path))].append((stored, piece))
    factors = {tensor: _joined(found, base_config) for tensor, found in by_tensor.items()}
    alpha = _alpha(factors)
    tensors = {}
    for tensor, arrays in sorted(factors.items()):
        rank = arrays["a"].shape[0]
        fold = np.float32(1.0) if _product(arrays) == alpha else np.float32(float(arrays["scale"]) * rank / alpha)
        tensors[f"{tensor}.lora_a"] = arrays["a"].T if tensor == "token_embd.weight" else arrays["a"]
        tensors[f"{tensor}.lora_b"] = (arrays["b"] * fold).T
    return tensors, alpha


def _refuse(adapter: Adapter, config: Any) -> None:
    """What is no LoRA, or stands where llama.cpp does not look."""
    tied = getattr(config, "tied", False)
    lines = []
    for path, piece in adapter.pieces.items():
        if piece.kind != "LoRA":
            lines.append(f"{path}: {HOMELESS.get(piece.kind, f'it does not know {piece.kind}')}")
        elif "bias" in piece.arrays:
            lines.append(f"{path}: it has no bias behind B (lora_bias)")
        elif path == "pos_embed/embedding":
            lines.append(f"{path}: positions are looked up without adapters")
        elif tied and path == "head/kernel":
            lines.append(f"{path}: a tied base's file has no output.weight of its own (ggml-org/llama.cpp#9065)")
        elif tied and path == "embed/embedding":
            lines.append(f"{path}: a tied base's head is token_embd.weight too, and multiplies by A, kept for look-up, the wrong way round")
    if lines:
        more = f"\n  and {len(lines) - 5} more" if len(lines) > 5 else ""
        raise ValueError("llama.cpp has no place for this adapter:\n  " + "\n  ".join(lines[:5]) + more)


def _joined(found: list[tuple[Stored, Piece]], config: Any) -> dict[str, np.ndarray]:
    """The factors for one tensor of theirs, B's columns in the order of its rows: a [R, in], b [R, out], scale."""
    parts = []
    for stored, piece in found:
        arrays = trimmed(piece.arrays)
        if stored.rotary is not None:
            turned = np.empty_like(arrays["b"])
            turned[:, rotary_order(getattr(config, stored.rotary), config.head_size)] = arrays["b"]
            arrays["b"] = turned
        parts.append((stored.bounds(config), arrays))
    if parts[0][0] is None:
        return parts[0][1]
    parts.sort(key=lambda part: part[0])
    return fuse([((start, stop), arrays) for (start, stop, _), arrays in parts], parts[0][0][2])


def _product(arrays: Mapping[str, np.ndarray]) -> float:
    """The alpha that llama.cpp turns back into this scale, as the float32 that the file can hold."""
    return float(np.float32(float(arrays["scale"]) * arrays["a"].shape[0]))


def _alpha(factors: Mapping[str, Mapping[str, np.ndarray]]) -> float:
    """One alpha for all: the most frequent one, so that few B are touched. Never zero, which llama.cpp reads as a scale of one."""
    count = collections.Counter(product for product in map(_product, factors.values()) if product)
    return count.most_common(1)[0][0] if count else 1.0
