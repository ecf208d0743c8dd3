"""The training step here and in another library, in turns: tokens a second, peaks of memory, first steps, and their ratios.

Each side is a process of its own (`peftjax.train.bench_worker`) that has taken its first step and then takes one at a time. Both train
the same number of parameters on the same tokens; their first losses stand side by side, and differ only where initial values do. A turn is
two steps, of which the second counts: a process that waits gives freed memory back, and has to get it again in its first step.
"""

import contextlib
import dataclasses
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from peftjax.train.bench_worker import Turns, Worker

MACHINE = (sys.executable, "-m", "peftjax.train.bench_machine")


@dataclasses.dataclass(frozen=True)
class Side:
    """One library's half of a row: seconds a step (median), seconds of the first step with compilation, bytes at the peak, first loss."""

    name: str
    trainable: int
    step_s: float
    first_step_s: float
    peak_bytes: int
    loss: float


@dataclasses.dataclass(frozen=True)
class Row:
    """A case: FLOPs of a step, bytes of temporaries, FLOP/s of the machine's GEMM between the steps; `peer` is None where none was asked,
    `idle` as in `peftjax.train.bench_worker.Turns`."""

    method: str
    remat: str
    batch: int
    length: int
    flops: float
    temporary_bytes: int
    gemm: float
    ours: Side
    peer: Side | None
    idle: float | None

    @property
    def tokens(self) -> int:
        return self.batch * self.length


def training_worker(
    uri: str, method: str, batch: int, length: int, remat: str, quantise: str | None = None, cache: bool = False
) -> tuple[dict[str, Any], dict[str, Callable]]:
    """Our side, for `peftjax.train.bench_worker.serve`: loads a base, takes the first step.

    Args:
        method: a name in `peftjax.train.bench.METHODS`.
        quantise: as `peftjax.interop.base.load_base`; None holds the base in float32.
        cache: use the compilation cache, as a run does; else the first step compiles.

    Raises:
        ValueError: no such method.
    """
    import jax

    from peftjax.hints import did_you_mean
    from peftjax.interop.base import load_base
    from peftjax.train.bench import METHODS, begin
    from peftjax.train.memory import peak_memory_bytes
    from peftjax.train.startup import use_compilation_cache

    if method not in METHODS:
        raise ValueError(f"no case is called {method!r}{did_you_mean(method, METHODS)}; there are {', '.join(METHODS)}")
    use_compilation_cache()
    jax.config.update("jax_enable_compilation_cache", cache)
    base = load_base(uri, **({} if quantise is None else {"quantise": quantise}))
    begun, step = begin(base, METHODS[method], batch, length, remat)
    commands = {
        "step": lambda: {"seconds": [step(), step()][-1]},
        "peak": lambda: {"bytes": peak_memory_bytes()["peak_rss_bytes"]},
    }
    return dataclasses.asdict(begun), commands


def write_base(uri: str, folder: str) -> None:
    """The base as a directory that the peers load."""
    from peftjax.interop.base import load_base
    from peftjax.interop.hf import write_directory

    base = load_base(uri)
    write_directory(folder, base.config, base.params)


def compare(
    case: tuple[str, str, int, int], sides: Mapping[str, Sequence[str]], steps: int, machine: Sequence[str] = MACHINE
) -> Row:
    """Times one case.

    Args:
        case: method, remat, batch, length.
        sides: by library the command that serves its half: ours, which serves `training_worker`, and after it the peer's, if any.
        steps: of each side; two more to warm up, the first of which is timed apart.
        machine: the command that serves the GEMM's rate, in a process of its own: its arrays are no part of a step's memory.

    Raises:
        ChildProcessError: a side ended before its time.
        ValueError: the two train different numbers of parameters.
    """
    with contextlib.ExitStack() as stack:
        workers, facts = [], []
        for name, command in sides.items():  # one after another: the first step of each is timed with the others asleep
            workers.append(stack.enter_context(Worker(name, command)))
            facts.append(workers[-1].ready())
        rate = stack.enter_context(Worker("the machine's GEMM", machine))
        rate.ready()
        return _row(case, workers, rate, facts, steps)


def _row(case: tuple[str, str, int, int], workers: list[Worker], rate: Worker, facts: list[dict], steps: int) -> Row:
    names = [worker.name for worker in workers]
    counts = [fact["trainable"] for fact in facts]
    if len(set(counts)) > 1:
        raise ValueError(f"{case[0]}: {names[0]} trains {counts[0]:,} parameters, {names[1]} {counts[1]:,}; that is not the same work")
    turns, seconds, gemm = Turns([*workers, rate]), [[] for _ in workers], []
    for number in range(steps + 1):
        for worker, times in zip(workers, seconds, strict=True):
            times.append(turns.ask(worker, "step")["seconds"])
        gemm.append(turns.ask(rate, "gemm")["flops"])
        if number == 0:  # a second step to warm up: allocators settle
            seconds, gemm = [[] for _ in workers], []
            turns.idle = None
    sides = [
        Side(name, fact["trainable"], statistics.median(times), fact["first_step_s"], worker.ask("peak")["bytes"], fact["loss"])
        for name, fact, times, worker in zip(names, facts, seconds, workers, strict=True)
    ]
    return Row(
        *case, facts[0]["flops"], facts[0]["temporary_bytes"], statistics.median(gemm), sides[0], sides[1] if len(sides) > 1 else None,
        turns.idle,
    )


def cold_starts(sides: Mapping[str, Sequence[str]], times: int) -> dict[str, list[float]]:
    """Seconds from the start of a process to its first finished step, `times` of each command, in turns; after one of each uncounted, which
    fills the compilation cache and the file cache. Errors as in `compare`."""
    seconds = {name: [] for name in sides}
    for number in range(times + 1):
        for name, command in sides.items():
            with Worker(name, command) as worker:
                worker.ready()
                if number:
                    seconds[name].append(worker.ready_s)
    return seconds


def as_table(rows: Sequence[Row]) -> str:
    """The cases as a Markdown table; the peer's columns are there where any row has one."""
    peers = any(row.peer for row in rows)
    heads = ["method", "remat", "batch x length", "s/step", "tokens/s", "of GEMM rate", "temporaries MB", "peak RSS MB", "first step s"]
    if peers:
        heads += ["peer", "its tokens/s", "**speed ratio**", "its peak RSS MB", "**peak ratio**", "its first step s"]
    lines = ["| " + " | ".join(heads) + " |", "|---|---|---|" + "--:|" * 6 + ("---|" + "--:|" * 5 if peers else "")]
    for row in rows:
        ours, peer = row.ours, row.peer
        cells = [
            row.method, row.remat, f"{row.batch} x {row.length}", f"{ours.step_s:.2f}", f"{row.tokens / ours.step_s:.0f}",
            f"{100 * row.flops / ours.step_s / row.gemm:.0f} % of {row.gemm / 1e9:.0f}", f"{row.temporary_bytes / 1e6:.0f}",
            f"{ours.peak_bytes / 1e6:.0f}", f"{ours.first_step_s:.1f}",
        ]
        if peers and peer is None:
            cells += [""] * 6
        elif peers:
            cells += [
                peer.name, f"{row.tokens / peer.step_s:.0f}", f"{peer.step_s / ours.step_s:.2f}", f"{peer.peak_bytes / 1e6:.0f}",
                f"{ours.peak_bytes / peer.peak_bytes:.2f}", f"{peer.first_step_s:.1f}",
            ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def describe(row: Row) -> str:
    """One line on a finished case, with what shows that the comparison is fair: first losses, and how idle the waiting side was."""
    sides = [side for side in (row.ours, row.peer) if side]
    text = f"{row.method} {row.batch}x{row.length} remat {row.remat}: " + ", ".join(
        f"{side.name} {row.tokens / side.step_s:.0f} tokens/s (first loss {side.loss:.4f}, {side.trainable:,} trained)" for side in sides
    )
    return text if row.idle is None else f"{text}; while waiting at most {100 * row.idle:.1f} % of a core"


def cold_table(seconds: dict[str, list[float]]) -> str:
    """Cold starts as a Markdown table: median and all of them."""
    lines = ["| process start to first step done | median s | each |", "|---|--:|---|"]
    return "\n".join(lines + [
        f"| {name} | {statistics.median(times):.1f} | {', '.join(f'{t:.1f}' for t in times)} |" for name, times in seconds.items()
    ])
