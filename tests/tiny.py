"""Tiny bases and what the tests do with them: every size is its own, so that a mixed-up axis cannot pass unseen."""

import dataclasses
import functools
import hashlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from peftjax.models.config import DecoderConfig
from peftjax.models.decoder import Decoder, abstract_params
from peftjax.nn.tree import flatten, path_of, unflatten_like
from peftjax.peft.partition import partition
from peftjax.train.step import TrainState, make_step, new_state

TINY = DecoderConfig(vocab_size=40, width=16, layers=2, heads=4, kv_heads=2, head_size=6, ff=28)
TIED = dataclasses.replace(TINY, tied=True)
BIASED = dataclasses.replace(TINY, qkv_bias=True, out_bias=True, mlp_bias=True)
SMOL = DecoderConfig(
    vocab_size=49152, width=576, layers=30, heads=9, kv_heads=3, head_size=64, ff=1536, rope_base=100000.0, tied=True
)
BATCH, LENGTH = 3, 5


class Batch(NamedTuple):
    """A training step's batch: tokens, segments, positions [B, T]; loss_positions, targets, weights [B, M]; types, until [B, T] or None."""

    tokens: jax.Array
    segments: jax.Array
    positions: jax.Array
    loss_positions: jax.Array
    targets: jax.Array
    weights: jax.Array
    types: jax.Array | None = None
    until: jax.Array | None = None


@functools.cache
def base(config: DecoderConfig = TINY, segments: tuple[int, ...] = ()) -> dict:
    """Random parameters in which no leaf is constant: kernels keep the size of what passes, norm scales are around one.
    Drawn by numpy: nothing is compiled."""

    def draw(keys, like):
        path = path_of(keys)
        if path.endswith("/kernel"):
            return noise(path, like) / like.shape[-2] ** 0.5
        return 0.1 * noise(path, like) + (1.0 if path.endswith("/scale") else 0.0)

    return jax.tree_util.tree_map_with_path(draw, abstract_params(config, segments=segments))


def noise(path: str, like: Any) -> jax.Array:
    """Normal values of the shape and dtype of `like`, a function of the path alone."""
    seed = int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "little")
    return jnp.asarray(np.random.default_rng(seed).standard_normal(like.shape), like.dtype)


def moved(params: dict, size: float = 0.1) -> dict:
    """The tree with all its trainable leaves moved off their initial values, as training would: rows of a LoRA that are
    zero in both factors are beyond the rank of their layer, and stay zero."""
    trainable, _ = partition(params)
    before, trainable = flatten(params), flatten(trainable)
    trainable = {path: leaf + size * noise(path, leaf) for path, leaf in trainable.items()}
    for path, leaf in trainable.items():
        head, _, factor = path.rpartition("/")
        if factor in ("a", "b"):
            used = before[f"{head}/a"].any(axis=-1) | before[f"{head}/b"].any(axis=-1)
            trainable[path] = jnp.where(used[..., None], leaf, 0.0)
    return unflatten_like(params, {**before, **trainable})


def tokens(batch: int = BATCH, length: int = LENGTH, seed: int = 0, vocab: int = TINY.vocab_size) -> jax.Array:
    """Random ids [B, T]."""
    return jax.random.randint(jax.random.key(seed), (batch, length), 0, vocab)


@functools.partial(jax.jit, static_argnames=("model",))
def run(params: dict, ids: jax.Array, model: Decoder, key: jax.Array | None = None, **inputs) -> jax.Array:
    """Logits [B, T, V] under jit; a key switches dropout on."""
    return model.apply({"params": params}, ids, rngs=None if key is None else {"dropout": key}, **inputs)


def logits(params: dict, config: DecoderConfig = TINY, ids: jax.Array | None = None, **options) -> np.ndarray:
    """Logits of `tokens()` under jit, on the host."""
    return np.asarray(run(params, tokens() if ids is None else ids, Decoder(config, **options)))


def train_batch(batch: int = BATCH, length: int = LENGTH, seed: int = 1, vocab: int = TINY.vocab_size) -> Batch:
    """Next-token prediction on random ids, one segment a row."""
    ids = tokens(batch, length + 1, seed, vocab)
    positions = jnp.tile(jnp.arange(length)[None], (batch, 1))
    return Batch(ids[:, :-1], jnp.ones_like(positions), positions, positions, ids[:, 1:], jnp.ones((batch, length)))


def adamw(rate: float = 0.01, decay: float = 0.1) -> optax.GradientTransformation:
    """AdamW with its rate in the state, as the house's optimisers have it."""
    return optax.inject_hyperparams(optax.adamw)(learning_rate=rate, weight_decay=decay)


def train(params: dict, config: DecoderConfig = TINY, steps: int = 2, **options) -> tuple[TrainState, dict, list[dict]]:
    """(state, frozen, metrics) after a few steps with donated state; the trainables of `params` are gone."""
    trainable, frozen = partition(params)
    optimiser = adamw()
    step = jax.jit(make_step(Decoder(config), optimiser, **options), donate_argnums=0)
    state, metrics = new_state(trainable, optimiser, jax.random.key(3)), []
    for number in range(steps):
        state, values = step(state, frozen, train_batch(seed=number))
        metrics.append(values)
    return state, frozen, metrics


def equal_trees(a: Any, b: Any) -> None:
    """Same paths, dtypes, shapes and bits."""
    a, b = flatten(a), flatten(b)
    assert a.keys() == b.keys()
    for path in a:
        assert a[path].dtype == b[path].dtype, path
        np.testing.assert_array_equal(np.asarray(a[path]), np.asarray(b[path]), err_msg=path)


def shapes(tree: Any) -> dict[str, tuple]:
    """(shape, dtype) of each leaf by path, of arrays or of abstract ones."""
    return {path: (leaf.shape, leaf.dtype) for path, leaf in flatten(tree).items()}
