"""How fast tokens come, beside other libraries and beside what the memory can do: greedy decoding, all variants in turns.

A worker (`peftjax.train.bench_worker`) holds all its variants and is asked for one at a time. It times two generations from the same
prompts, of one new token and of `new`; the difference over new - 1 steps is the step, the first is the prefill (with one token).

The limit of a step is the memory: it reads every weight that it holds once (with an embedding that is no head but its few rows). Fractions
are of the rate at which this machine sums an array, and of the rate at which it copies one (read and written counted), both taken in the
same turns. Keys and values are not counted: a program is no faster for reading them.
"""

import contextlib
import dataclasses
import functools
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from peftjax.train.bench_worker import Turns, Worker

ADAPTED = ("lora", "pfeiffer", "houlsby")  # of `peftjax.train.bench.METHODS`
QUANTISED = {"int8": "all-linear=int8,embed=int8", "int4": "all-linear=int4,embed=int4", "stored": "as stored"}  # the last of GGUF files
CASES = ("base", "merged", *ADAPTED, "mixed", *QUANTISED)
MIXED = 8  # LoRAs side by side in "mixed", a row each in turn; batches of one row leave it out
PROMPT, NEW = 128, 64


def weight_bytes(params: Any, tied: bool) -> int:
    """Bytes of weights that a decoding step reads."""
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    return held if tied else held - sum(leaf.nbytes for leaf in jax.tree.leaves(params["embed"]))


def variants(base: Any, cases: Sequence[str]) -> dict[str, Any]:
    """Parameters by case: the plain base, adapters on it, merged into it or side by side in a bank, and the base held quantised (read once
    more).

    Raises:
        ValueError: no such case, or a base that cannot be held so.
    """
    from peftjax.hints import did_you_mean
    from peftjax.interop.base import load_base
    from peftjax.models.decoder import Decoder, unrolled
    from peftjax.peft import attach, merge
    from peftjax.peft.stacking import stack_adapters
    from peftjax.train.bench import METHODS

    def adapted(method: str, seed: int = 0) -> dict:
        return attach(base.params, [METHODS[method]], jax.random.key(seed))

    unknown = [case for case in cases if case not in CASES]
    if unknown:
        raise ValueError(f"no case is called {unknown[0]!r}{did_you_mean(unknown[0], CASES)}; there are {', '.join(CASES)}")
    made = {}
    for case in cases:
        if case in QUANTISED:
            held = load_base(base.uri, quantise=QUANTISED[case])
            made[case] = unrolled(Decoder(held.config), held.params)[1]
        elif case == "base":
            made[case] = base.params
        elif case == "merged":
            made[case] = merge(adapted("lora"))
        elif case == "mixed":
            made[case] = stack_adapters(base.params, [adapted("lora", seed) for seed in range(MIXED)])
        else:
            made[case] = adapted(case)
    return made


def decoding_worker(uri: str, cases: Sequence[str], prompt: int = PROMPT, new: int = NEW) -> tuple[dict[str, Any], dict[str, Callable]]:
    """Our side, unrolled, for `peftjax.train.bench_worker.serve`. Facts: `cases`, `bytes` a step of each reads. Errors of `variants`."""
    from peftjax.interop.base import load_base
    from peftjax.models.decoder import unrolled
    from peftjax.models.generate import generate_ids
    from peftjax.peft.bank import choose
    from peftjax.train.bench_machine import copy_rate, read_rate
    from peftjax.train.config import default_config
    from peftjax.train.startup import make_model, use_compilation_cache

    use_compilation_cache()
    base = load_base(uri)
    model, unstacked = unrolled(make_model(base.config, default_config().model, ()), base.params)
    params = variants(dataclasses.replace(base, params=unstacked), cases)

    def generate(case: str, batch: int) -> dict[str, float]:
        prompts = np.random.default_rng(0).integers(0, base.config.vocab_size, (batch, prompt)).tolist()
        for_rows = (lambda _, rows: mixed(tuple(rows.tolist()))) if case == "mixed" else None
        seconds = []
        for count in (1, new):
            start = time.perf_counter()
            rows = generate_ids(model, params[case], prompts, -1, max_new=count, for_rows=for_rows)  # no token is -1: nothing ends
            seconds.append(time.perf_counter() - start)
            if [len(row) for row in rows] != [count] * batch:
                raise ValueError(f"{case}: rows of {[len(row) for row in rows]} tokens instead of {count}")
        return {"prefill_s": seconds[0], "total_s": seconds[1]}

    mixed = functools.cache(lambda rows: choose(params["mixed"], np.array(rows) % MIXED, gather=True))
    facts = {"cases": list(params), "bytes": {case: weight_bytes(tree, base.config.tied) for case, tree in params.items()}}
    return facts, {"generate": generate, "rates": lambda: {"read": read_rate(), "copy": copy_rate()}}


@dataclasses.dataclass(frozen=True)
class Timed:
    """Seconds of a prefill (with its token), and of a decoding step of the whole batch: the median, and the best of a round."""

    prefill_s: float
    step_s: float
    best_s: float


@dataclasses.dataclass(frozen=True)
class Row:
    """One case at one batch; `over_base` is the step's time over that of the same library's base, None where that was not timed."""

    case: str
    batch: int
    library: str
    timed: Timed
    over_base: float | None


@dataclasses.dataclass(frozen=True)
class Result:
    """Rows of all libraries, ours called "peftjax"; bytes that a step of ours reads by case; bytes/s of a sum and a copy; `idle` as in
    `peftjax.train.bench_worker.Turns`."""

    rows: Sequence[Row]
    weight_bytes: Mapping[str, int]
    read: float
    copy: float
    idle: float | None


def run(commands: Mapping[str, Sequence[str]], batches: Sequence[int], rounds: int, new: int = NEW) -> Result:
    """Times every case of every library in turns, after one round to warm up.

    Args:
        commands: by library the command that serves it; "peftjax" is `decoding_worker`, the facts of others are their `cases`.

    Raises:
        ChildProcessError: a side ended before its time.
    """
    with contextlib.ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(name, command)) for name, command in commands.items()}
        facts = {name: worker.ready() for name, worker in workers.items()}
        turns, seen, rates = Turns(list(workers.values())), {}, []
        order = dict.fromkeys(case for fact in facts.values() for case in fact["cases"])
        asked = [(b, case, name) for b in batches for case in order for name, fact in facts.items() if case in fact["cases"]]
        asked = [one for one in asked if one[1] != "mixed" or one[0] > 1]
        for number in range(rounds + 1):
            for batch, case, name in asked:
                answer = turns.ask(workers[name], "generate", case=case, batch=batch)
                if number:
                    seen.setdefault((batch, case, name), []).append(answer)
            rates.append(turns.ask(workers["peftjax"], "rates"))
            print(f"round {number} of {rounds} done", file=sys.stderr, flush=True)
            turns.idle = turns.idle if number else None
    times = {key: _timed(answers, new) for key, answers in seen.items()}
    rows = []
    for (batch, case, name), timed in times.items():
        base = times.get((batch, "base", name))
        rows.append(Row(case, batch, name, timed, timed.step_s / base.step_s - 1 if base else None))
    read, copy = (statistics.median(rate[what] for rate in rates) for what in ("read", "copy"))
    return Result(rows, facts["peftjax"]["bytes"], read, copy, turns.idle)


def _timed(answers: Sequence[Mapping[str, float]], new: int) -> Timed:
    steps = [(answer["total_s"] - answer["prefill_s"]) / (new - 1) for answer in answers]
    return Timed(statistics.median(answer["prefill_s"] for answer in answers), statistics.median(steps), min(steps))


def as_table(result: Result) -> str:
    """A Markdown table, a line for each case and batch that we have, with the other library that has it too."""
    ours = {(row.batch, row.case): row for row in result.rows if row.library == "peftjax"}
    theirs: dict[tuple[int, str], Row] = {}
    for row in result.rows:
        if row.library != "peftjax":
            theirs.setdefault((row.batch, row.case), row)
    heads = [
        "case", "batch", "prefill ms", "ms/step (best)", "tokens/s", "over base", "weights MB",
        f"of read rate ({result.read / 1e9:.0f} GB/s)", f"of copy rate ({result.copy / 1e9:.0f} GB/s)",
        "peer", "its prefill ms", "its ms/step (best)", "its tokens/s", "its over base", "**speed ratio**",
    ]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "--:|" * 8 + "---|" + "--:|" * 5]
    for key, row in ours.items():
        held, peer = result.weight_bytes[row.case], theirs.get(key)
        cells = [
            row.case, str(row.batch), *_cells(row), f"{held / 1e6:.0f}",
            *(f"{100 * held / row.timed.step_s / rate:.0f} %" for rate in (result.read, result.copy)),
        ]
        if peer is None:
            cells += [""] * 6
        else:
            cells += [peer.library, *_cells(peer), f"{peer.timed.step_s / row.timed.step_s:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cells(row: Row) -> list[str]:
    timed = row.timed
    over = "" if row.over_base is None or row.case == "base" else f"{100 * row.over_base:+.0f} %"
    return [f"{1e3 * timed.prefill_s:.0f}", f"{1e3 * timed.step_s:.1f} ({1e3 * timed.best_s:.1f})", f"{row.batch / timed.step_s:.1f}", over]
