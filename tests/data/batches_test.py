"""A step's batch depends on seed and step alone; an epoch is every row once; prefetching changes nothing but the time."""

import threading

import numpy as np
import pytest

from peftjax.data.batches import Batches, eval_batches, prefetch
from peftjax.data.tokens import TokenRows

LENGTH, SIZE = 32, 6


def _rows(count=2500, seed=0):
    """Rows of 3 to 20 tokens that name themselves: row i is made of the token i + 1."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 21, count)
    return TokenRows(
        ids=np.repeat(np.arange(1, count + 1), lengths).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        prompt_len=(lengths * rng.uniform(0, 0.9, count)).astype(np.int32),
        records=np.arange(count),
    )


ROWS = _rows()


def _rows_in(batch):
    """Each packed row's number, once a segment."""
    starts = (batch.segments > 0) & (batch.positions == 0)
    return (batch.tokens[starts] - 1).tolist()


def _same(first, second):
    return all((a is None and b is None) or np.array_equal(a, b) for a, b in zip(first, second, strict=True))


OPTIONS = {"packed": {}, "buckets": {"layout": "buckets"}, "rows": {"layout": "rows"}, "shared": {"share": "on"}}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_an_epoch_is_every_row_exactly_once(options):
    batches = Batches(ROWS, SIZE, LENGTH, seed=1, **options)
    seen, step, epochs = [], 0, 3
    while len(seen) < epochs * len(ROWS):
        # An epoch ends anywhere within a batch: its rows are all there before those of the next but one begin.
        assert len(seen) == batches.rows_seen(step)
        assert batches.epoch(step) == pytest.approx(len(seen) / len(ROWS), abs=0.05)
        batch = batches.at(step)
        assert batch.weights.sum() > 0
        seen += _rows_in(batch)
        step += 1
    for epoch in range(1, epochs + 1):
        counts = np.bincount(seen[: batches.rows_seen(-(-epoch * step // epochs) - 2)], minlength=len(ROWS))
        assert epoch - 1 <= counts.min() and counts.max() <= epoch
    assert abs(step - epochs * batches.steps_per_epoch) <= 0.02 * step + epochs


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_loss_tokens_of_an_epoch_are_those_of_the_rows(options):
    batches = Batches(ROWS, SIZE, LENGTH, seed=1, **options)
    found, step = np.zeros(len(ROWS)), 0
    while batches.rows_seen(step) < len(ROWS):
        batch = batches.at(step)
        np.add.at(found, batch.targets[batch.weights > 0] - 1, 1)
        step += 1
    assert (found >= ROWS.loss_lengths).all()
    assert found.sum() - ROWS.loss_lengths.sum() < SIZE * LENGTH  # the last batch goes on with the next epoch


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_batch_depends_on_seed_and_step_alone(options):
    batches = Batches(ROWS, SIZE, LENGTH, seed=3, **options)
    steps = [0, 5, 3 * batches.steps_per_epoch + 2, 1, 2 * batches.steps_per_epoch]
    for step in steps:
        fresh = Batches(ROWS, SIZE, LENGTH, seed=3, **options)
        assert _same(batches.at(step), fresh.at(step))
    assert not _same(batches.at(0), Batches(ROWS, SIZE, LENGTH, seed=4, **options).at(0))
    assert not _same(batches.at(0), batches.at(batches.steps_per_epoch))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("processes", [2, 6])
def test_the_processes_shares_are_the_global_batch(processes, options):
    whole = Batches(ROWS, SIZE, LENGTH, seed=3, **options)
    parts = [Batches(ROWS, SIZE, LENGTH, seed=3, process_index=p, process_count=processes, **options) for p in range(processes)]
    for step in (0, whole.steps_per_epoch - 1, whole.steps_per_epoch + 1):
        shares = [part.at(step) for part in parts]
        joined = [None if arrays[0] is None else np.concatenate(arrays) for arrays in zip(*shares, strict=True)]
        assert _same(whole.at(step), joined)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_batches_have_the_shapes_that_were_told(options):
    batches = Batches(ROWS, SIZE, LENGTH, seed=3, **options)
    told = {tuple(array.shape for array in batches.empty(shape) if array is not None): shape for shape in batches.shapes}
    found = [batches.at(step) for step in range(2 * batches.steps_per_epoch)]
    assert {tuple(array.shape for array in batch if array is not None) for batch in found} == set(told)
    assert len(told) == (2 if "layout" in options and options["layout"] == "buckets" else 1)
    assert all(not any(array.any() for array in batches.empty(shape) if array is not None) for shape in batches.shapes)


def test_there_is_little_padding_and_the_report_says_so():
    batches = Batches(ROWS, SIZE, 2 * LENGTH, seed=3)
    found = [batches.at(step) for step in range(batches.steps_per_epoch)]
    fill = np.mean([batch.segments > 0 for batch in found])
    assert fill > 0.97 and batches.report["fill"] == pytest.approx(fill, abs=0.002)
    assert batches.report["tokens a row"] == pytest.approx(ROWS.lengths.mean() / fill, rel=0.002)
    assert batches.report["shared tokens"] == 0
    assert batches.shapes == ((SIZE, 2 * LENGTH, 40),)  # of 64 tokens, 56 % of which carry loss


def test_rows_share_their_beginning():
    tokens = np.concatenate([[*range(1, 19), 100 + i, 7] for i in range(200)]).astype(np.int32)
    rows = TokenRows(tokens, np.arange(201) * 20, np.full(200, 18, np.int32), np.arange(200))
    plain, shared = (Batches(rows, 2, 64, seed=0, share=share) for share in ("off", "auto"))
    assert plain.at(0).until is None and shared.at(0).until is not None
    assert plain.steps_per_epoch == 34 and shared.steps_per_epoch == 5
    assert shared.report["shared tokens"] == pytest.approx(0.85, abs=0.02)
    assert shared.report["tokens a row"] < 3.3


def test_loss_slots_fit_every_epoch():
    rows = _rows(300)
    batches = Batches(rows, 2, LENGTH, seed=0)
    for step in range(12 * batches.steps_per_epoch):
        batches.at(step)  # assemble raises if a line needs more
    assert batches.epoch(12 * batches.steps_per_epoch) > 10


def test_two_threads_may_ask_at_once():
    batches = Batches(ROWS, SIZE, LENGTH, seed=3)
    steps = [epoch * batches.steps_per_epoch for epoch in range(6)]
    with prefetch(lambda: map(batches.at, steps)) as ahead:
        mine = [batches.at(step) for step in reversed(steps)]
        theirs = list(ahead)
    assert all(_same(a, b) for a, b in zip(mine[::-1], theirs, strict=True))


@pytest.mark.parametrize("share", ["on", "off"])
def test_evaluation_maps_every_loss_token_to_its_row(share):
    found = np.zeros(len(ROWS))
    shapes = set()
    for batch in eval_batches(ROWS, SIZE, LENGTH, share):
        rows = batch.rows[batch.weights > 0]
        assert (batch.targets[batch.weights > 0] == rows + 1).all()
        np.add.at(found, rows, 1)
        shapes.add(tuple(array.shape for array in batch[:7]))
    assert found.tolist() == ROWS.loss_lengths.tolist()
    assert len(shapes) == 1


def test_evaluation_shares_add_up():
    whole = eval_batches(ROWS, SIZE, LENGTH)
    parts = [eval_batches(ROWS, SIZE, LENGTH, "off", p, 2) for p in range(2)]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert np.array_equal(batch.rows, np.concatenate([share.rows for share in shares]))


def test_refusals():
    with pytest.raises(ValueError, match="rows are longer than the batch's 10 tokens; the longest has 20"):
        Batches(ROWS, SIZE, 10, seed=0)
    with pytest.raises(ValueError, match="cannot be shared evenly by 4 processes"):
        Batches(ROWS, SIZE, LENGTH, seed=0, process_count=4)
    with pytest.raises(ValueError, match="no rows"):
        eval_batches(_rows(0), SIZE, LENGTH)
    with pytest.raises(ValueError, match="step is -1"):
        Batches(ROWS, SIZE, LENGTH, seed=0).at(-1)


def test_prefetch_gives_the_items_in_order():
    with prefetch(lambda: iter(range(100)), depth=3) as stream:
        assert list(stream) == list(range(100))


def test_prefetch_raises_the_error_where_the_item_is_asked_for():
    def items():
        yield 1
        raise LookupError("the third cupboard is empty")

    with prefetch(items) as stream:
        assert next(stream) == 1
        with pytest.raises(LookupError, match="third cupboard"):
            next(stream)


def test_prefetch_ends_its_thread_when_left_early():
    made = []

    def items():
        for i in range(10**9):
            made.append(threading.current_thread())
            yield i

    with pytest.raises(KeyError), prefetch(items, depth=2) as stream:
        next(stream)
        raise KeyError("left early")
    assert made[0] is not threading.current_thread()
    assert not made[0].is_alive()
    assert len(made) <= 3
