"""Fused dequantise-matmul on GPU and TPU, as Pallas kernels: y [M, N] = x [M, K] · V [K, N], with V as it is stored.

    a program         bm x bn of y, over all of K in steps of bk; a step of V is dequantised beside the multiplier and never written back
    "tpu" (Mosaic)    the steps are the last axis of the grid, in order; a step's blocks are copied to VMEM during the one before
    "gpu" (Triton)    programs run at once; a program loops over the steps and reads them from memory

| kind    | step of V                                                                                                     |
|---------|---------------------------------------------------------------------------------------------------------------|
| Affine4 | words [bk/8, bn] spread over 8 rows each and shifted; scale · q + minimum                                     |
| NF4     | as Affine4; the table is a tree of selects on the four bits of q, as there is no gather in registers          |
| Int8    | q [bk, bn] converted; scale · q                                                                               |

Constants come in as float32 (TPUs have no float16), NF4's dequantised: 1/16 of the bytes at block 64. Sums are float32; the product of a
step is in x's dtype, exact for float32.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from peftjax.nn.quant.affine4 import Affine4
from peftjax.nn.quant.int8 import Int8
from peftjax.nn.quant.nf4 import GROUP, NF4, TABLE, dequantised
from peftjax.nn.quant.words import PER_WORD

LANES, SUBLANES = 128, 8  # of a TPU's registers
WHOLE = 2048  # K up to which a TPU takes one step
DOT = 16  # the least rows, columns and depth of a GPU's matrix product


@dataclasses.dataclass(frozen=True)
class _Stored:
    """A kernel as the programs read it: its leaves, rows of K that a row of each stands for, and the values of a step.

    values: leaves [bk/every, bn] and bk -> float32 [bk, bn].
    """

    leaves: tuple[jax.Array, ...]
    every: tuple[int, ...]
    values: Callable
    k: int
    n: int


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Rows of x, columns and depth of a program's blocks."""

    m: int
    n: int
    k: int


def matmul(x: jax.Array, node, *, platform: str, interpret: bool = False) -> jax.Array:
    """x [M, K] times a kernel stored as [K, N] -> [M, N], in x's dtype.

    Args:
        node: Affine4, NF4 or Int8 of one layer.
        platform: "gpu" or "tpu".
        interpret: run in the interpreter, on any backend.

    Raises:
        TypeError: no program fits this kernel (see `fits`).
    """
    blocks = blocks_of(x.shape[0], node, platform)
    if blocks is None:
        raise TypeError(f"there is no fused product on {platform} for {type(node).__name__} of stored shape {node.stored}")
    rows = -x.shape[0] % blocks.m
    padded = jnp.pad(x, ((0, rows), (0, 0)))
    drive = _on_tpu if platform == "tpu" else _on_gpu
    return drive(padded, _stored(node), blocks, interpret)[: x.shape[0]]


def fits(node, platform: str) -> bool:
    """Whether there is a program for this kernel on "gpu" or "tpu"."""
    return blocks_of(DOT, node, platform) is not None


def blocks_of(rows: int, node, platform: str) -> Blocks | None:
    """The blocks that programs work on, None where none fit: GPUs want powers of two that divide the shape, TPUs whole registers."""
    if not isinstance(node, Affine4 | NF4 | Int8) or len(node.stored) != 2 or not rows:
        return None
    (k, n), every = node.stored, _stored(node).every
    if platform == "gpu":
        bn, bk = _power_of_two(n, 128), _power_of_two(k, 128)
        aligned = all(bk % size == 0 or size % bk == 0 for size in every)
        return Blocks(max(DOT, min(64, pl.next_power_of_2(rows))), bn, bk) if min(bn, bk) >= DOT and aligned else None
    steps = [step for step in (WHOLE, 1024, 512, 256) if k % step == 0 and all(step // size % SUBLANES == 0 for size in every if size < k)]
    bm = min(LANES, rows + -rows % SUBLANES)
    return Blocks(bm, n if n < LANES else 2 * LANES, k if k <= WHOLE or not steps else steps[0])


def _power_of_two(size: int, most: int) -> int:
    """The largest power of two that divides `size`, at most `most`."""
    return min(size & -size, most)


def _stored(node) -> _Stored:
    k, n = node.stored
    match node:
        case Affine4():
            constants = (node.scale,) if node.minimum is None else (node.scale, node.minimum)
            leaves, values = (node.words, *constants), _affine4
        case NF4():
            absmax = node.absmax
            if node.scale is not None:
                absmax = dequantised(absmax, jnp.take(node.scale, jnp.arange(n) // GROUP, axis=-1), node.offset)
            leaves, values = (node.words, absmax), _nf4
        case Int8():
            leaves, values = (node.q, node.scale), _int8
    leaves = (leaves[0], *(leaf.astype(jnp.float32) for leaf in leaves[1:]))
    return _Stored(leaves, tuple(k // leaf.shape[0] for leaf in leaves), values, k, n)


def _affine4(k: int, words, scale, minimum=None):
    codes = _codes(words)
    if minimum is None:
        return (codes - 8).astype(jnp.float32) * _spread(scale, k)
    return codes.astype(jnp.float32) * _spread(scale, k) + _spread(minimum, k)


def _nf4(k: int, words, absmax):
    return _select(_codes(words), TABLE) * _spread(absmax, k)


def _int8(k: int, q, scale):
    return q.astype(jnp.float32) * _spread(scale, k)


def _codes(words):
    """uint32 [k/8, bn] -> int32 [k, bn] of 0 to 15"""
    rows, n = words.shape
    lanes = jnp.broadcast_to(words[:, None, :], (rows, PER_WORD, n))
    shifts = 4 * jax.lax.broadcasted_iota(jnp.uint32, lanes.shape, 1)
    return ((lanes >> shifts) & 15).astype(jnp.int32).reshape(rows * PER_WORD, n)


def _spread(constants, k: int):
    """[k/block, bn] -> [k, bn]"""
    blocks, n = constants.shape
    return jnp.broadcast_to(constants[:, None, :], (blocks, k // blocks, n)).reshape(k, n)


def _select(codes, table):
    """table[codes] without a gather: halves are chosen by the highest bit."""
    if len(table) == 1:
        return jnp.full(codes.shape, table[0], jnp.float32)
    half = len(table) // 2
    return jnp.where((codes & half) != 0, _select(codes, table[half:]), _select(codes, table[:half]))


def _partial(x, leaves, stored: _Stored, k: int):
    values = stored.values(k, *leaves).astype(x.dtype)
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jnp.dot(x, values, preferred_element_type=jnp.float32, precision=precision)


def _depth(step: int, every: int) -> int:
    """Rows of a leaf in a step."""
    return max(1, step // every)


def _on_tpu(x, stored: _Stored, blocks: Blocks, interpret: bool):
    from jax.experimental.pallas import tpu

    steps = stored.k // blocks.k

    def program(x_ref, *refs):
        *leaf_refs, y_ref, sum_ref = refs
        step = pl.program_id(2)

        @pl.when(step == 0)
        def _():
            sum_ref[...] = jnp.zeros_like(sum_ref)

        sum_ref[...] += _partial(x_ref[...], [ref[...] for ref in leaf_refs], stored, blocks.k)

        @pl.when(step == steps - 1)
        def _():
            y_ref[...] = sum_ref[...].astype(y_ref.dtype)

    def leaf_block(every):
        height = _depth(blocks.k, every)
        return pl.BlockSpec((height, blocks.n), lambda i, j, s: (s * blocks.k // every // height, j))

    return pl.pallas_call(
        program,
        out_shape=jax.ShapeDtypeStruct((x.shape[0], stored.n), x.dtype),
        grid=(x.shape[0] // blocks.m, pl.cdiv(stored.n, blocks.n), steps),
        in_specs=[pl.BlockSpec((blocks.m, blocks.k), lambda i, j, s: (i, s)), *map(leaf_block, stored.every)],
        out_specs=pl.BlockSpec((blocks.m, blocks.n), lambda i, j, s: (i, j)),
        scratch_shapes=[tpu.VMEM((blocks.m, blocks.n), jnp.float32)],
        compiler_params=tpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        interpret=interpret,
    )(x, *stored.leaves)


def _on_gpu(x, stored: _Stored, blocks: Blocks, interpret: bool):
    from jax.experimental.pallas import triton

    def program(x_ref, *refs):
        *leaf_refs, y_ref = refs

        def add(step, total):
            start = step * blocks.k
            leaves = [
                ref[pl.ds(start // every, _depth(blocks.k, every)), :] for ref, every in zip(leaf_refs, stored.every, strict=True)
            ]
            return total + _partial(x_ref[:, pl.ds(start, blocks.k)], leaves, stored, blocks.k)

        total = jax.lax.fori_loop(0, stored.k // blocks.k, add, jnp.zeros(y_ref.shape, jnp.float32))
        y_ref[...] = total.astype(y_ref.dtype)

    return pl.pallas_call(
        program,
        out_shape=jax.ShapeDtypeStruct((x.shape[0], stored.n), x.dtype),
        grid=(x.shape[0] // blocks.m, stored.n // blocks.n),
        in_specs=[
            pl.BlockSpec((blocks.m, stored.k), lambda i, j: (i, 0)),
            *(pl.BlockSpec((stored.k // every, blocks.n), lambda i, j: (0, j)) for every in stored.every),
        ],
        out_specs=pl.BlockSpec((blocks.m, blocks.n), lambda i, j: (i, j)),
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
    )(x, *stored.leaves)
