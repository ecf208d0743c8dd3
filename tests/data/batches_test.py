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


@pytest.mark.parametrize("packed", [True, False])
def test_an_epoch_is_every_row_exactly_once(packed):
    batches = Batches(ROWS, SIZE, LENGTH, seed=1, pack=packed)
    step = 0
    for epoch in range(3):
        seen = []
        while batches.rows_seen(step) < (epoch + 1) * len(ROWS):
            assert batches.rows_seen(step) == epoch * len(ROWS) + len(seen)
            assert epoch <= batches.epoch(step) < epoch + 1
            batch = batches.at(step)
            assert batch.weights.sum() > 0
            seen += _rows_in(batch)
            step += 1
        assert sorted(seen) == list(range(len(ROWS)))
        if epoch == 0:
            assert step == batches.steps_per_epoch
    assert packed or step == 3 * -(-len(ROWS) // SIZE)


def test_the_loss_tokens_of_an_epoch_are_those_of_the_rows():
    batches = Batches(ROWS, SIZE, LENGTH, seed=1)
    epochs = [range(batches.steps_per_epoch), range(0)]
    end = next(s for s in range(batches.steps_per_epoch, 10**6) if batches.rows_seen(s) == 2 * len(ROWS))
    epochs[1] = range(batches.steps_per_epoch, end)
    for steps in epochs:
        assert sum(batches.at(step).weights.sum() for step in steps) == ROWS.loss_lengths.sum()


def test_a_batch_depends_on_seed_and_step_alone():
    batches = Batches(ROWS, SIZE, LENGTH, seed=3)
    steps = [0, 5, 3 * batches.steps_per_epoch + 2, 1, 2 * batches.steps_per_epoch]
    for step in steps:
        fresh = Batches(ROWS, SIZE, LENGTH, seed=3)
        assert _same(batches.at(step), fresh.at(step))
    assert not _same(batches.at(0), Batches(ROWS, SIZE, LENGTH, seed=4).at(0))
    assert not _same(batches.at(0), batches.at(batches.steps_per_epoch))


@pytest.mark.parametrize("processes", [2, 3, 6])
def test_the_processes_shares_are_the_global_batch(processes):
    whole = Batches(ROWS, SIZE, LENGTH, seed=3)
    parts = [Batches(ROWS, SIZE, LENGTH, seed=3, process_index=p, process_count=processes) for p in range(processes)]
    for step in (0, whole.steps_per_epoch - 1, whole.steps_per_epoch + 1):
        shares = [part.at(step) for part in parts]
        joined = [np.concatenate(arrays) for arrays in zip(*(share[:6] for share in shares), strict=True)]
        assert _same(whole.at(step)[:6], joined)


def test_every_step_has_one_shape_and_little_padding():
    batches = Batches(ROWS, SIZE, 2 * LENGTH, seed=3)
    found = [batches.at(step) for step in range(2 * batches.steps_per_epoch)]
    assert len({tuple(array.shape for array in batch[:6]) for batch in found}) == 1
    assert np.mean([batch.segments > 0 for batch in found]) > 0.93
    assert batches.loss_slots == 48  # of 64 tokens, 55 % of which carry loss


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


def test_evaluation_maps_every_loss_token_to_its_row():
    found = np.zeros(len(ROWS))
    shapes = set()
    for batch in eval_batches(ROWS, SIZE, LENGTH):
        lines, slots = np.nonzero(batch.weights)
        segments = batch.segments[lines, batch.loss_positions[lines, slots]]
        rows = batch.rows[lines, segments - 1]
        assert (batch.targets[lines, slots] == rows + 1).all()
        np.add.at(found, rows, 1)
        shapes.add(tuple(array.shape for array in batch[:7]))
    assert found.tolist() == ROWS.loss_lengths.tolist()
    assert len(shapes) == 1


def test_evaluation_shares_add_up():
    whole = eval_batches(ROWS, SIZE, LENGTH)
    parts = [eval_batches(ROWS, SIZE, LENGTH, p, 2) for p in range(2)]
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
