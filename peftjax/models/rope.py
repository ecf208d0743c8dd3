"""Rotary frequencies, plain and rescaled for contexts longer than the base was trained on.

    angle of pair j at a position = position * frequency_j        frequency_j = base^(-2j / size)  (2104.09864, 2021)

| scaling | frequencies | source |
|---|---|---|
| linear | all divided by a factor | position interpolation, 2306.15595, 2023 |
| llama3 | long waves divided by a factor, short ones kept, a smooth passage between | Llama 3.1, 2407.21783, 2024 |
| yarn | the same by a ramp over the pairs; cos and sin times an attention factor | 2309.00071, 2023 |
| longrope | each pair divided by a factor of its own, other ones where a position is beyond the trained length | 2402.13753, 2024 |

A scaling is a frozen dataclass with `apply(frequencies [size/2], base, longest) -> (frequencies, attention factor)`, where `longest`
is the number of positions in use. Names and formulas are those of transformers' modeling_rope_utils.
"""

import dataclasses
import math
from typing import Any, ClassVar

import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Linear:
    """Positions `factor` times as dense."""

    kind: ClassVar[str] = "linear"
    factor: float

    def apply(self, frequencies, base: float, longest):
        return frequencies / self.factor, 1.0


@dataclasses.dataclass(frozen=True)
class Llama3:
    """Waves longer than original_length / low are divided by `factor`, those shorter than original_length / high are kept."""

    kind: ClassVar[str] = "llama3"
    factor: float
    low: float
    high: float
    original_length: int

    def apply(self, frequencies, base: float, longest):
        waves = 2 * math.pi / frequencies
        smooth = jnp.clip((self.original_length / waves - self.low) / (self.high - self.low), 0.0, 1.0)
        return (1 - smooth) * frequencies / self.factor + smooth * frequencies, 1.0


@dataclasses.dataclass(frozen=True)
class Yarn:
    """Pairs that turn more than `fast` times within original_length are kept, those that turn less than `slow` times are divided by
    `factor`. `attention_factor` None is 0.1 ln(factor) + 1; `truncate` rounds the ends of the ramp outwards to whole pairs."""

    kind: ClassVar[str] = "yarn"
    factor: float
    original_length: int
    attention_factor: float | None = None
    fast: float = 32.0
    slow: float = 1.0
    truncate: bool = True

    def apply(self, frequencies, base: float, longest):
        size = 2 * frequencies.shape[0]

        def pair(turns):
            return size * math.log(self.original_length / (turns * 2 * math.pi)) / (2 * math.log(base))

        start, stop = pair(self.fast), pair(self.slow)
        if self.truncate:
            start, stop = math.floor(start), math.ceil(stop)
        start, stop = max(start, 0), min(stop, size - 1)
        stop += 0.001 if start == stop else 0.0
        divided = jnp.clip((jnp.arange(size // 2, dtype=jnp.float32) - start) / (stop - start), 0.0, 1.0)
        default = 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0
        factor = default if self.attention_factor is None else self.attention_factor
        return frequencies / self.factor * divided + frequencies * (1 - divided), factor


@dataclasses.dataclass(frozen=True)
class LongRope:
    """Pair j is divided by short[j], or by long[j] when more than original_length positions are in use.

    The choice is made for a whole batch, and anew at each call: a cache that grows past original_length holds keys that were
    turned by the short factors, as in transformers.
    """

    kind: ClassVar[str] = "longrope"
    short: tuple[float, ...]
    long: tuple[float, ...]
    original_length: int
    attention_factor: float

    def apply(self, frequencies, base: float, longest):
        short, long = (jnp.asarray(factors, jnp.float32) for factors in (self.short, self.long))
        return frequencies / jnp.where(longest > self.original_length, long, short), self.attention_factor


SCALINGS = (Linear, Llama3, Yarn, LongRope)


def longrope_attention(factor: float, original_length: int) -> float:
    """The attention factor of LongRope where none is given, for a context `factor` times original_length."""
    return math.sqrt(1 + math.log(factor) / math.log(original_length)) if factor > 1 else 1.0


def rotary_angles(positions, size: int, base: float, scaling: Any = None):
    """cos and sin of the rotary angles, times the attention factor: positions [B, T] -> two [B, T, 1, size/2] float32."""
    frequency, factor = base ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size), 1.0
    if scaling is not None:
        frequency, factor = scaling.apply(frequency, base, jnp.max(positions) + 1)
    angle = positions[:, :, None, None].astype(jnp.float32) * frequency[None, None, None, :]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return (cos, sin) if factor == 1.0 else (cos * factor, sin * factor)


def rotate(x, angles):
    """Turns the pairs (j, j + n) of x [B, T, heads, K] by the n angles of each position; what is beyond 2n stays."""
    cos, sin = (jnp.broadcast_to(a, x.shape[:-1] + a.shape[-1:]).astype(x.dtype) for a in angles)
    turned = cos.shape[-1]
    first, second, rest = x[..., :turned], x[..., turned : 2 * turned], x[..., 2 * turned :]
    parts = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(parts + ([rest] if rest.shape[-1] else []), axis=-1)
