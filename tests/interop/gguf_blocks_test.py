"""Plain GGUF blocks: decoded as the gguf package does, and taken apart into the numbers that the format's formulas are of."""

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftjax.interop import gguf_blocks
from peftjax.interop.gguf_blocks import KINDS, decode, row_bytes, take_apart

ROWS, COLUMNS = 3, 96


def random_rows(kind: str, seed: int = 0) -> np.ndarray:
    """Random bytes, so that every code and every scale occurs, NaN and infinity too."""
    return np.random.default_rng(seed).integers(0, 256, (ROWS, row_bytes(kind, COLUMNS)), np.uint8)


def oracle(raw: np.ndarray, kind: str) -> np.ndarray:
    with np.errstate(all="ignore"):
        return gguf.dequantize(raw, gguf.GGMLQuantizationType[kind])


def digits(words: np.ndarray) -> np.ndarray:
    """q of weight 8g + j is bits 4j to 4j + 3 of word g."""
    return ((words[..., None] >> (4 * np.arange(8, dtype=np.uint32))) & 15).reshape(words.shape[0], -1)


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_are_the_packages(kind):
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    assert row_bytes(kind, COLUMNS) == COLUMNS // block * size


@pytest.mark.parametrize("kind", KINDS)
@given(st.integers(0, 2**32 - 1))
def test_decoding_is_bit_equal_to_the_package(kind, seed):
    raw = random_rows(kind, seed)
    with np.errstate(all="ignore"):
        assert decode(raw, kind).tobytes() == oracle(raw, kind).tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_portions_make_no_difference(kind, monkeypatch):
    raw = random_rows(kind)[::2]  # not in one piece
    monkeypatch.setattr(gguf_blocks, "_AT_ONCE", 2)
    with np.errstate(all="ignore"):
        assert decode(raw, kind).tobytes() == oracle(raw, kind).tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_taken_apart_gives_the_same_values(kind):
    raw = random_rows(kind)
    blocks, expected = take_apart(raw, kind), oracle(raw, kind)
    q = digits(blocks.words) if blocks.q is None else blocks.q
    scale = np.repeat(blocks.scale, 32, axis=1).astype(np.float32)
    with np.errstate(all="ignore"):
        values = scale * (q.astype(np.float32) - (8 if kind == "Q4_0" else 0))
        if blocks.minimum is not None:
            values = values + np.repeat(blocks.minimum, 32, axis=1).astype(np.float32)
    np.testing.assert_array_equal(values, expected)
    assert (blocks.words is None) == (kind == "Q8_0") and (blocks.minimum is None) == (kind != "Q4_1")
    assert blocks.scale.dtype == np.float16


def test_a_word_by_hand():
    block = np.zeros((1, 20), np.uint8)
    block[0, 4:] = np.arange(16) + 16 * np.arange(15, -1, -1)
    assert [f"{word:08x}" for word in take_apart(block, "Q4_1").words[0]] == ["76543210", "fedcba98", "89abcdef", "01234567"]
