"""The line that says how far a run is.

    on a terminal   30% ######        step 120/400, loss 0.4321, 1,234 tokens/s, 2:31 left     (tqdm, redrawn in place)
    in a log file   step 120/400, loss 0.4321, 1,234 tokens/s, 2:31 left                       (every few seconds)

Speed and time left are means over the steps since the last line, so that compiling does not count for ever.
"""

import sys
import time
from collections.abc import Callable
from typing import TextIO


class Progress:
    """Shows the progress of a run of `total` steps on `stream`.

    Args:
        total: steps of the whole run.
        start: the step it goes on from.
        every_s: seconds between lines where the stream is not a terminal; a terminal is redrawn four times a second.
        stream: where to; stderr unless told.
        enabled: False on every process but process 0.
        clock: seconds, monotonic.
    """

    def __init__(self, total: int, start: int = 0, every_s: float = 10.0, stream: TextIO | None = None,
                 enabled: bool = True, clock: Callable[[], float] = time.monotonic):
        self._total, self._stream, self._clock, self._enabled = total, stream or sys.stderr, clock, enabled
        self._bar = None
        self._every_s = every_s
        if enabled and self._stream.isatty():
            from tqdm import tqdm

            self._every_s = 0.25
            self._bar = tqdm(total=total, initial=start, file=self._stream, dynamic_ncols=True, leave=True,
                             bar_format="{percentage:3.0f}% {bar:20} {desc}", mininterval=0)
        self._shown_step, self._shown_at, self._tokens = start, clock(), 0
        self._updated_at = self._shown_at
        self._first = True

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def update(self, step: int, loss, tokens: int) -> None:
        """Say that `step` steps are done; `tokens` is what this one trained on.

        `loss` may be an array still being computed: it is waited for only when a line is shown. The first step, the
        last one, and those after enough time are shown.
        """
        self._tokens += int(tokens)
        now = self._updated_at = self._clock()
        due = self._first or step >= self._total or now - self._shown_at >= self._every_s
        if not (self._enabled and due):
            return
        loss = float(loss)
        now = self._clock()  # waiting for the loss took time that belongs to these steps
        self._show(step, describe(step, self._total, loss, self._tokens, step - self._shown_step, now - self._shown_at))
        self._shown_step, self._shown_at, self._updated_at, self._tokens, self._first = step, now, now, 0, False

    def restart_clock(self) -> None:
        """Leave out the time since the last `update`: it went into an evaluation or a checkpoint."""
        now = self._clock()
        self._shown_at, self._updated_at = self._shown_at + now - self._updated_at, now

    def close(self) -> None:
        """Leave the last line standing."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _show(self, step: int, line: str) -> None:
        """Draw the bar, or write the line."""
        if self._bar is None:
            print(line, file=self._stream, flush=True)
        else:
            self._bar.set_description_str(line, refresh=False)
            self._bar.update(step - self._bar.n)
            self._bar.refresh()


def describe(step: int, total: int, loss: float, tokens: int, steps: int, seconds: float) -> str:
    """`step 120/400, loss 0.4321, 1,234 tokens/s, 2:31 left` from `tokens` and `steps` done in the last `seconds`."""
    parts = [f"step {step}/{total}", f"loss {loss:.4f}"]
    if seconds > 0 and steps > 0:
        parts.append(f"{tokens / seconds:,.0f} tokens/s")
        parts.append(f"{duration((total - step) * seconds / steps)} left")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """`2:31`, or `1:02:31` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
