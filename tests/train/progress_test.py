"""The progress line, under a clock that the test turns."""

import io

import jax.numpy as jnp
import pytest

from peftjax.train.progress import Progress, duration


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def _run(stream, total=20, start=0, **options):
    """A run of one second a step and 100 tokens each, after a first step of 30 s for compiling."""
    now = [0.0]
    with Progress(total, start, stream=stream, clock=lambda: now[0], **options) as progress:
        for step in range(start + 1, total + 1):
            now[0] += 30.0 if step == start + 1 else 1.0
            progress.update(step, jnp.float32(1.0 / step), 100)
    return stream.getvalue()


def test_a_log_file_gets_the_first_step_then_a_line_every_ten_seconds_then_the_last():
    assert _run(io.StringIO(), total=25).splitlines() == [
        "step 1/25, loss 1.0000, 3 tokens/s, 12:00 left",
        "step 11/25, loss 0.0909, 100 tokens/s, 0:14 left",
        "step 21/25, loss 0.0476, 100 tokens/s, 0:04 left",
        "step 25/25, loss 0.0400, 100 tokens/s, 0:00 left",
    ]


def test_a_resumed_run_counts_its_own_steps_only():
    lines = _run(io.StringIO(), total=25, start=20, every_s=2).splitlines()
    assert lines[1] == "step 23/25, loss 0.0435, 100 tokens/s, 0:02 left"


def test_a_terminal_gets_one_line_redrawn_in_place():
    drawn = _run(_Terminal())
    assert drawn.count("\n") == 1 and drawn.count("\r") >= 20
    last = drawn.split("\r")[-1]
    assert "100% " in last and "step 20/20, loss 0.0500, 100 tokens/s, 0:00 left" in last


def test_other_processes_say_nothing_and_wait_for_nothing():
    class Unread:
        def __float__(self):
            raise AssertionError("the loss was waited for")

    stream = io.StringIO()
    with Progress(3, stream=stream, enabled=False) as progress:
        progress.update(1, Unread(), 5)
    assert stream.getvalue() == ""


def test_an_evaluation_does_not_count_as_training():
    now, stream = [0.0], io.StringIO()
    with Progress(10, stream=stream, clock=lambda: now[0]) as progress:
        now[0] = 1.0
        progress.update(1, 1.0, 10)
        now[0] = 5.0
        progress.update(3, 1.0, 20)  # too early for a line; its 4 s count
        now[0] = 500.0
        progress.restart_clock()
        now[0] = 506.0
        progress.update(6, 1.0, 30)
    assert stream.getvalue().splitlines()[1] == "step 6/10, loss 1.0000, 5 tokens/s, 0:08 left"


@pytest.mark.parametrize("seconds, text", [(0, "0:00"), (59.6, "1:00"), (151, "2:31"), (3751, "1:02:31")])
def test_durations(seconds, text):
    assert duration(seconds) == text
