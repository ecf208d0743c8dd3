"""Token rows: some rows of a table are others, and no other row, whichever way the table is read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TIED, TINY, base, equal_trees, logits, moved, tokens, train

from peftjax.models.decoder import Decoder
from peftjax.nn.kernels import Tied, attend, dense, dot, lookup
from peftjax.nn.quant import quantise
from peftjax.nn.tree import flatten
from peftjax.peft.attach import attach, detach
from peftjax.peft.lora import lora
from peftjax.peft.merge import merge
from peftjax.peft.partition import combine, partition
from peftjax.peft.tokens import TokenRows, trainable_tokens

KEY = jax.random.key(0)
TABLE = jax.random.normal(KEY, (9, 4))
ROWS, IDS = jax.random.normal(jax.random.key(1), (3, 4)), jnp.array([7, 0, 2], jnp.int32)
EMBEDDING = TokenRows(TABLE, ROWS, IDS, False, "tone")
HEAD = TokenRows(TABLE.T, ROWS, IDS, True, "tone")
NEW = np.asarray(TABLE).copy()
NEW[np.asarray(IDS)] = ROWS


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["plain", "jit"])
def test_reading_the_node_is_reading_the_table_with_its_rows_replaced(wrap):
    x = jax.random.normal(jax.random.key(2), (2, 5, 4))
    np.testing.assert_array_equal(dense(EMBEDDING), NEW)
    np.testing.assert_array_equal(dense(HEAD), NEW.T)
    ids = jnp.array([[7, 1, 2], [2, 0, 8]])
    np.testing.assert_array_equal(wrap(lambda i, k: lookup(i, k, jnp.float32))(ids, EMBEDDING), NEW[np.asarray(ids)])
    np.testing.assert_allclose(wrap(attend)(x, EMBEDDING), x @ NEW.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(wrap(dot)(x, HEAD), x @ NEW.T, rtol=1e-5, atol=1e-5)
    assert EMBEDDING.shape == (9, 4) and HEAD.shape == (4, 9)


def test_an_embedding_is_not_multiplied_by():
    with pytest.raises(TypeError, match="TokenRows cannot be multiplied by"):
        dot(jnp.ones((2, 9)), EMBEDDING)


def test_dtypes_are_those_of_who_asks_and_of_the_base():
    half = TokenRows(TABLE.astype(jnp.bfloat16), ROWS, IDS, False, "tone")
    assert lookup(jnp.array([7]), half, jnp.bfloat16).dtype == jnp.bfloat16
    assert half.merge().dtype == half.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("config", "targets", "shapes"),
    [
        (TINY, "embed_tokens", {"embed/embedding": (3, 16)}), (TIED, "embed_tokens", {"embed/embedding": (3, 16)}),
        (TINY, "lm_head", {"head/kernel": (3, 16)}), (TIED, "lm_head", {"head/kernel": (3, 16)}),
        (TIED, ("embed_tokens", "lm_head"), {"embed/embedding": (3, 16), "head/kernel": (3, 16)}),
    ],
)  # fmt: skip
def test_rows_start_as_the_bases_and_are_all_that_is_trained(config, targets, shapes):
    params = attach(base(config), [trainable_tokens(ids=(3, 7, 31), targets=targets)], KEY)
    trainable = flatten(partition(params)[0])
    assert {path.removesuffix("/default/rows"): leaf.shape for path, leaf in trainable.items()} == shapes
    for path, leaf in trainable.items():
        table = base(config)["head"]["kernel"].T if path.startswith("head") and config is TINY else base(config)["embed"]["embedding"]
        np.testing.assert_array_equal(leaf, table[jnp.array([3, 7, 31])])
    np.testing.assert_allclose(logits(params, config), logits(base(config), config), rtol=1e-5, atol=1e-6)
    equal_trees(detach(params), base(config))


@pytest.mark.parametrize("targets", ["embed_tokens", "lm_head"])
def test_training_changes_these_rows_and_no_other(targets):
    state, frozen, metrics = train(attach(base(TIED), [trainable_tokens(ids=(3, 7), targets=targets)], KEY), TIED, steps=3)
    assert metrics[-1]["grad_norm"] > 0
    rows = (state.trainable["embed"]["embedding"] if targets == "embed_tokens" else state.trainable["head"]["kernel"]).rows
    before = base(TIED)["embed"]["embedding"]
    assert np.all(np.any(rows != before[jnp.array([3, 7])], axis=-1))
    node = frozen["embed"]["embedding"] if targets == "embed_tokens" else frozen["head"]["kernel"]
    kept = node.base.base if isinstance(node.base, Tied) else node.base
    np.testing.assert_array_equal(kept, before)


def test_a_tied_head_follows_the_embeddings_rows_and_a_head_of_its_own_does_not():
    for targets in ("embed_tokens", "lm_head"):
        params = moved(attach(base(TIED), [trainable_tokens(ids=(3, 7), targets=targets)], KEY))
        merged = merge(params)
        if targets == "embed_tokens":
            assert "head" not in merged
        else:
            np.testing.assert_array_equal(merged["embed"]["embedding"], base(TIED)["embed"]["embedding"])
            changed = np.any(merged["head"]["kernel"] != base(TIED)["embed"]["embedding"].T, axis=0)
            assert np.flatnonzero(changed).tolist() == [3, 7]
        np.testing.assert_allclose(logits(merged, TIED), logits(params, TIED), rtol=1e-4, atol=1e-4)


def test_rows_of_tokens_that_do_not_occur_have_no_gradient_in_an_untied_embedding():
    params = attach(base(), [trainable_tokens(ids=range(40))], KEY)
    trainable, frozen = partition(params)
    gradient = jax.jit(jax.grad(lambda t: jnp.sum(Decoder(TINY).apply({"params": combine(t, frozen)}, tokens()) ** 2)))(trainable)
    reached = np.flatnonzero(np.any(gradient["embed"]["embedding"].rows != 0, axis=-1))
    assert reached.tolist() == sorted(set(np.asarray(tokens()).ravel().tolist()))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_rows_beside_a_lora_on_the_same_table(order):
    methods = [trainable_tokens(ids=(3, 7), name="rows"), lora(rank=2, targets="embed_tokens", name="low")]
    params = moved(attach(base(TIED), [methods[i] for i in order], KEY))
    np.testing.assert_allclose(logits(merge(params), TIED), logits(params, TIED), rtol=1e-4, atol=1e-4)
    equal_trees(detach(detach(params, ["rows"]), ["low"]), base(TIED))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "trainable_tokens needs at least one token id"),
        ({"ids": (3, 5, 3)}, r"names ids more than once: \[3\]"),
        ({"ids": (3, 40)}, r"ids \[40\] lie outside the vocabulary of 40"),
        ({"ids": (-1,)}, r"ids \[-1\] lie outside"),
        ({"ids": (3,), "targets": "q_proj"}, "for embed_tokens and lm_head, not blocks/attn/q/kernel"),
        ({"ids": (3,), "targets": "embed_token"}, "'embed_token' matches no kernel; did you mean 'embed_tokens'"),
    ],
)  # fmt: skip
def test_what_names_no_row_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        attach(base(), [trainable_tokens(**options)], KEY)


@pytest.mark.parametrize("targets", ["embed_tokens", "lm_head"])
def test_rows_of_a_quantised_table_start_as_it_reads(targets):
    """They are looked up: the whole table is not made dense for a few rows."""
    table = quantise(base(TIED)["embed"]["embedding"], "int8", rows=True)
    params = attach({**base(TIED), "embed": {"embedding": table}}, [trainable_tokens(ids=(3, 31), targets=targets)], KEY)
    (rows,) = flatten(partition(params)[0]).values()
    np.testing.assert_array_equal(rows, dense(table)[jnp.array([3, 31])])
