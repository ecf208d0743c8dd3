"""How likely a model finds given continuations, token by token, in batches of a few static shapes.

    log p(y | x) = sum_t log softmax(logits(x, y_1 ... y_t-1))[y_t]                  nats

Rows are sorted by length and padded on the right to one of a few lengths; rows that are the same (the choices of a question that differ
in their last token) are computed once. The head is applied at the continuation's positions only, some at a time.

Axes: B rows, T tokens, D width, Q scored positions.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.models.decoder import Decoder

SHORTEST = 32  # tokens a row is padded to at least
POSITIONS = 64, 512  # scored positions: padded to at least the first; at most the second at a time, whose logits are held at once

Pair = tuple[Sequence[int], Sequence[int]]


def log_likelihoods(
    model: Decoder, params: Any, pairs: Sequence[Pair], *, batch_size: int = 8, max_length: int | None = None, pad_id: int = 0,
    on_batch: Callable[[dict[int, tuple[float, bool]]], None] | None = None,
) -> list[tuple[float, bool]]:
    """For each (context ids, continuation ids): the summed log-probability of the continuation in nats, and whether each of its tokens
    is the likeliest one.

    Args:
        batch_size: rows a batch.
        max_length: tokens that the model may see, by default `model.config.max_length`; longer contexts are cut on the left.
        on_batch: is given the answers of each batch by number of the pair, the longest rows first.

    Raises:
        ValueError: an empty context or continuation, or a continuation of more than `max_length` tokens.
    """
    limit = max_length or model.config.max_length
    rows: dict[tuple[int, ...], list[int]] = {}
    for number, (context, continuation) in enumerate(pairs):
        if not len(context) or not 0 < len(continuation) <= limit:
            raise ValueError(
                f"pair {number} has {len(context)} tokens of context and {len(continuation)} of continuation; "
                f"there must be at least one of each, and at most {limit} of continuation"
            )
        rows.setdefault(tuple([*context, *continuation][-(limit + 1):-1]), []).append(number)
    order = sorted(rows, key=lambda row: (-len(row), row))
    answers: dict[int, tuple[float, bool]] = {}
    for start in range(0, len(order), batch_size):
        batch = order[start:start + batch_size]
        count = batch_size if len(order) > batch_size else len(batch)
        found = _batch(model, params, [(row, {i: pairs[i][1] for i in rows[row]}) for row in batch], count, limit, pad_id)
        answers |= found
        if on_batch is not None:
            on_batch(found)
    return [answers[number] for number in range(len(pairs))]


def rolling_windows(ids: Sequence[int], prefix: int, max_length: int) -> list[tuple[list[int], list[int]]]:
    """(context, continuation) windows that score every token of a text once, with as much context as fits: `prefix` stands before the
    first token, and the last window reaches back to be full. No tokens, no windows."""
    ids = list(ids)
    windows = [([prefix], ids[:max_length])] if ids else []
    for start in range(max_length, len(ids), max_length):
        stop = min(start + max_length, len(ids))
        windows.append((ids[stop - max_length - 1:start], ids[start:stop]))
    return windows


def bucket(size: int, least: int) -> int:
    """The smallest of least times 1, 1.5, 2, 3, 4, 6, 8, ... that is no less than `size`: few shapes, at most half of one wasted."""
    step = least
    while step < size:
        if 3 * step // 2 >= size:
            return 3 * step // 2
        step *= 2
    return step


def _batch(model, params, batch, count: int, limit: int, pad_id: int) -> dict[int, tuple[float, bool]]:
    """Answers of the rows [(input ids, {number of the pair: its continuation})], filled up to `count` rows."""
    length = min(bucket(max(len(row) for row, _ in batch), SHORTEST), max(limit, SHORTEST))
    tokens, segments = np.full((count, length), pad_id, np.int32), np.zeros((count, length), np.int32)
    places, targets, spans = [], [], []
    for line, (row, wanted) in enumerate(batch):
        tokens[line, :len(row)], segments[line, :len(row)] = row, 1
        for number, continuation in wanted.items():
            stop = line * length + len(row)
            spans.append((number, len(places), len(continuation)))
            places += range(stop - len(continuation), stop)
            targets += continuation
    slots = bucket(len(places), POSITIONS[0])
    slots = -(-slots // POSITIONS[1]) * POSITIONS[1] if slots > POSITIONS[1] else slots
    filling = [0] * (slots - len(places))
    log_p, likeliest = jax.device_get(
        _score(model, params, tokens, segments, np.array(places + filling, np.int32), np.array(targets + filling, np.int32))
    )
    return {
        number: (float(log_p[start:start + size].sum(dtype=np.float64)), bool(likeliest[start:start + size].all()))
        for number, start, size in spans
    }


@functools.partial(jax.jit, static_argnames="model")
def _score(model: Decoder, params: Any, tokens, segments, places, targets):
    """Log-probability [Q] float32 of `targets` [Q] after the tokens at `places` [Q] of the flattened rows; whether they are likeliest."""
    hidden, _ = model.apply({"params": params}, tokens, segments=segments, method="hidden")
    flat = hidden.reshape(-1, hidden.shape[-1])

    def some(asked):
        place, target = asked
        logits = model.apply({"params": params}, flat[place], method="logits").astype(jnp.float32)
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), target[:, None], axis=-1)[:, 0]
        return log_p, jnp.argmax(logits, axis=-1) == target

    at_once = min(places.size, POSITIONS[1])
    log_p, likeliest = jax.lax.map(some, (places.reshape(-1, at_once), targets.reshape(-1, at_once)))
    return log_p.reshape(-1), likeliest.reshape(-1)
