"""Small GGUF files as llama.cpp's converter would write them, through the gguf package's own writer and table of names.

Nothing of the reader under test is used here: names come from the gguf package, layouts and keys from convert_hf_to_gguf.py.
"""

import json
import math
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

ARCHITECTURES = {
    "LlamaForCausalLM": "llama", "MistralForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3",
    "Gemma2ForCausalLM": "gemma2", "Gemma3ForCausalLM": "gemma3", "Phi3ForCausalLM": "phi3", "GPT2LMHeadModel": "gpt2",
}  # fmt: skip


def permute(rows: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's `permute` (convert_hf_to_gguf.py): half-split rotary rows to interleaved ones."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(path: Path, folder: Path, interleave: bool = True, kind: str = "F32", extra=None) -> Path:
    """The checkpoint in `folder` (Hugging Face layout) as a GGUF file.

    Args:
        interleave: whether q and k rows of Llama's family are permuted, as they must be.
        kind: ggml type of the matrices.
        extra: further metadata, {key: value}; a value of None leaves out a key that is otherwise written.
    """
    document = json.loads((folder / "config.json").read_text())
    arch = ARCHITECTURES[document["architectures"][0]]
    writer = gguf.GGUFWriter(path, arch)
    metadata = {f"{arch}.{key}": value for key, value in (_gpt2(document) if arch == "gpt2" else _settings(document, arch)).items()}
    add_metadata(writer, metadata | (extra or {}))
    names = gguf.get_tensor_name_map({name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[arch], 99)
    tensors = {theirs: np.asarray(value, np.float32) for theirs, value in load_file(folder / "model.safetensors").items()}
    for theirs, value in tensors.items():
        if arch == "llama" and interleave and ("q_proj" in theirs or "k_proj" in theirs):
            value = permute(value, document["num_attention_heads" if "q_proj" in theirs else "num_key_value_heads"])
        if arch.startswith("gemma") and theirs.endswith("norm.weight"):
            value = value + 1
        if arch == "gpt2" and theirs.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
            value = np.ascontiguousarray(value.T)
        block = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0]
        used = gguf.GGMLQuantizationType[kind if value.ndim == 2 and value.shape[-1] % block == 0 else "F32"]
        writer.add_tensor(names.get_name(theirs, try_suffixes=(".weight", ".bias")), gguf.quantize(value, used), raw_dtype=used)
    for name, divisors in _rope_tensors(document, arch).items():
        writer.add_tensor(name, np.asarray(divisors, np.float32))
    finish(writer)
    return path


def _settings(document: dict, arch: str) -> dict:
    """Metadata of the families with rotary positions."""
    heads = document["num_attention_heads"]
    size = document.get("head_dim") or document["hidden_size"] // heads
    rope = document["rope_parameters"]
    rope = rope.get("full_attention", rope)
    metadata = {
        "block_count": document["num_hidden_layers"],
        "context_length": document["max_position_embeddings"],
        "embedding_length": document["hidden_size"],
        "feed_forward_length": document["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": document["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": float(document["rms_norm_eps"]),
        "rope.freq_base": float(rope["rope_theta"]),
    }
    if arch in ("llama", "qwen2", "phi3"):
        metadata["rope.dimension_count"] = int(size * rope.get("partial_rotary_factor", 1.0))
    if arch != "phi3":
        metadata |= {"attention.key_length": size, "attention.value_length": size}
    if document["architectures"][0] != "LlamaForCausalLM" and arch in ("llama", "gemma2", "gemma3", "phi3"):
        metadata["attention.sliding_window"] = document.get("sliding_window") or 0
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if document.get(key):
            metadata[key] = float(document[key])
    if rope["rope_type"] in ("linear", "yarn"):
        metadata |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": float(rope["factor"])}
    if rope["rope_type"] in ("longrope", "yarn"):
        original = rope["original_max_position_embeddings"]
        metadata["rope.scaling.original_context_length"] = original
    if rope["rope_type"] == "longrope":
        scale = document["max_position_embeddings"] / original
        metadata["rope.scaling.attn_factor"] = math.sqrt(1 + math.log(scale) / math.log(original))
    return metadata


def _gpt2(document: dict) -> dict:
    """Metadata of GPT-2."""
    return {
        "block_count": document["n_layer"],
        "context_length": document["n_positions"],
        "embedding_length": document["n_embd"],
        "feed_forward_length": 4 * document["n_embd"],
        "attention.head_count": document["n_head"],
        "attention.layer_norm_epsilon": float(document["layer_norm_epsilon"]),
    }


def _rope_tensors(document: dict, arch: str) -> dict[str, list[float]]:
    """Divisors of the rotary frequencies, which the converter writes as tensors."""
    rope = document.get("rope_parameters") or {}
    if rope.get("rope_type") == "longrope":
        return {"rope_factors_long.weight": rope["long_factor"], "rope_factors_short.weight": rope["short_factor"]}
    if rope.get("rope_type") != "llama3":
        return {}
    size = document.get("head_dim") or document["hidden_size"] // document["num_attention_heads"]
    original, low, high = (rope[key] for key in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor"))
    divisors = []
    for pair in range(size // 2):
        wave = 2 * math.pi * rope["rope_theta"] ** (2 * pair / size)
        smooth = (original / wave - low) / (high - low)
        if wave < original / high:
            divisors.append(1.0)
        elif wave > original / low:
            divisors.append(rope["factor"])
        else:
            divisors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return {"rope_freqs.weight": divisors}


def add_metadata(writer: gguf.GGUFWriter, metadata: dict) -> None:
    """Adds values with the type that their Python type suggests; None is left out."""
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)


def finish(writer: gguf.GGUFWriter) -> None:
    """Writes what was added."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
