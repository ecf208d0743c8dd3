"""Quantising: a dense weight and the name of a kind -> node.

    quantise(W, "nf4")                               block 64, double quantisation
    quantise(W, "affine4", block=32)                 GGUF's Q4_1; symmetric=True is Q4_0
    quantise(W, "int8")                              one scale a channel; block=32 is GGUF's Q8_0
    quantise(E, "int8", rows=True)                   an embedding [V, D]: rows are looked up
    quantise(W, Scheme("nf4", double=False))         the same as data

A weight is quantised by itself, so that a model can be read tensor by tensor: one layer at a time and the leaves stacked is the same
as the whole stack [L, in, out] at once.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from peftjax.hints import did_you_mean
from peftjax.nn.quant.affine4 import to_affine4
from peftjax.nn.quant.float8 import to_float8
from peftjax.nn.quant.int8 import to_int8
from peftjax.nn.quant.nf4 import to_nf4
from peftjax.nn.quant.quantised import Quantised
from peftjax.nn.quant.words import PER_WORD

BLOCKS = {"affine4": 32, "int8": None, "nf4": 64, "float8": None}  # kind -> its usual block; None is one scale a channel
USUAL = (32, 64, 128, 256)


@dataclasses.dataclass(frozen=True)
class Scheme:
    """How a weight is quantised.

    Attributes:
        kind: "affine4", "int8", "nf4" or "float8".
        block: weights that share constants, along the axis that products sum over; None is the kind's usual one: 32 for affine4, 64 for
            nf4, one a channel for int8 and float8.
        symmetric: of affine4: no minimum, 15 levels around zero.
        double: of nf4: the constants are quantised too.
    """

    kind: str
    block: int | None = None
    symmetric: bool = False
    double: bool = True

    def __post_init__(self):
        if self.kind not in BLOCKS:
            raise ValueError(f"no quantised kernel is called {self.kind!r}{did_you_mean(self.kind, BLOCKS)}; there are {', '.join(BLOCKS)}")
        if self.block is None:
            object.__setattr__(self, "block", BLOCKS[self.kind])
        elif self.kind == "float8":
            raise ValueError(f"float8 has one scale a channel and no blocks; block={self.block} was asked for")
        elif self.block < 1:
            raise ValueError(f"block={self.block} is not positive")
        if self.symmetric and self.kind != "affine4":
            raise ValueError(f"symmetric is a choice of affine4; {self.kind} has none")


def quantise(array, kind: str | Scheme, *, rows: bool = False, **options) -> Quantised:
    """A dense weight [.., in, out] -> node of the same logical shape.

    Args:
        array: of numpy or JAX, floating; with `rows` an embedding [.., V, D].
        kind: a Scheme, or its kind with `options` as its other fields.
        rows: the weight is an embedding: blocks run along D, and rows can be looked up.

    Raises:
        ValueError: an unknown kind, or a block that does not divide the axis it runs along.
        TypeError: a weight that is not floating.
    """
    scheme = dataclasses.replace(kind, **options) if isinstance(kind, Scheme) else Scheme(kind, **options)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"a weight of dtype {array.dtype} cannot be quantised; it has to be floating")
    if array.ndim < 2:
        raise ValueError(f"a weight of shape {array.shape} cannot be quantised; it has to be a matrix, or a stack of them")
    _require_fits(scheme, array.shape, rows)
    return _quantise(array, scheme, rows)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _quantise(array, scheme: Scheme, rows: bool) -> Quantised:
    dtype = jnp.dtype(array.dtype)
    values = (jnp.swapaxes(array, -1, -2) if rows else array).astype(jnp.float32)
    match scheme.kind:
        case "affine4":
            return to_affine4(values, scheme.block, scheme.symmetric, rows, dtype)
        case "int8":
            return to_int8(values, scheme.block or values.shape[-2], rows, dtype)
        case "nf4":
            return to_nf4(values, scheme.block, scheme.double, rows, dtype)
        case "float8":
            return to_float8(values, rows, dtype)


def _require_fits(scheme: Scheme, shape: tuple[int, ...], rows: bool) -> None:
    """Raises ValueError naming blocks that fit, unless the scheme's does."""
    k, whole_words = shape[-1 if rows else -2], scheme.kind in ("affine4", "nf4")
    if scheme.block is None or not (k % scheme.block or (whole_words and scheme.block % PER_WORD)):
        return
    fit = [block for block in USUAL if k % block == 0]
    if not fit:
        fit = [block for block in range(2, k + 1) if k % block == 0 and not (whole_words and block % PER_WORD)]
    axis = "row" if rows else "column"
    raise ValueError(
        f"{scheme.kind} in blocks of {scheme.block} does not fit a weight of shape {tuple(shape)}: a {axis} has {k} values; "
        f"blocks that fit are {', '.join(map(str, fit)) or 'none'}"
    )
