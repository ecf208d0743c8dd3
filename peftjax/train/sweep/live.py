"""The table of a sweep while it runs: every point with status, step and loss, read from the work directories again and again.

On a terminal it is redrawn in place; elsewhere a line says how far the sweep is whenever a run's status changes.
"""

import collections
import contextlib
import io
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from peftjax.train.points import label
from peftjax.train.sweep.standing import Standing, standings

STYLES = {"done": "green", "failed": "red", "training": "yellow", "stopped": "cyan", "waiting": "dim"}
EVERY_S = 1.0


@contextlib.contextmanager
def shown(folder: Path, console: Console | None = None, every_s: float = EVERY_S) -> Iterator[None]:
    """Shows the sweep in `folder` while the block runs, and once more at its end."""
    console = console or Console()
    ended = threading.Event()
    with contextlib.ExitStack() as stack:
        live, said = None, ""
        if console.is_terminal:
            live = stack.enter_context(Live(console=console, auto_refresh=False, redirect_stderr=False))
            stack.enter_context(contextlib.redirect_stderr(Above(console)))

        def show() -> None:
            nonlocal said
            rows = standings(folder)
            if live is not None:
                live.update(as_table(rows), refresh=True)
            elif said != (said := counts(rows)):
                console.print(said, soft_wrap=True)

        def watch() -> None:
            while not ended.wait(every_s):
                show()

        show()
        thread = threading.Thread(target=watch, name="sweep-table", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            show()


class Above(io.TextIOBase):
    """Where others' lines go while the table is redrawn: above it. It is no terminal, so that no progress bar redraws itself there."""

    def __init__(self, console: Console):
        self._console, self._begun = console, ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        return len(text)


def counts(rows: Sequence[Standing]) -> str:
    """`8 points: 3 done, 1 training, 4 waiting`."""
    found = collections.Counter(row.status for row in rows)
    return f"{len(rows)} points: {', '.join(f'{found[status]} {status}' for status in STYLES if found[status])}"


def as_table(rows: Sequence[Standing]) -> Table:
    """The table for a terminal."""
    table = Table(title=counts(rows), title_justify="left")
    for name in ("point", "status", "step", "loss"):
        table.add_column(name, justify="left" if name in ("point", "status") else "right")
    for row in rows:
        loss = "" if row.loss is None else f"{row.loss:.4f}"
        what = row.status if row.error is None else f"{row.status}: {row.error.splitlines()[0]:.60}"
        table.add_row(label(row.point), f"[{STYLES[row.status]}]{what}[/]", f"{row.step}/{row.steps}", loss)
    return table
