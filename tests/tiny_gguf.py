"""Small GGUF files as llama.cpp's converter would write them, through the gguf package's own writer."""

from pathlib import Path

import gguf
import numpy as np

from peftjax.interop import hf


def permute(rows: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's `permute` (convert_hf_to_gguf.py): half-split rotary rows to interleaved ones."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write_llama_gguf(path: Path, folder: Path, interleave: bool = True, kind: str = "F32", extra=None) -> Path:
    """The checkpoint in `folder` (Hugging Face layout) as a GGUF file.

    Args:
        interleave: whether q and k rows are permuted, as they must be.
        kind: ggml type of the matrices.
        extra: further metadata, {key: value}; a value of None leaves out a key that is otherwise written.
    """
    opened = hf.open_directory(folder)
    config = opened.config
    writer = gguf.GGUFWriter(path, "llama")
    metadata = {
        "llama.block_count": config.layers,
        "llama.context_length": config.max_length,
        "llama.embedding_length": config.width,
        "llama.feed_forward_length": config.ff,
        "llama.attention.head_count": config.heads,
        "llama.attention.head_count_kv": config.kv_heads,
        "llama.attention.key_length": config.head_size,
        "llama.attention.value_length": config.head_size,
        "llama.rope.dimension_count": config.head_size,
        "llama.rope.freq_base": float(config.rope_base),
        "llama.attention.layer_norm_rms_epsilon": float(config.norm_eps),
    }
    if config.window:
        metadata["llama.attention.sliding_window"] = config.window
    add_metadata(writer, metadata | (extra or {}))
    for weight in opened.family.present(config):
        for theirs, name in zip(weight.names("hf", config), weight.names("gguf", config), strict=True):
            value = np.array(opened.sources[theirs].read(slice(None)), np.float32)
            if weight.gguf.rotary and interleave:
                value = permute(value, getattr(config, weight.gguf.rotary))
            block = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0]
            used = gguf.GGMLQuantizationType[kind if value.ndim == 2 and value.shape[-1] % block == 0 else "F32"]
            writer.add_tensor(name, gguf.quantize(value, used), raw_dtype=used)
    finish(writer)
    return path


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
