"""Base weights from a GGUF file: its configuration, and its tensors as `Source`s for `peftjax.interop.weights`.

    >>> opened = open_gguf("SmolLM2-135M-Instruct.Q4_1.gguf")
    >>> opened.config.layers, len(opened.sources)
    (30, 272)

Tensors are mapped into memory and decoded by the `gguf` package some rows at a time, whatever block type it knows (Q4_1, Q8_0,
Q6_K, IQ4_XS, MXFP4, BF16, ...). Shapes are turned to Hugging Face's order, [out, in]; the order of the q and k rows is mended when
they are put into place (`weights.rotary_order`).

What would change the computation and is not implemented is refused: rope scaling, mixtures of experts, and every key of the
architecture's own namespace that this reader does not know.
"""

import dataclasses
import difflib
from pathlib import Path
from typing import Any

import numpy as np

from peftjax.interop.families import Family, family_for
from peftjax.interop.gguf_file import GGUFFile, TensorInfo, read_header
from peftjax.interop.weights import Source
from peftjax.models.config import DecoderConfig

_READ = (
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "expert_count",
)
_HARMLESS = ("vocab_size", "expert_used_count", "tensor_data_layout", "rope.scaling.finetuned")


@dataclasses.dataclass(frozen=True)
class OpenedGGUF:
    """A GGUF file, described and not yet read."""

    file: GGUFFile
    config: DecoderConfig
    family: Family
    sources: dict[str, Source]


def open_gguf(path: str | Path) -> OpenedGGUF:
    """Reads the header of the file at `path`.

    Raises:
        ValueError: not a GGUF file, truncated within its header, or an architecture or setting that is not supported.
    """
    file = read_header(path)
    family = family_for("gguf", _need(file, "general.architecture"), str(file.path))
    config = _config(file, family)
    data = np.memmap(file.path, np.uint8, mode="r")
    sources = {name: _source(info, data) for name, info in file.tensors.items()}
    return OpenedGGUF(file, config, family, sources)


def _config(file: GGUFFile, family: Family) -> DecoderConfig:
    """The configuration that the metadata describe."""
    prefix = file.metadata["general.architecture"] + "."
    own = {key.removeprefix(prefix): value for key, value in file.metadata.items() if key.startswith(prefix)}
    _refuse_unsupported(file, prefix, own)
    for name in ("block_count", "embedding_length", "attention.head_count", "feed_forward_length", "attention.layer_norm_rms_epsilon"):
        _need(file, prefix + name)
    if "token_embd.weight" not in file.tensors:
        raise ValueError(f"{file.path} has no tensor token_embd.weight; its tensors are {', '.join(list(file.tensors)[:5])}, ...")
    width = own["embedding_length"]
    heads = _same_in_all_layers(file, prefix + "attention.head_count", own["attention.head_count"])
    kv_heads = _same_in_all_layers(file, prefix + "attention.head_count_kv", own.get("attention.head_count_kv", heads))
    head_size = own.get("attention.key_length", width // heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        if own.get(name, head_size) != head_size:
            raise ValueError(f"{file.path}: {prefix}{name} is {own[name]}, but heads have size {head_size}; that is not supported")
    return DecoderConfig(
        vocab_size=file.tensors["token_embd.weight"].shape[0],
        width=width,
        layers=own["block_count"],
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        ff=_same_in_all_layers(file, prefix + "feed_forward_length", own["feed_forward_length"]),
        rope_base=_decimal(own.get("rope.freq_base", 10000.0)),
        norm_eps=_decimal(own["attention.layer_norm_rms_epsilon"]),
        max_length=own.get("context_length", 2048),
        tied="output.weight" not in file.tensors,
        qkv_bias="blk.0.attn_q.bias" in file.tensors,
        out_bias="blk.0.attn_output.bias" in file.tensors,
        mlp_bias="blk.0.ffn_up.bias" in file.tensors,
        window=own.get("attention.sliding_window") or None,
        family=family.name,
    )


def _refuse_unsupported(file: GGUFFile, prefix: str, own: dict[str, Any]) -> None:
    problems = [f"{prefix}{key} = {str(own[key])[:60]}" for key in own if key not in _READ + _HARMLESS and "rope.scaling" not in key]
    if own.get("rope.scaling.type", "none") != "none" or "rope_freqs.weight" in file.tensors:
        problems.append(f"rope scaling ({own.get('rope.scaling.type') or 'the tensor rope_freqs.weight'})")
    if own.get("expert_count", 0):
        problems.append(f"a mixture of {own['expert_count']} experts")
    if problems:
        raise ValueError(f"{file.path} uses settings that are not supported: {'; '.join(problems)}")


def _source(info: TensorInfo, data: np.ndarray) -> Source:
    """A tensor that decodes the rows it is asked for."""
    import gguf

    known = {int(kind): kind for kind in gguf.GGMLQuantizationType}
    if info.type not in known:
        return Source(info.shape, _unreadable, f"ggml type {info.type} is unknown to the installed gguf package")
    kind = known[info.type]
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    size = info.elements // block * block_bytes
    if info.offset + size > len(data):
        problem = f"truncated: it needs bytes {info.offset} to {info.offset + size}, the file ends at {len(data)}"
        return Source(info.shape, _unreadable, problem)
    if not _decodable(kind, block_bytes) or info.shape[-1] % block:
        return Source(info.shape, _unreadable, f"the gguf package cannot decode {kind.name} rows of {info.shape[-1]}")
    raw = data[info.offset : info.offset + size]
    if len(info.shape) == 1:
        return Source(info.shape, lambda rows: gguf.dequantize(raw, kind)[rows])
    packed = raw.reshape(info.shape[0], -1)
    return Source(info.shape, lambda rows: gguf.dequantize(np.ascontiguousarray(packed[rows]), kind))


def _decodable(kind, block_bytes: int) -> bool:
    """Whether the package decodes this type, found out on one block of zeros."""
    import gguf

    try:
        gguf.dequantize(np.zeros((1, block_bytes), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def _unreadable(rows):
    raise ValueError("this tensor cannot be read; weights.check says why")


def _need(file: GGUFFile, key: str) -> Any:
    if key not in file.metadata:
        near = difflib.get_close_matches(key, file.metadata, n=3)
        raise ValueError(f"{file.path} has no metadata key {key!r}; nearest: {', '.join(near) or 'none'}")
    return file.metadata[key]


def _same_in_all_layers(file: GGUFFile, key: str, value: int | list[int]) -> int:
    if isinstance(value, list):
        if len(set(value)) != 1:
            raise ValueError(f"{file.path}: {key} differs between layers ({sorted(set(value))}); that is not supported")
        return value[0]
    return value


def _decimal(value: float) -> float:
    """The decimal number that was meant: GGUF holds 1e-5 as the float32 9.999999747378752e-06."""
    return float(str(np.float32(value)))
