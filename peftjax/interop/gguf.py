"""Base weights from a GGUF file: its configuration, and its tensors as `Source`s for `peftjax.interop.weights`.

    >>> opened = open_gguf("SmolLM2-135M-Instruct.Q4_1.gguf")
    >>> opened.config.layers, len(opened.sources)
    (30, 272)

Tensors are mapped into memory and decoded some rows at a time: Q4_0, Q4_1 and Q8_0 by `peftjax.interop.gguf_blocks`, which can also take
them over undecoded, all else that it knows (Q6_K, IQ4_XS, MXFP4, BF16, ...) by the `gguf` package. Shapes are turned to Hugging Face's
order, [out, in]; the order of the q and k rows is mended when they are put into place (`weights.rotary_order`). What the metadata say is
read by `peftjax.interop.gguf_settings`.
"""

import dataclasses
from pathlib import Path

import numpy as np

from peftjax.interop import gguf_blocks
from peftjax.interop.families import Family, family_for
from peftjax.interop.gguf_file import GGUFFile, TensorInfo, read_header
from peftjax.interop.gguf_settings import ROPE_TENSORS, config_from_file, need
from peftjax.interop.weights import Packed, Source
from peftjax.models.config import DecoderConfig


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
    family = family_for("gguf", need(file, "general.architecture"), str(file.path))
    data = np.memmap(file.path, np.uint8, mode="r")
    sources = {name: _source(info, data) for name, info in file.tensors.items()}
    config = config_from_file(file, family.name, sources)
    return OpenedGGUF(file, config, family, {name: source for name, source in sources.items() if name not in ROPE_TENSORS})


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
    if kind.name in gguf_blocks.KINDS:
        return Source(
            info.shape, lambda rows: gguf_blocks.decode(packed[rows], kind.name), packed=Packed(kind.name, lambda rows: packed[rows])
        )
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
