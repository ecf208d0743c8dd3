"""How fast the training step is, and against what: tokens a second, fraction of the machine's own GEMM rate, peak memory.

Every case runs in a process of its own, so that its peak memory is its own. All positions carry loss (dense, equal work for every method).

FLOPs of a step are counted from the shapes: 2·in·out a token for each product with a kernel; once forward and once backward for frozen
kernels (the backward product with the input of a frozen embedding does not exist), three times for trained factors; 4·T·H·K a token and
layer forward for attention (full square, as computed), twice that backward. What a step recomputes is not counted.
"""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.models.config import DecoderConfig
from peftjax.models.decoder import Decoder, cut
from peftjax.nn.tree import flatten
from peftjax.peft import attach, cut_points, lora, partition, pfeiffer
from peftjax.peft.partition import size
from peftjax.peft.roles import roles
from peftjax.train.config import default_config
from peftjax.train.memory import peak_memory_bytes
from peftjax.train.optimiser import make_optimiser
from peftjax.train.step import make_step, new_state

METHODS = {"lora": lora(rank=16, targets="all-linear"), "pfeiffer": pfeiffer(size=140)}
SHAPES = ((4, 256), (8, 128), (1, 1024))


def gemm_rate(size_: int = 2048, repeats: int = 7) -> float:
    """FLOP/s of a square float32 matrix product of this size: the median of several."""
    x = jax.random.normal(jax.random.key(0), (size_, size_), jnp.float32)
    product = jax.jit(lambda a: a @ a)
    product(x).block_until_ready()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        product(x).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2 * size_**3 / float(np.median(times))


def step_flops(config: DecoderConfig, trainable: Any, batch: int, length: int) -> float:
    """FLOPs of one step that trains `trainable` beside the frozen base, all positions carrying loss; see the module."""
    c, tokens = config, batch * length
    block = c.width * c.head_size * (2 * c.heads + 2 * c.kv_heads) + 3 * c.width * c.ff
    frozen = 2 * (c.layers * block + c.width * c.vocab_size) * tokens
    attention = 4 * length * c.heads * c.head_size * c.layers * tokens
    trained = sum(2 * leaf.size * tokens for leaf in flatten(trainable).values() if leaf.ndim >= 3)
    return 2 * frozen + 3 * attention + 3 * trained


def dense_batch(vocab_size: int, batch: int, length: int, seed: int = 0) -> Any:
    """Random tokens in which every position but the last carries loss."""
    from peftjax.data.packing import Batch

    tokens = np.random.default_rng(seed).integers(0, vocab_size, (batch, length + 1)).astype(np.int32)
    grid = np.broadcast_to(np.arange(length, dtype=np.int32), (batch, length)).copy()
    return Batch(
        tokens=tokens[:, :-1], segments=np.ones((batch, length), np.int32), positions=grid, loss_positions=grid,
        targets=tokens[:, 1:], weights=np.ones((batch, length), np.float32),
    )


@dataclasses.dataclass(frozen=True)
class Measured:
    """One case: times are seconds a step, memory bytes."""

    method: str
    batch: int
    length: int
    trainable: int
    step_s: float
    tokens_per_s: float
    gflops: float
    gemm_gflops: float
    first_step_s: float
    temporary_bytes: int
    peak_bytes: int


def measure(base: Any, method: str, batch: int, length: int, steps: int = 5, remat: str = "dots") -> Measured:
    """Runs the training step of one case: one compilation, one step to warm up, then `steps` timed ones.

    Args:
        base: a loaded base (`peftjax.interop.base.load_base`).
        method: a name in `METHODS`.
    """
    methods = [METHODS[method]]
    segments = cut_points(methods, base.config.layers)
    params = attach(cut(base.params, base.config, segments), methods, jax.random.key(0))
    trainable, frozen = partition(params)
    # The step donates its state; what is trained here must not share a buffer with the base.
    optimiser = make_optimiser(default_config().optimizer, 100, trainable, roles(params))
    model = Decoder(base.config, segments=segments, remat=remat)
    state, data = new_state(trainable, optimiser, jax.random.key(0)), dense_batch(base.config.vocab_size, batch, length)
    start = time.perf_counter()
    step = jax.jit(make_step(model, optimiser), donate_argnums=0).lower(state, frozen, data).compile()
    temporary = step.memory_analysis().temp_size_in_bytes
    state, metrics = step(state, frozen, data)
    jax.block_until_ready(metrics)
    first = time.perf_counter() - start
    times, rates = [], []
    for _ in range(steps):
        rates.append(gemm_rate(repeats=3))  # interleaved: the machine's speed drifts
        start = time.perf_counter()
        state, metrics = step(state, frozen, data)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - start)
    seconds = float(np.median(times))
    return Measured(
        method, batch, length, size(trainable)[0], seconds, batch * length / seconds,
        step_flops(base.config, trainable, batch, length) / seconds / 1e9, float(np.median(rates)) / 1e9, first, temporary,
        peak_memory_bytes()["peak_rss_bytes"],
    )


def as_table(rows: list[Measured]) -> str:
    """The cases as a Markdown table."""
    lines = [
        "| method | trainable | batch x length | s/step | tokens/s | GFLOP/s | of GEMM rate | temporaries MB | peak RSS MB |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for r in rows:
        lines.append(
            f"| {r.method} | {r.trainable:,} | {r.batch} x {r.length} | {r.step_s:.2f} | {r.tokens_per_s:.0f} | {r.gflops:.0f} "
            f"| {100 * r.gflops / r.gemm_gflops:.0f} % of {r.gemm_gflops:.0f} | {r.temporary_bytes / 1e6:.0f} | {r.peak_bytes / 1e6:.0f} |"
        )
    return "\n".join(lines)
