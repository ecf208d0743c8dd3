"""How the next token is chosen, inside the compiled step.

    logits --repetition penalty--> --/ temperature--> --top-k--> --top-p--> --min-p--> draw, or the likeliest at temperature 0

| filter | keeps | source |
|---|---|---|
| repetition penalty r | all; the logit of a token seen before is divided by r, or multiplied where negative | CTRL (1909.05858, 2019) |
| top-k | tokens no less likely than the k-th | Fan et al. (1805.04833, 2018) |
| top-p | tokens with less than p of the mass strictly above them | nucleus sampling (1904.09751, 2019) |
| min-p | tokens at least min_p times as likely as the likeliest | 2407.01082, 2024 |

Order and results are those of Hugging Face transformers, but that tokens of one probability stay or go together, and that padding is
never "seen". No filter sorts: its threshold is found by halving the 32 bits of a float, 32 sums over the vocabulary (2.5 ms for 8 rows
of 49,152 on two cores, where a sort takes 80 ms).

Numbers are arrays [B], one for each row, so that other numbers are no other program; only which filters there are is static. A draw is a
function of the row's seed, its number and the index of the token, so that it does not matter what else is in the batch.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct


@dataclasses.dataclass(frozen=True)
class Sampling:
    """What a person asks for.

    Attributes:
        temperature: logits are divided by it; 0 takes the likeliest token.
        top_k: tokens to draw from at most; 0 is all.
        top_p: mass to draw from, 0 to 1; 1 is all.
        min_p: least probability, as a part of the likeliest token's; 0 is all.
        repetition_penalty: of tokens of the prompt and the answer so far; 1 is none. Acts at temperature 0 too.
        seed: of the draws, 0 to 2^32 - 1.

    Raises:
        ValueError: a number out of range, or a filter of draws at temperature 0, where nothing is drawn.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature is {self.temperature}; it is 0 (the likeliest token) or a positive number")
        if self.top_k < 0 or self.top_k != int(self.top_k):
            raise ValueError(f"top_k is {self.top_k}; it is a number of tokens, or 0 for all")
        for name in ("top_p", "min_p"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is a part of one, 0 to 1")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise ValueError(f"repetition_penalty is {self.repetition_penalty}; it is a positive number, 1 for none")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}; it is 0 to 4294967295")
        idle = [f"{name}={getattr(self, name)}" for name, none in NEUTRAL.items() if getattr(self, name) != none]
        if self.temperature == 0 and idle:
            raise ValueError(
                f"{', '.join(idle)} chooses among draws, but at temperature 0 the likeliest token is taken and nothing is drawn; "
                "give a temperature too (1.0 draws as the model says)"
            )


NEUTRAL = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}  # filters of draws that let everything pass


class Filters(NamedTuple):
    """Which parts of the choice a compiled program has: each costs time in every row, whether the row asks for it or not."""

    draws: bool
    top_k: bool
    top_p: bool
    min_p: bool
    repetition: bool


@struct.dataclass
class Knobs:
    """The numbers of `Sampling` for each row: float32 [B], but top_k int32 [B], and the rows' keys [B]."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    repetition: jax.Array
    keys: jax.Array


def knobs(samplings: Sequence[Sampling], numbers: Sequence[int]) -> tuple[Knobs, Filters]:
    """Arrays for rows with these settings and these numbers (rows of one seed differ by their numbers), and the filters they need."""
    def column(name, dtype=np.float32):
        return np.array([getattr(sampling, name) for sampling in samplings], dtype)

    top_k = column("top_k", np.int32)
    keys = jax.vmap(lambda seed, number: jax.random.fold_in(jax.random.key(seed), number))(
        column("seed", np.uint32), np.asarray(numbers, np.uint32)
    )
    values = Knobs(
        column("temperature"), np.where(top_k == 0, np.iinfo(np.int32).max, top_k), column("top_p"), column("min_p"),
        column("repetition_penalty"), keys,
    )
    on = {name: any(getattr(sampling, name) != none for sampling in samplings) for name, none in NEUTRAL.items()}
    return values, Filters(bool(values.temperature.any()), **on, repetition=bool((values.repetition != 1).any()))


def choose(logits: jax.Array, knobs: Knobs, filters: Filters, index: jax.Array, seen: jax.Array | None) -> jax.Array:
    """The next ids, int32 [B].

    Args:
        logits: [B, V].
        index: int32 scalar, how many tokens have been chosen before this one.
        seen: bool [B, V], tokens of the prompt and the answer so far; None without a repetition penalty.
    """
    scores = logits.astype(jnp.float32)
    if filters.repetition:
        by = _rows(knobs.repetition, scores)
        scores = jnp.where(seen, jnp.where(scores < 0, scores * by, scores / by), scores)
    if not filters.draws:
        return likeliest(scores)
    drawn = draw(filtered(scores, knobs, filters), jax.vmap(jax.random.fold_in, (0, None))(knobs.keys, index))
    return jnp.where(knobs.temperature > 0, drawn, likeliest(scores))


def filtered(scores: jax.Array, knobs: Knobs, filters: Filters) -> jax.Array:
    """Scores [B, V] divided by the temperature, -inf where a filter takes a token out; the likeliest always stays.

    A row of temperature 0 is divided by 1: it is not drawn from.
    """
    temperature = jnp.where(knobs.temperature > 0, knobs.temperature, 1.0)
    scores = scores / _rows(temperature, scores)
    if filters.top_k:
        count = jnp.minimum(knobs.top_k, scores.shape[-1])
        scores = _at_least(scores, kth_largest(scores, count))
    if filters.top_p:
        scores = _at_least(scores, nucleus(scores, knobs.top_p))
    if filters.min_p:
        scores = _at_least(scores, jnp.max(scores, axis=-1) + jnp.log(knobs.min_p))
    return scores


def likeliest(scores: jax.Array) -> jax.Array:
    """scores [B, V] -> the first of the largest, int32 [B]."""
    return jnp.argmax(scores, axis=-1).astype(jnp.int32)


def draw(scores: jax.Array, keys: jax.Array) -> jax.Array:
    """One draw from softmax(scores [B, V]) for each key [B], int32 [B]; never a token of -inf.

    One uniform number is looked up in the cumulative distribution, which costs a third of a Gumbel number for each token.
    """
    weights = jax.nn.softmax(scores, axis=-1)
    below = jnp.cumsum(weights, axis=-1)
    point = jax.vmap(jax.random.uniform)(keys) * below[:, -1]
    # Rounding may make the sums fall where a weight is zero, and reach the point nowhere.
    hit = (below > _rows(point, below)) & (weights > 0)
    return jnp.where(hit.any(axis=-1), jnp.argmax(hit, axis=-1), jnp.argmax(weights, axis=-1)).astype(jnp.int32)


def kth_largest(scores: jax.Array, count: jax.Array) -> jax.Array:
    """The count-th largest of each row: scores [B, V] float32, count int32 [B] from 1 to V -> [B]."""
    ordered = _ordered(scores)
    enough = lambda bits: jnp.sum(ordered >= _rows(bits, ordered), axis=-1, dtype=jnp.int32) >= count  # noqa: E731
    lowest, highest = (jnp.full(count.shape, bits, jnp.int32) for bits in (-(2**31), 2**31 - 1))
    return jax.lax.bitcast_convert_type(_flip(_last_true(enough, lowest, highest)), jnp.float32)


def nucleus(scores: jax.Array, mass: jax.Array) -> jax.Array:
    """The least score of the smallest set of the likeliest tokens that has `mass` [B] of the probability; -inf for a mass of 1.
    Never above the largest score, so that a token remains."""
    top = jnp.max(scores, axis=-1)
    weights = jnp.exp(scores - _rows(top, scores))  # as parts of the likeliest token's probability: 0 to 1, and in order as bits
    wanted = mass * jnp.sum(weights, axis=-1)

    def enough(bits):
        least = jax.lax.bitcast_convert_type(bits, jnp.float32)
        return jnp.sum(jnp.where(weights >= _rows(least, weights), weights, 0.0), axis=-1) >= wanted

    one = jax.lax.bitcast_convert_type(jnp.ones(mass.shape, jnp.float32), jnp.int32)
    least = jax.lax.bitcast_convert_type(_last_true(enough, jnp.zeros_like(one), one), jnp.float32)
    # Tokens of one weight are the same set whatever their score: the least score among them is the threshold.
    inside = jnp.where(weights >= _rows(least, weights), scores, jnp.inf)
    return jnp.where(mass < 1, jnp.min(inside, axis=-1), -jnp.inf)


def _last_true(holds, lowest, highest):
    """The largest int32 [B] between the bounds for which `holds` ([B] -> bool [B]); it holds up to there and at `lowest`."""

    def halve(_, bounds):
        low, high = bounds
        middle = (low >> 1) + (high >> 1) + ((low | high) & 1)  # the mean, rounded up, without overflow
        found = holds(middle)
        return jnp.where(found, middle, low), jnp.where(found, high, middle - 1)

    return jax.lax.fori_loop(0, 32, halve, (lowest, highest))[0]


def _ordered(scores):
    """float32 -> int32 in the same order."""
    return _flip(jax.lax.bitcast_convert_type(scores, jnp.int32))


def _flip(bits):
    """The bits below the sign flipped where it is set; its own inverse."""
    return jnp.where(bits < 0, bits ^ jnp.int32(2**31 - 1), bits)


def _at_least(scores, threshold):
    return jnp.where(scores >= _rows(threshold, scores), scores, -jnp.inf)


def _rows(value, like):
    """[B] -> [B, V]."""
    return jnp.broadcast_to(value[:, None], like.shape)
