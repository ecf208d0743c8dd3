"""Packing keeps every row whole and once; assembled lines say for each token what it was in its row, and where the loss falls."""

import numpy as np
import pytest
from char_tokenizer import CharTokenizer
from hypothesis import given
from hypothesis import strategies as st

from peftjax.data.packing import assemble, loss_slots_needed, pack, rounded
from peftjax.data.records import Record
from peftjax.data.template import Template
from peftjax.data.tokens import tokenize


def _rows(pairs, bos_id=1):
    records = [Record(prompt=prompt, response=response) for prompt, response in pairs]
    return tokenize(records, CharTokenizer(bos_id), Template(response="{response}"), max_length=64, cache=False)


def _plain(bins):
    return [[(row, 0) for row in members] for members in bins]


@given(
    rows=st.lists(st.integers(1, 20).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), max_size=60),
    loss_capacity=st.one_of(st.none(), st.integers(20, 40)),
)
def test_every_row_is_in_one_bin_and_no_bin_is_overfull(rows, loss_capacity):
    lengths, loss = [length for length, _ in rows], [loss for _, loss in rows]
    bins = pack(lengths, 32, loss, loss_capacity)
    assert sorted(row for members in bins for row in members) == list(range(len(rows)))
    for members in bins:
        assert members and sum(lengths[row] for row in members) <= 32
        assert loss_capacity is None or sum(loss[row] for row in members) <= loss_capacity


@given(st.lists(st.integers(1, 100), min_size=1, max_size=80))
def test_a_bin_is_as_full_as_the_rows_left_allow(lengths):
    bins = pack(lengths, 100)
    left = list(lengths)
    for members in bins:
        mine = [lengths[row] for row in members]
        assert max(mine) == max(left)
        rest = list(left)
        rest.remove(max(left))
        sums = {0}
        for length in rest:
            sums |= {s + length for s in sums if s + length <= 100 - max(left)}
        assert sum(mine) == max(left) + max(sums)
        for length in mine:
            left.remove(length)
    assert pack(lengths, 100) == bins


def _first_fit_decreasing(lengths, capacity):
    free = []
    for length in sorted(lengths, reverse=True):
        place = next((i for i, space in enumerate(free) if space >= length), None)
        if place is None:
            free.append(capacity - length)
        else:
            free[place] -= length
    return len(free)


@pytest.mark.parametrize("low, high, fill", [(26, 40, 0.92), (26, 45, 0.95), (3, 60, 0.99), (20, 128, 0.97), (1, 5, 0.99)])
def test_lines_are_about_as_full_as_first_fit_decreasing_has_them_or_fuller(low, high, fill):
    lengths = np.random.default_rng(low).integers(low, high + 1, 2000)
    bins = pack(lengths, 128)
    assert len(bins) <= 1.002 * _first_fit_decreasing(lengths, 128)
    assert lengths.sum() / (128 * len(bins)) > fill


def test_loss_tokens_are_spread_evenly():
    loss = np.arange(400) % 9
    bins = pack(np.full(400, 10), 40, loss)
    assert {int(loss[members].sum()) for members in bins[:-1]} <= {15, 16, 17}


def test_a_row_that_fits_nowhere_is_an_error():
    with pytest.raises(ValueError, match="1 of 2 rows fit in no bin of 8 tokens.*row 1 has 9"):
        pack([3, 9], 8)
    with pytest.raises(ValueError, match="and 2 loss tokens"):
        pack([3, 4], 8, [2, 3], 2)
    with pytest.raises(ValueError, match="row 0 has 0"):
        pack([0], 8)


def test_a_batch_by_hand():
    rows = _rows([("ab", "c"), ("", "d"), ("e", "f")])
    a, b, c, d, e, f = ([ord(x) + 10 for x in "abcdef"])
    batch = assemble(rows, _plain([[0, 1], [], [2]]), length=8, loss_slots=4, with_rows=True)
    assert batch.tokens.tolist() == [[a, b, c, 2, 1, d, 2, 0], [0] * 8, [e, f, 2, 0, 0, 0, 0, 0]]
    assert batch.segments.tolist() == [[1, 1, 1, 1, 2, 2, 2, 0], [0] * 8, [1, 1, 1, 0, 0, 0, 0, 0]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 0, 1, 2, 0], [0] * 8, [0, 1, 2, 0, 0, 0, 0, 0]]
    assert batch.loss_positions.tolist() == [[1, 2, 4, 5], [0] * 4, [0, 1, 0, 0]]
    assert batch.targets.tolist() == [[c, 2, d, 2], [0] * 4, [f, 2, 0, 0]]
    assert batch.weights.tolist() == [[1, 1, 1, 1], [0] * 4, [1, 1, 0, 0]]
    assert batch.rows.tolist() == [[0, 0, 1, 1], [-1] * 4, [2, 2, -1, -1]]
    assert {array.dtype for array in batch[:7]} == {np.dtype("int32"), np.dtype("float32")}
    assert batch.until is None and batch.types is None


def test_a_batch_with_a_shared_beginning_by_hand():
    rows = _rows([("ppp", "x"), ("ppp", "yz"), ("b", "b")])
    p, x, y, z, b = ([ord(letter) + 10 for letter in "pxyzb"])
    batch = assemble(rows, [[(0, 0), (1, 3), (2, 0)]], length=12, loss_slots=8, shared=True, with_rows=True)
    assert batch.tokens.tolist() == [[p, p, p, x, 2, y, z, 2, b, b, 2, 0]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 3, 4, 5, 0, 1, 2, 0]]
    assert batch.until.tolist() == [[8, 8, 8, 5, 5, 8, 8, 8, 11, 11, 11, 0]]
    assert batch.segments.tolist() == [[1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 0]]
    assert batch.loss_positions.tolist() == [[2, 3, 2, 5, 6, 8, 9, 0]]
    assert batch.targets.tolist() == [[x, 2, y, z, 2, b, 2, 0]]
    assert batch.rows.tolist() == [[0, 0, 1, 1, 1, 2, 2, -1]]


@given(st.lists(st.tuples(st.text("ab", max_size=9), st.text("cd", min_size=1, max_size=9)), min_size=1, max_size=20))
def test_targets_are_the_next_token_of_the_same_segment_and_exactly_the_loss_tokens(pairs):
    for bos_id in (1, None):
        rows = _rows(pairs, bos_id)
        lines = _plain(pack(rows.lengths, 24))
        batch = assemble(rows, lines, 24, loss_slots_needed(rows, lines), with_rows=True)
        assert batch.weights.sum() == rows.loss_lengths.sum()
        found = []
        for line in range(len(lines)):
            used = batch.weights[line] == 1
            at = batch.loss_positions[line, used]
            assert len(set(at)) == len(at)
            assert (batch.segments[line, at] == batch.segments[line, at + 1]).all() and (batch.segments[line, at] > 0).all()
            assert (batch.tokens[line, at + 1] == batch.targets[line, used]).all()
            found += batch.rows[line, used].tolist()
        assert np.bincount(found, minlength=len(rows)).tolist() == rows.loss_lengths.tolist()


def test_loss_slots_are_a_multiple_that_just_suffices():
    rows = _rows([("a", "b" * 16), ("a", "c")])
    assert loss_slots_needed(rows, _plain([[0], [1]])) == 24  # 16 letters and the end
    assert loss_slots_needed(rows, _plain([[1], []])) == 8 == rounded(0)
    assemble(rows, _plain([[0]]), 32, 17)
    with pytest.raises(ValueError, match="16 loss slots"):
        assemble(rows, _plain([[0]]), 32, 16)
