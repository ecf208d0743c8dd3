"""Times products with quantised kernels as decoding makes them, against float32's.

A case is a chain of products with different kernels of one shape, so that none is in a cache: y of one adds to x of the next. All forms of
a case are timed in turns, and medians compared.

    float32    x W by XLA
    plain      dequantised by XLA, then multiplied
    fused      `peftjax.nn.quant.native`
"""

import dataclasses
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.nn.quant import native, quantise
from peftjax.nn.quant.product import plain_product

KINDS = {
    "affine4": {"kind": "affine4"},
    "symmetric4": {"kind": "affine4", "symmetric": True},
    "int8": {"kind": "int8"},
    "int8/32": {"kind": "int8", "block": 32},
    "nf4": {"kind": "nf4"},
    "bfloat16": None,
}
SHAPES = ((576, 1536), (1536, 576), (576, 576), (576, 192), (576, 49152))  # [K, N] of SmolLM2-135M's kernels
FLOATS = 2**24  # weights of a chain, 64 MiB in float32: more than a cache holds


@dataclasses.dataclass(frozen=True)
class Timed:
    """One case: times in microseconds a product, and bytes of one kernel as it is held."""

    kind: str
    k: int
    n: int
    rows: int
    float32: float
    plain: float
    fused: float
    held: int


def time_case(kind: str, k: int, n: int, rows: int, repeats: int = 15) -> Timed:
    """Measures one kind of kernel [k, n] at `rows` rows of x."""
    count = max(1, FLOATS // (k * n))
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((rows, k)), jnp.float32)
    one = rng.standard_normal((k, n)).astype(np.float32)
    dense = [jnp.asarray(one * (1 + i)) for i in range(count)]
    nodes = [weight.astype(jnp.bfloat16) if KINDS[kind] is None else quantise(weight, **KINDS[kind]) for weight in dense]
    plain = _bfloat16_product if KINDS[kind] is None else plain_product
    forms = [(_chain(product), kernels) for product, kernels in ((jnp.dot, dense), (plain, nodes), (native.matvec, nodes))]
    for form, kernels in forms:
        jax.block_until_ready([form(x, kernels) for _ in range(2)])
    times = [[] for _ in forms]
    for _ in range(repeats):
        for (form, kernels), spent in zip(forms, times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(form(x, kernels))
            spent.append((time.perf_counter() - start) / count * 1e6)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(nodes[0]))
    return Timed(kind, k, n, rows, *map(statistics.median, times), held)


def _bfloat16_product(x, weight):
    return (x.astype(weight.dtype) @ weight).astype(x.dtype)


def _chain(product):
    def run(x, kernels):
        for kernel in kernels:
            y = product(x, kernel)
            x = x + 1e-6 * y[:, :1]
        return y

    return jax.jit(run)


def as_table(rows: list[Timed]) -> str:
    """Lines of a Markdown table, fastest form against float32 last."""
    lines = ["| kind | K x N | rows | float32 µs | plain µs | fused µs | fused GB/s held | float32 / fused |", "|---" * 8 + "|"]
    lines += [
        f"| {r.kind} | {r.k} x {r.n} | {r.rows} | {r.float32:.0f} | {r.plain:.0f} | {r.fused:.0f} | {r.held / r.fused / 1e3:.1f} "
        f"| {r.float32 / r.fused:.2f} |"
        for r in rows
    ]
    return "\n".join(lines)
