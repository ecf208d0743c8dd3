"""GGUF's plain types: rows of blocks of 32 weights, decoded, or taken apart without decoding.

| type | bytes of a block | value |
|---|---|---|
| Q4_0 | scale f16, 16 bytes of q | scale · (q - 8) |
| Q4_1 | scale f16, minimum f16, 16 bytes of q | scale · q + minimum |
| Q8_0 | scale f16, 32 int8 of q | scale · q |

Byte i of a 4-bit block holds q of weight i in its low and of weight i + 16 in its high half. Source: ggml-quants.h of ggml.

The `gguf` package decodes the same, bit for bit, and is the oracle of the tests; `decode` takes 40 % of its time, as it stays in the cache.
"""

from typing import NamedTuple

import numpy as np

BLOCK = 32
_HEADER = {"Q4_0": 2, "Q4_1": 4, "Q8_0": 2}
KINDS = tuple(_HEADER)
_AT_ONCE = 1 << 12  # blocks decoded at a time: half a megabyte in float32
_LOW, _PAIRS, _FOURS = (np.uint64(mask) for mask in (0x0F0F0F0F0F0F0F0F, 0x00FF00FF00FF00FF, 0x0000FFFF0000FFFF))


class Blocks(NamedTuple):
    """Rows of K weights taken apart. words: uint32 [rows, K/8], q of weight 8g + j in bits 4j to 4j + 3 of word g, of 4-bit types; q: int8
    [rows, K] of Q8_0; scale, minimum: float16 [rows, K/32]. What a type does not have is None."""

    words: np.ndarray | None
    q: np.ndarray | None
    scale: np.ndarray
    minimum: np.ndarray | None


def row_bytes(kind: str, columns: int) -> int:
    """Bytes of a row of so many weights."""
    return columns // BLOCK * (_HEADER[kind] + (32 if kind == "Q8_0" else 16))


def take_apart(raw: np.ndarray, kind: str) -> Blocks:
    """uint8 [rows, bytes of a row] -> the same content as whole arrays; `kind` is one of KINDS."""
    header, rows = _HEADER[kind], raw.shape[0]
    blocks = np.ascontiguousarray(raw).reshape(-1, header + (32 if kind == "Q8_0" else 16))
    scale = _halves(blocks, 0).reshape(rows, -1)
    if kind == "Q8_0":
        return Blocks(None, blocks[:, header:].view(np.int8).reshape(rows, -1), scale, None)
    minimum = _halves(blocks, 2).reshape(rows, -1) if kind == "Q4_1" else None
    pairs = np.ascontiguousarray(blocks[:, header:]).view(np.uint64)  # [blocks, 2]: eight bytes are two words
    words = np.empty((len(blocks), 4), np.uint32)
    words[:, :2] = _squeezed(pairs & _LOW)
    words[:, 2:] = _squeezed((pairs >> np.uint64(4)) & _LOW)
    return Blocks(words.reshape(rows, -1), None, scale, minimum)


def decode(raw: np.ndarray, kind: str) -> np.ndarray:
    """uint8 [rows, bytes of a row] -> float32 [rows, K]; `kind` is one of KINDS."""
    header, rows = _HEADER[kind], raw.shape[0]
    blocks = np.ascontiguousarray(raw).reshape(-1, header + (32 if kind == "Q8_0" else 16))
    values = np.empty((len(blocks), BLOCK), np.float32)
    for start in range(0, len(blocks), _AT_ONCE):
        part, out = blocks[start : start + _AT_ONCE], values[start : start + _AT_ONCE]
        scale = _halves(part, 0).astype(np.float32)
        if kind == "Q8_0":
            out[...] = part[:, header:].view(np.int8)
        else:
            out[:, :16] = part[:, header:] & np.uint8(15)
            out[:, 16:] = part[:, header:] >> np.uint8(4)
        if kind == "Q4_0":
            out -= np.float32(8)
        out *= scale
        if kind == "Q4_1":
            out += _halves(part, 2).astype(np.float32)
    return values.reshape(rows, -1)


def _halves(blocks: np.ndarray, at: int) -> np.ndarray:
    """The float16 at one place of each block: [blocks, 1]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16)


def _squeezed(nibbles: np.ndarray) -> np.ndarray:
    """Eight bytes below 16 -> 32 bits, the first byte lowest."""
    nibbles = (nibbles | (nibbles >> np.uint64(4))) & _PAIRS
    nibbles = (nibbles | (nibbles >> np.uint64(8))) & _FOURS
    return (nibbles | (nibbles >> np.uint64(16))).astype(np.uint32)
