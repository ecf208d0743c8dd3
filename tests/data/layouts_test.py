"""Each layout holds every row of an epoch once, in shapes known beforehand, and computes little more than the rows."""

import dataclasses

import numpy as np
import pytest

from peftjax.data.layouts import Buckets, Packed, make_layout
from peftjax.data.packing import assemble
from peftjax.data.tokens import TokenRows

LENGTH, SIZE = 128, 4


def _rows(lengths, start=0, seed=0):
    """Rows of these lengths that begin with `start` equal tokens."""
    rng = np.random.default_rng(seed)
    ids = [np.concatenate([np.arange(1, start + 1), rng.integers(100, 5000, length - start)]) for length in lengths]
    return TokenRows(  # two tokens of a row carry loss
        ids=np.concatenate(ids).astype(np.int32), offsets=np.cumsum([0, *lengths]), prompt_len=np.asarray(lengths) - 2,
        records=np.arange(len(lengths)),
    )


LENGTHS = np.random.default_rng(1).integers(20, 60, 700)
ROWS = _rows(LENGTHS)


def _made(name, rows=ROWS, **options):
    order = np.random.default_rng(2).permutation(len(rows))
    layout = make_layout(name, rows, SIZE, LENGTH, order, **options)
    return layout, layout.units(order)


@pytest.mark.parametrize("name", ["packed", "buckets", "rows"])
def test_every_row_is_in_one_unit_that_holds_it(name):
    layout, units = _made(name)
    assert sorted(row for unit in units for line in unit.lines for row, _ in line) == list(range(len(ROWS)))
    for unit in units:
        assert len(unit.lines) <= unit.shape.lines and unit.shape.lines % SIZE == 0
        for line in unit.lines:
            assert sum(LENGTHS[row] for row, _ in line) <= unit.shape.length
            assert sum(ROWS.loss_lengths[row] for row, _ in line) <= unit.shape.loss_slots
    assert not layout.shared


@pytest.mark.parametrize("share", ["off", "on"])
def test_rows_of_different_adapters_go_into_lines_of_their_own(share):
    plain = _rows(LENGTHS[:200], start=18)
    kinds = {"lang": np.random.default_rng(3).integers(-1, 2, 200).astype(np.int32), "domain": np.arange(200, dtype=np.int32) % 2}
    layout, units = _made("packed", dataclasses.replace(plain, routes=kinds), share=share)
    lines = [line for unit in units for line in unit.lines]
    assert sorted(row for line in lines for row, _ in line) == list(range(200)) and layout.shared == (share == "on")
    batch = assemble(layout.rows, [*lines, []], LENGTH, layout.loss_slots, shared=layout.shared)
    for name, numbers in kinds.items():
        assert batch.routes[name].tolist() == [numbers[line[0][0]] for line in lines] + [-1]
    one, other = (int(np.flatnonzero(kinds["lang"] == kind)[0]) for kind in (0, 1))
    with pytest.raises(ValueError, match=r"line 0 holds rows of lang \[0, 1\]"):
        assemble(layout.rows, [[(one, 0), (other, 0)]], 2 * LENGTH, 64)
    assert assemble(plain, lines, LENGTH, layout.loss_slots, shared=layout.shared).routes is None


def test_packed_lines_have_one_shape_and_little_padding():
    _, units = _made("packed")
    ((lines, length, slots),) = {unit.shape for unit in units}
    assert (lines, length) == (SIZE, LENGTH)
    assert LENGTHS.sum() / (LENGTH * len(units)) > 0.95
    assert ROWS.loss_lengths.sum() / (slots * len(units)) > 0.7


def test_buckets_have_a_handful_of_shapes_of_about_as_many_tokens_and_one_batch_that_is_not_full():
    _, units = _made("buckets")
    assert sorted({unit.shape[:2] for unit in units}) == [(2 * SIZE, 64), (3 * SIZE, 40), (4 * SIZE, 32)]
    assert all(0.9 * SIZE * LENGTH <= unit.shape.lines * unit.shape.length <= SIZE * LENGTH for unit in units)
    assert sum(len(unit.lines) < unit.shape.lines for unit in units) <= 1
    assert LENGTHS.sum() / sum(unit.shape.lines * unit.shape.length for unit in units) > 0.8
    short = [unit for unit in units if unit.shape.length == 32]
    assert all(LENGTHS[row] <= 32 for unit in short for ((row, _),) in unit.lines)


def test_buckets_end_with_the_longest_row():
    for longest, want in ((128, 128), (65, 128), (64, 64), (9, 16)):
        layout, units = _made("buckets", _rows([longest, 8, 8]))
        assert isinstance(layout, Buckets) and layout.shapes[-1].length == want
        assert [len(unit.lines) for unit in units] == [3]  # too few for a batch of the short ones


def test_buckets_of_an_odd_length_hold_rows_of_that_length():
    order = np.arange(1)
    (unit,) = make_layout("buckets", _rows([37]), 2, 37, order).units(order)
    assert unit.shape.length == 37


def test_one_row_a_line():
    _, units = _made("rows")
    assert {unit.shape[:2] for unit in units} == {(SIZE, LENGTH)}
    assert len(units) == 175


@pytest.mark.parametrize("start, sharing", [(18, True), (4, False), (0, False)])
def test_beginnings_are_shared_where_that_saves(start, sharing):
    rows = _rows(LENGTHS, start)
    layout, units = _made("packed", rows, share="auto")
    assert layout.shared == sharing
    plain = _made("packed", rows)[1]
    if sharing:
        assert len(units) < 0.7 * len(plain)
        written = sum(LENGTHS[row] - begun for unit in units for line in unit.lines for row, begun in line)
        assert written / (LENGTH * len(units)) > 0.95
    else:
        assert [unit.lines for unit in units] == [unit.lines for unit in plain]
    assert _made("packed", rows, share="on")[0].shared


def test_long_sets_are_packed_in_windows_with_one_limit(monkeypatch):
    monkeypatch.setattr("peftjax.data.layouts._WINDOW", 64)
    for start in (0, 18):
        rows = _rows(LENGTHS, start)
        layout, units = _made("packed", rows, share="auto")
        assert isinstance(layout, Packed) and layout.loss_slots is not None
        assert sorted(row for unit in units for line in unit.lines for row, _ in line) == list(range(len(rows)))
        assert max(sum(rows.loss_lengths[row] for row, _ in unit.lines[0]) for unit in units) <= layout.loss_slots


def test_slots_that_bring_virtual_tokens_are_as_few_as_make_a_row_cheapest():
    """A text has one loss slot, before which the model puts 16 tokens: they count as tokens of the line, and slots are not rounded up."""
    one = dataclasses.replace(ROWS, prompt_len=ROWS.prompt_len + 1)
    assert (one.loss_lengths == 1).all()

    def tokens_of(rows, **options):
        layout, units = _made("packed", rows, **options)
        assert max(len(unit.lines[0]) for unit in units) <= layout.loss_slots
        return layout.loss_slots, len(units) * (LENGTH + 16 * layout.loss_slots)

    rows = dataclasses.replace(one, virtual=16)
    slots, tokens = tokens_of(rows)
    assert slots < tokens_of(one)[0] == 8  # of lines that could hold six rows
    assert tokens <= min(tokens_of(rows, loss_slots=number)[1] for number in range(2, 7))
    assert {unit.shape.loss_slots for name in ("buckets", "rows") for unit in _made(name, rows)[1]} == {1}


def test_refusals():
    with pytest.raises(ValueError, match="'bucket' is none of packed, buckets, rows.*did you mean 'buckets'"):
        _made("bucket")
    with pytest.raises(ValueError, match="'yes' is none of auto, on, off"):
        _made("packed", share="yes")
    with pytest.raises(ValueError, match="in a packed layout only"):
        _made("buckets", share="on")
