"""Text from a decoder: prefill, then one token at a time with the key/value cache, everything of static shape.

    generate(model, params, prompts, tokenizer, max_new=64)          -> texts
    stream(model, params, prompt_ids, eos_id, max_new=64)            -> token ids as they come

Prompts of a batch are padded on the left to a common bucket, so that all rows write the same cache slot at each step.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.models.attention import Cache, empty_cache
from peftjax.models.config import DecoderConfig
from peftjax.models.decoder import Decoder

BUCKET = 32


def token_keys(seed: int, max_new: int) -> jax.Array:
    """A key for each new token.

    Raises:
        ValueError: no token may be made.
    """
    if max_new < 1:
        raise ValueError(f"max_new is {max_new}; at least one token is made")
    return jax.random.split(jax.random.key(seed), max_new)


def pad_left(prompts: Sequence[Sequence[int]], pad_id: int, bucket: int = BUCKET) -> tuple[np.ndarray, np.ndarray]:
    """Prompts of unlike length -> tokens and segments [B, T] int32, T a multiple of `bucket`; segments are 0 on padding.

    Raises:
        ValueError: an empty prompt, which has no last token to go on from.
    """
    if any(len(prompt) == 0 for prompt in prompts):
        raise ValueError("an empty prompt has no last token to go on from; begin with the tokenizer's bos token")
    length = -(-max(len(prompt) for prompt in prompts) // bucket) * bucket
    tokens = np.full((len(prompts), length), pad_id, np.int32)
    segments = np.zeros((len(prompts), length), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, length - len(prompt):] = prompt
        segments[row, length - len(prompt):] = 1
    return tokens, segments


def check_length(config: DecoderConfig, prompts: Sequence[Sequence[int]], max_new: int) -> None:
    """Learned positions end somewhere; beyond them there is no row to read.

    Raises:
        ValueError: the longest prompt and `max_new` tokens are more than the base has positions for.
    """
    longest = max(len(prompt) for prompt in prompts)
    if config.learned_positions and longest + max_new > config.max_length:
        raise ValueError(f"{longest} tokens and {max_new} new ones are more than the {config.max_length} positions that this base has")


def sample(logits: jax.Array, key: jax.Array, temperature: float) -> jax.Array:
    """logits [B, V] -> ids [B]: the most likely at temperature 0, else a draw from softmax(logits / temperature)."""
    if temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return jax.random.categorical(key, logits.astype(jnp.float32) / temperature).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames=("model", "slots", "temperature", "vocab"))
def prefill(
    model: Decoder, params: Any, tokens, segments, key, *, slots: int, temperature: float = 0.0, vocab: int | None = None
) -> tuple[jax.Array, Cache]:
    """Reads prompts [B, T] into a new cache of `slots`; returns the first new ids [B], all below `vocab`, and the cache."""
    cache = empty_cache(model.config, tokens.shape[0], slots, model.dtype)
    hidden, cache = model.apply({"params": params}, tokens, segments=segments, cache=cache, method="hidden")
    logits = model.apply({"params": params}, hidden[:, -1], method="logits")
    return sample(logits[:, :vocab], key, temperature), cache


@functools.partial(jax.jit, static_argnames=("model", "temperature", "vocab"), donate_argnames=("cache",))
def decode(
    model: Decoder, params: Any, ids, cache: Cache, key, *, temperature: float = 0.0, vocab: int | None = None
) -> tuple[jax.Array, Cache]:
    """One step: the last ids [B] -> the next ids [B] and the cache with one slot more in use."""
    ones = jnp.ones((ids.shape[0], 1), jnp.int32)
    hidden, cache = model.apply({"params": params}, ids[:, None], segments=ones, cache=cache, method="hidden")
    logits = model.apply({"params": params}, hidden[:, -1], method="logits")
    return sample(logits[:, :vocab], key, temperature), cache


def generate_ids(
    model: Decoder, params: Any, prompts: Sequence[Sequence[int]], eos_id: int, *, max_new: int, pad_id: int = 0,
    temperature: float = 0.0, seed: int = 0, batch_size: int = 64, vocab: int | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """New ids for each prompt, without the end token; rows are decoded `batch_size` at a time, prompts of like length together.

    `vocab` is the number of tokens the tokenizer knows: many bases have more rows in their embedding, and those are never chosen.
    `on_batch` is told how many rows are done, after each batch.
    """
    how = {"temperature": temperature, "vocab": vocab}
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    out: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), batch_size):
        rows = order[start:start + batch_size]
        batch = [prompts[i] for i in rows]
        batch += [batch[-1]] * (batch_size - len(rows) if len(order) > batch_size else 0)  # one compiled shape
        for i, ids in zip(rows, _generate_batch(model, params, batch, eos_id, max_new, pad_id, seed + start, how), strict=False):
            out[i] = ids
        if on_batch is not None:
            on_batch(start + len(rows))
    return out


def _generate_batch(model, params, prompts, eos_id, max_new, pad_id, seed, how) -> list[list[int]]:
    check_length(model.config, prompts, max_new)
    tokens, segments = pad_left(prompts, pad_id)
    keys = token_keys(seed, max_new)
    ids, cache = prefill(model, params, tokens, segments, keys[0], slots=tokens.shape[1] + max_new, **how)
    columns, done = [np.asarray(ids)], np.asarray(ids) == eos_id
    for key in keys[1:]:
        if done.all():
            break
        ids, cache = decode(model, params, ids, cache, key, **how)
        columns.append(np.asarray(ids))
        done |= columns[-1] == eos_id
    rows = np.stack(columns, axis=1)
    return [_until(row.tolist(), eos_id) for row in rows]


def _until(ids: list[int], eos_id: int) -> list[int]:
    return ids[: ids.index(eos_id)] if eos_id in ids else ids


def generate(model: Decoder, params: Any, prompts: Sequence[str], tokenizer, *, max_new: int = 64, **options) -> list[str]:
    """Texts that follow `prompts`, greedily unless `temperature` is given; see `generate_ids`."""
    first = [tokenizer.bos_id] if tokenizer.bos_first else []
    prompt_ids = [first + ids for ids in tokenizer.encode_batch(list(prompts))]
    new = generate_ids(
        model, params, prompt_ids, tokenizer.eos_id, max_new=max_new, pad_id=tokenizer.pad_id, vocab=tokenizer.vocab_size, **options
    )
    return [tokenizer.decode(row) for row in new]


def stream(
    model: Decoder, params: Any, prompt: Sequence[int], eos_id: int, *, max_new: int, temperature: float = 0.0, seed: int = 0,
    vocab: int | None = None,
) -> Iterator[int]:
    """New ids after one prompt, as they come, until the end token (not given) or `max_new` of them."""
    check_length(model.config, [prompt], max_new)
    tokens, segments = pad_left([prompt], 0)
    keys, how = token_keys(seed, max_new), {"temperature": temperature, "vocab": vocab}
    ids, cache = prefill(model, params, tokens, segments, keys[0], slots=tokens.shape[1] + max_new, **how)
    for key in [*keys[1:], None]:
        token = int(ids[0])
        if token == eos_id:
            return
        yield token
        if key is not None:
            ids, cache = decode(model, params, ids, cache, key, **how)
