"""How fast the training step is, and against what: tokens a second, fraction of the machine's own GEMM rate, peak memory.

The step is the one that a run takes (`prepare_model`, `compile_step`), on dense batches: all positions carry loss, equal work for every
method and every library.

FLOPs of a step are those that the mathematics asks for, counted from the shapes, 2·in·out a token for each product with a kernel:

    frozen kernels, head     forward, and backward to the input: 2 times (no gradient of the kernel; the lookup has no product at all)
    trained factors          forward, backward to the input and to the factor: 3 times
    attention                2·(T+1)·H·K a token and layer forward: what causality leaves of the square; 3 times
    DoRA's norms             2·R·in·out a kernel and step, for A·W, since ‖W + s·BA‖² is of W, A·W and A·Aᵀ; once, as norms are not
                             differentiated (2402.09353, 2024)

What a step recomputes, and the half of the attention scores that a program computes and masks, is not counted: such a program is no faster
for it. Counted though not needed are backward products of the lowest layer, at most 1/L of the layers'.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from peftjax.data.packing import Batch
from peftjax.interop.base import Base
from peftjax.models.config import DecoderConfig
from peftjax.nn.tree import flatten
from peftjax.peft import houlsby, lora, pfeiffer
from peftjax.peft.partition import size
from peftjax.train.config import default_config, methods
from peftjax.train.parallel import compile_step
from peftjax.train.prepare import prepare_model
from peftjax.train.sharding import make_mesh

METHODS = {
    "lora": lora(rank=16, targets="all-linear"),
    "dora": lora(rank=16, targets="all-linear", dora=True),
    "pfeiffer": pfeiffer(reduction_factor=4),
    "houlsby": houlsby(reduction_factor=8),
}
SHAPES = ((4, 256), (8, 128), (1, 1024))


def step_flops(config: DecoderConfig, trainable: Any, batch: int, length: int) -> float:
    """FLOPs of one step that trains `trainable` beside the frozen base, all positions carrying loss; see the module."""
    c, tokens, flat = config, batch * length, flatten(trainable)
    block = c.width * c.head_size * (2 * c.heads + 2 * c.kv_heads) + (3 if c.gated else 2) * c.width * c.ff
    frozen = 2 * (c.layers * block + c.width * c.vocab_size) * tokens
    attention = 2 * (length + 1) * c.heads * c.head_size * c.layers * tokens
    trained = sum(2 * leaf.size * tokens for leaf in flat.values() if leaf.ndim >= 3)
    return 2 * frozen + 3 * attention + 3 * trained + _norm_flops(flat)


def _norm_flops(flat: dict[str, Any]) -> float:
    """Of DoRA's norms: A [L, R, in] by the frozen kernel [L, in, out], where there is a magnitude beside the factors."""
    total = 0
    for path in flat:
        owner, _, leaf = path.rpartition("/")
        if leaf == "magnitude":
            a, b = flat[f"{owner}/a"], flat[f"{owner}/b"]
            total += 2 * a.size * b.shape[-1]
    return total


def dense_batch(vocab_size: int, batch: int, length: int, seed: int = 0) -> Batch:
    """Random tokens in which every position carries loss; scripts/peers/bench_train_peer.py draws the same."""
    tokens = np.random.default_rng(seed).integers(0, vocab_size, (batch, length + 1)).astype(np.int32)
    grid = np.broadcast_to(np.arange(length, dtype=np.int32), (batch, length)).copy()
    return Batch(
        tokens=tokens[:, :-1], segments=np.ones((batch, length), np.int32), positions=grid, loss_positions=grid,
        targets=tokens[:, 1:], weights=np.ones((batch, length), np.float32),
    )


@dataclasses.dataclass(frozen=True)
class Begun:
    """A case that has taken its first step.

    Attributes:
        trainable: parameters.
        flops: of a step.
        temporary_bytes: what the compiled step holds beside its arguments and results.
        first_step_s: compilation and first step.
        loss: of the first step, in nats a token.
    """

    trainable: int
    flops: float
    temporary_bytes: int
    first_step_s: float
    loss: float


def begin(base: Base, method: Any, batch: int, length: int, remat: str = "auto") -> tuple[Begun, Callable[[], float]]:
    """As `begin_compiled`, without the program."""
    return begin_compiled(base, method, batch, length, remat)[:2]


def begin_compiled(
    base: Base, method: Any, batch: int, length: int, remat: str = "auto"
) -> tuple[Begun, Callable[[], float], jax.stages.Compiled]:
    """Compiles the step of one case and takes the first one; the function takes one more each time and gives its seconds.

    Args:
        base: a loaded decoder.
        method: a method, such as the values of `METHODS`.
        remat: as `config.model.remat`.
    """
    config = default_config()
    config.peft, config.model.remat, config.train.batch_size = methods(method), remat, batch
    mesh = make_mesh()
    prepared = prepare_model(config, base, mesh)
    step, place = compile_step(config, prepared, mesh)
    state, frozen, data = prepared.state, prepared.frozen, place(dense_batch(base.config.vocab_size, batch, length))
    trainable, flops = size(state.trainable)[0], step_flops(base.config, state.trainable, batch, length)
    start = time.perf_counter()
    compiled = step.lower(state, frozen, data).compile()
    state, metrics = jax.block_until_ready(compiled(state, frozen, data))
    begun = Begun(
        trainable, flops, compiled.memory_analysis().temp_size_in_bytes, time.perf_counter() - start, float(metrics["loss"])
    )
    held = [state]

    def timed() -> float:
        start = time.perf_counter()
        held.append(jax.block_until_ready(compiled(held.pop(), frozen, data))[0])
        return time.perf_counter() - start

    return begun, timed, compiled
