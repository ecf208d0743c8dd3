"""What is timed of an arm: a prompt read, a token made, or a step trained, each a compiled program on data that lie ready.

    forward BxT   prompts of T tokens for B rows, and the logits of each row's last token: what a prompt costs before its first answer
    decode  B     one token more for each of B rows, behind CONTEXT cached ones
    train   BxT   a training step in which every position carries loss (`peftjax.train.bench`)

A call gives the seconds of one of these. Where one is too short for the clock, a call runs several and divides, and runs one before the
clock starts: arms share the base's arrays, which lie in the processor's cache from the arm before, where a merged one's do not.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.hints import did_you_mean
from peftjax.interop.base import Base
from peftjax.models.attention import empty_cache
from peftjax.models.decoder import Decoder
from peftjax.models.decoding import STEPS, State, bucket, decode
from peftjax.models.sampling import Sampling, knobs
from peftjax.nn.context import PROMPT, virtual_tokens
from peftjax.study.arms import Arm
from peftjax.train.bench import begin_compiled

KINDS = ("forward", "decode", "train")
CONTEXT = 128  # cached tokens that a decoding step looks back on
CALL_S = 5e-3  # a call takes at least as long as this
MOST = 64  # forward passes in a call


@dataclasses.dataclass(frozen=True)
class Case:
    """What is timed: kind, one of KINDS, rows of a batch, and tokens of a row (1 for decoding)."""

    kind: str
    batch: int
    length: int = 1

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"no case is called {self.kind!r}{did_you_mean(self.kind, KINDS)}; there are {', '.join(KINDS)}")
        if self.batch < 1 or self.length < 1:
            raise ValueError(f"{self.kind} of {self.batch} x {self.length} tokens; both must be at least 1")

    def __str__(self):
        return f"{self.kind} {self.batch}" if self.kind == "decode" else f"{self.kind} {self.batch}x{self.length}"


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled case of an arm. call: runs it, gives seconds; temporary_bytes: what it holds beside arguments and results;
    argument_bytes: of what it is given; compile_s: seconds of its compilation."""

    call: Callable[[], float]
    temporary_bytes: int
    argument_bytes: int
    compile_s: float




def forward(model: Decoder, params: Any, case: Case) -> Program:
    """Reads prompts."""

    def run(params, tokens):
        hidden, _ = model.apply({"params": params}, tokens, method="hidden")
        return model.apply({"params": params}, hidden[:, -1:], method="logits")

    tokens = jnp.asarray(np.random.default_rng(0).integers(0, model.config.vocab_size, (case.batch, case.length)), jnp.int32)
    start = time.perf_counter()
    compiled = jax.jit(run).lower(params, tokens).compile()
    compile_s = time.perf_counter() - start
    count = _several(lambda: jax.block_until_ready(compiled(params, tokens)), MOST)

    def call() -> float:
        if count > 1:
            jax.block_until_ready(compiled(params, tokens))
        start = time.perf_counter()
        for _ in range(count):
            jax.block_until_ready(compiled(params, tokens))
        return (time.perf_counter() - start) / count

    return _program(call, compiled, compile_s)


def decoding(model: Decoder, params: Any, case: Case) -> Program:
    """Makes tokens, greedily, with the program that generation runs. The cache holds zeros in the place of earlier tokens: attention
    reads all its slots whatever is in them. It is set back between calls."""
    first = virtual_tokens(params.get(PROMPT))
    cache = empty_cache(model.config, case.batch, bucket(first + CONTEXT + STEPS), model.dtype)
    cache = jax.jit(lambda params, cache: model.apply({"params": params}, cache, method="begin"))(params, cache)
    held = jnp.broadcast_to((jnp.arange(cache.segments.shape[1]) < first + CONTEXT).astype(jnp.int32)[None], cache.segments.shape)
    begun = {"segments": held, "used": jnp.int32(first + CONTEXT)}

    def again(state: State) -> State:
        """The state with its tokens forgotten; copies, since the program overwrites what it is given."""
        return state.replace(cache=state.cache.replace(**jax.tree.map(jnp.copy, begun)), made=jnp.int32(1), done=jnp.zeros_like(state.done))

    done, stop_ids = np.zeros(case.batch, bool), np.array([-1], np.int32)  # no token is -1: nothing ends
    values, filters = knobs([Sampling()] * case.batch, range(case.batch))
    state = again(State(jnp.ones(case.batch, jnp.int32), cache, jnp.int32(1), jnp.asarray(done), None))
    start = time.perf_counter()
    compiled = decode.lower(model, params, state, done, stop_ids, values, np.int32(1), filters=filters).compile()
    compile_s, kept = time.perf_counter() - start, [state]

    def run(steps: int) -> None:
        kept.append(jax.block_until_ready(compiled(params, kept.pop(), done, stop_ids, values, np.int32(steps)))[0])

    def reset() -> None:
        kept.append(jax.block_until_ready(again(kept.pop())))

    def one() -> None:
        reset()
        run(1)

    steps = _several(one, STEPS)

    def call() -> float:
        if steps > 1:
            one()
        reset()
        start = time.perf_counter()
        run(steps)
        return (time.perf_counter() - start) / steps

    return _program(call, compiled, compile_s)


def training(base: Base, arm: Arm, case: Case) -> Program:
    """Takes training steps on a base (as it was loaded), as a run does."""
    start = time.perf_counter()
    _, step, compiled = begin_compiled(base, list(arm.methods), case.batch, case.length)
    return _program(step, compiled, time.perf_counter() - start)


def _program(call: Callable[[], float], compiled: jax.stages.Compiled, compile_s: float) -> Program:
    memory = compiled.memory_analysis()
    return Program(call, memory.temp_size_in_bytes, memory.argument_size_in_bytes, compile_s)


def _several(run: Callable[[], None], most: int) -> int:
    """How many runs take CALL_S, at most `most`. The first of two warms up; one that takes long enough with it needs no second."""
    for _ in range(2):
        start = time.perf_counter()
        run()
        took = max(time.perf_counter() - start, 1e-9)
        if took > 20 * CALL_S:
            break
    return max(1, min(most, math.ceil(CALL_S / took)))
