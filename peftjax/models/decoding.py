"""The compiled programs of decoding: prompts are read at once, then tokens follow with the key/value cache, everything of static shape.

    prompts --prefill [B, T]--> first ids, cache of T slots --grown to S slots--> --decode: up to STEPS tokens a call--> ids [STEPS, B]

Few programs are compiled: T and S are lengths of `bucket`, and prompts are padded on the left, so that all rows write the same slot at
each step. `decode` gives its state away to be overwritten (donated), and leaves its loop when all rows are done.

Axes: B batch, T tokens of the prompt, S cache slots, V vocabulary, E tokens that end a row.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from peftjax.models.attention import Cache, empty_cache
from peftjax.models.decoder import Decoder
from peftjax.models.sampling import Filters, Knobs, choose
from peftjax.nn.context import PROMPT, virtual_tokens

STEPS = 16  # tokens a call of `decode` at most
NONE = -1  # stands for a token where a row is done


def bucket(length: int) -> int:
    """The least of 32, 64, 96, 128, 192, 256, 384, 512, ... that is no less than `length`: from 64 on, less than a third is padding."""
    size = 32
    while size < length:
        size *= 2
    return size * 3 // 4 if size > 64 and size * 3 // 4 >= length else size


def pad_left(prompts: Sequence[Sequence[int]], pad_id: int, length: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Prompts of unlike length -> tokens and segments [B, T] int32; T is `length`, or a bucket. Segments are 0 on padding.

    Raises:
        ValueError: an empty prompt, which has no last token to go on from.
    """
    if any(len(prompt) == 0 for prompt in prompts):
        raise ValueError("an empty prompt has no last token to go on from; begin with the tokenizer's bos token")
    length = bucket(max(len(prompt) for prompt in prompts)) if length is None else length
    tokens = np.full((len(prompts), length), pad_id, np.int32)
    segments = np.zeros((len(prompts), length), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, length - len(prompt):] = prompt
        segments[row, length - len(prompt):] = 1
    return tokens, segments


@struct.dataclass
class State:
    """What one step hands to the next.

    last: int32 [B], the tokens chosen last, which the model has not read; cache: what it has read; made: int32 scalar, tokens chosen so
    far; done: bool [B]; seen: bool [B, V], tokens of prompt and answer, or None without a repetition penalty.
    """

    last: jax.Array
    cache: Cache
    made: jax.Array
    done: jax.Array
    seen: jax.Array | None


@functools.partial(jax.jit, static_argnames=("model", "filters", "vocab"))
def prefill(
    model: Decoder, params: Any, tokens, segments, done, stop_ids, knobs: Knobs, *, filters: Filters, vocab: int | None = None
) -> tuple[State, jax.Array]:
    """Reads prompts [B, T] into a new cache of T slots (and those of virtual tokens) and chooses a token for each row that is not `done`,
    bool [B].

    Args:
        stop_ids: int32 [E].
        vocab: ids from here on are never chosen.

    Returns:
        the state, and the new ids, int32 [B], NONE where a row is done.
    """
    rows, length = tokens.shape
    cache = empty_cache(model.config, rows, virtual_tokens(params.get(PROMPT)) + length, model.dtype)
    cache = model.apply({"params": params}, cache, method="begin")
    hidden, cache = model.apply({"params": params}, tokens, segments=segments, cache=cache, method="hidden")
    logits = model.apply({"params": params}, hidden[:, -1:], method="logits")[:, 0, :vocab]
    seen = None
    if filters.repetition:
        seen = jax.vmap(lambda row, held: jnp.zeros(logits.shape[1:], bool).at[row].max(held))(tokens, segments > 0)
    return _next(State(tokens[:, -1], cache, jnp.int32(0), done, seen), logits, stop_ids, knobs, filters)


@functools.partial(jax.jit, static_argnames=("model", "filters", "vocab"), donate_argnames=("state",))
def decode(
    model: Decoder, params: Any, state: State, done, stop_ids, knobs: Knobs, steps, *, filters: Filters, vocab: int | None = None
) -> tuple[State, jax.Array]:
    """Up to `steps` tokens more for each row (an int32 scalar, at most STEPS), fewer when all rows are done before.

    Args:
        done: bool [B], rows that ended for a reason of the caller's. The others are as for `prefill`.

    Returns:
        the state, and the new ids, int32 [STEPS, B], NONE where a row is done. There is no guard on a full cache.
    """

    def going(carry):
        step, state, _ = carry
        return (step < steps) & ~jnp.all(state.done)

    def one(carry):
        step, state, made = carry
        segments = jnp.where(state.done, 0, 1)[:, None]  # the slots of a row that is done are padding, which no token looks at
        hidden, cache = model.apply({"params": params}, state.last[:, None], segments=segments, cache=state.cache, method="hidden")
        logits = model.apply({"params": params}, hidden, method="logits")[:, 0, :vocab]
        state, ids = _next(state.replace(cache=cache), logits, stop_ids, knobs, filters)
        return step + 1, state, made.at[step].set(ids)

    made = jnp.full((STEPS, *state.last.shape), NONE, jnp.int32)
    _, state, made = jax.lax.while_loop(going, one, (jnp.int32(0), state.replace(done=state.done | done), made))
    return state, made


def _next(state: State, logits, stop_ids, knobs: Knobs, filters: Filters) -> tuple[State, jax.Array]:
    """The state with a token more, from logits [B, V], and the ids to give out [B]."""
    chosen = choose(logits, knobs, filters, state.made, state.seen)
    done = state.done | jnp.isin(chosen, stop_ids)
    seen = None if state.seen is None else jax.vmap(lambda row, token: row.at[token].set(True))(state.seen, chosen)
    return State(chosen, state.cache, state.made + 1, done, seen), jnp.where(done, NONE, chosen)


@functools.partial(jax.jit, static_argnames=("model", "slots"))
def grown(model: Decoder, state: State, slots: int) -> State:
    """The state with a cache of `slots` slots, the new ones free."""
    wanted = jax.eval_shape(lambda: empty_cache(model.config, state.last.shape[0], slots, model.dtype))

    def wider(old, new):
        return jax.lax.pad(old, jnp.zeros((), old.dtype), [(0, to - of, 0) for of, to in zip(old.shape, new.shape, strict=True)])

    return state.replace(cache=jax.tree.map(wider, state.cache, wanted.replace(first=state.cache.first)))
