"""Sharing beginnings is exact: what each token sees, its position and its loss are those of its row alone; and it saves what it can."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TINY, base

from peftjax.data import prefixes
from peftjax.data.packing import assemble, loss_slots_needed
from peftjax.data.prefixes import Prefixes
from peftjax.data.tokens import TokenRows
from peftjax.models.decoder import Decoder
from peftjax.peft import attach, lora, partition
from peftjax.peft.partition import combine
from peftjax.train.loss import token_losses

LENGTH = 24


@pytest.fixture(autouse=True)
def short_prefixes(monkeypatch):
    """Rows stay short."""
    monkeypatch.setattr(prefixes, "SHORTEST", 2)


def token_rows(rows, prompts=None):
    return TokenRows(
        ids=np.concatenate(rows).astype(np.int32), offsets=np.cumsum([0, *map(len, rows)]),
        prompt_len=np.asarray([len(row) // 2 for row in rows] if prompts is None else prompts, np.int32), records=np.arange(len(rows)),
    )


def shared(rows, length=LENGTH, limit=None):
    return Prefixes(rows, range(len(rows))).pack(range(len(rows)), 0, len(rows), length, limit)


def apart(rows):
    return [[(row, 0)] for row in range(len(rows))]


ROWS = st.lists(
    st.builds(lambda *parts: [token for part in parts for token in part], *[st.sampled_from(["", "aa", "aab", "abc"])] * 3, st.just("e")),
    min_size=1, max_size=25,
).map(lambda rows: token_rows([[ord(c) for c in row] for row in rows]))


@settings(deadline=None)
@given(rows=ROWS, limit=st.sampled_from([None, 10, 14]))
def test_each_token_sees_its_row_up_to_itself_and_nothing_else(rows, limit):
    lines = shared(rows, limit=limit)
    assert sorted(row for line in lines for row, _ in line) == list(range(len(rows)))
    batch = assemble(rows, lines, LENGTH, limit or loss_slots_needed(rows, lines), shared=True, with_rows=True)
    slots, found = np.arange(LENGTH), {row: [] for row in range(len(rows))}
    for line, members in enumerate(lines):
        for at, target, row in zip(batch.loss_positions[line], batch.targets[line], batch.rows[line], strict=True):
            if row < 0:
                continue
            seen = np.flatnonzero((slots <= at) & (at < batch.until[line]))
            assert batch.positions[line, seen].tolist() == list(range(len(seen)))
            found[row].append((batch.tokens[line, seen].tolist(), int(target)))
        assert ((batch.until[line] > slots) == (batch.segments[line] > 0)).all()
        assert (batch.segments[line] > 0).sum() == sum(rows.lengths[row] - begun for row, begun in members)
    for row, seen in found.items():
        ids = rows.row(row).tolist()
        assert seen == [(ids[: at + 1], target) for at, target in zip(*(x.tolist() for x in rows.loss(row)), strict=True)]


def test_a_tree_of_runs_is_written_once():
    rows = token_rows([[*map(ord, text)] for text in ("aabbx", "aabby", "aaccx", "aaccyz", "qqqq")])
    (line,) = shared(rows)
    assert sum(rows.lengths[row] - begun for row, begun in line) == len("aa bbx y ccx yz qqqq".replace(" ", ""))
    assert sorted(begun for _, begun in line) == [0, 0, 2, 4, 4]


def test_short_runs_are_not_shared(monkeypatch):
    rows = token_rows([[*map(ord, text)] for text in ("aabbx", "aabby", "aaccx")])
    monkeypatch.setattr(prefixes, "SHORTEST", 3)
    assert [begun for line in shared(rows) for _, begun in line] == [0, 4, 0] or [b for line in shared(rows) for _, b in line] == [0, 0, 4]
    monkeypatch.setattr(prefixes, "SHORTEST", 5)
    assert [begun for line in shared(rows) for _, begun in line] == [0, 0, 0]


def test_a_group_larger_than_a_line_repeats_its_beginning_once_a_line():
    rows = token_rows([[*range(1, 11), 20 + i, 40] for i in range(30)])
    lines = shared(rows)  # 7 rows of 2 own tokens beside 10 shared ones
    assert len(lines) == 5
    assert all([begun for _, begun in line] == [0, *[10] * (len(line) - 1)] for line in lines)


def test_equal_rows_keep_a_token_of_their_own():
    rows = token_rows([[1, 2, 3, 4]] * 3)
    assert shared(rows) == [[(0, 0), (1, 3), (2, 3)]]


def test_a_row_that_fits_nowhere_is_an_error():
    with pytest.raises(ValueError, match="1 of 2 rows fit in no bin"):
        shared(token_rows([[1] * 30, [2, 3]]))


FAMILIES = {
    "llama": TINY,
    "mistral": dataclasses.replace(TINY, window=3),
    "gemma": dataclasses.replace(TINY, window=3, full_layers=(1,), local_rope_base=100.0, attention_softcap=2.0),
    "gpt2": dataclasses.replace(TINY, learned_positions=True, max_length=LENGTH),
}


@pytest.mark.slow  # a backward pass for each family: half a minute
@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_losses_and_gradients_of_lora_are_those_of_the_rows_apart(config):
    rng = np.random.default_rng(0)
    start, other = rng.integers(1, config.vocab_size, (2, 7))
    ends = [rng.integers(1, config.vocab_size, n) for n in (3, 4, 2, 5, 4, 3)]
    begun = [start, start, [*start, *other[:3]], [*start, *other[:3]], start[:4], other]
    rows = token_rows([[*a, *b] for a, b in zip(begun, ends, strict=True)], prompts=[len(a) - 2 for a in begun])
    params = attach(base(config), [lora(rank=4, targets="all-linear")], jax.random.key(1))
    trainable, frozen = partition(params)
    trainable = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(jax.random.key(x.size), x.shape), trainable)

    def measured(lines, length, sharing):
        batch = assemble(rows, lines, length, loss_slots_needed(rows, lines), shared=sharing, with_rows=True)

        def total(trainable):
            losses, _ = token_losses(Decoder(config), combine(trainable, frozen), batch._replace(rows=None))
            return jnp.sum(losses * batch.weights), losses

        (_, losses), grads = jax.value_and_grad(total, has_aux=True)(trainable)
        used = batch.weights > 0
        order = np.argsort(batch.rows[used], kind="stable")
        return np.asarray(losses)[used][order], grads

    lines = shared(rows, 40)
    assert sum(begun > 0 for line in lines for _, begun in line) >= 4
    losses, grads = measured(lines, 40, True)
    want_losses, want_grads = measured(apart(rows), LENGTH, False)
    np.testing.assert_allclose(losses, want_losses, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads, want_grads)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads)) > 1e-3
