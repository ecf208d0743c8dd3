"""Measurements that are kept: files for each case, so that what was interrupted goes on, and what was asked before is answered at once.

    found, kept = measured(base, arms, cases, folder, sittings=3)        <folder>/forward-1x32-8f3a0c11d2e4b596-0.json, -1.json, -2.json

A file's name holds a hash of all that decides: base, machine, arms, case, rounds, and whether layers are written out. All arms of a case
are taken together, since their ratios are of the same rounds. A machine is not equally quiet at all hours: a case may be timed in several
sittings, a file for each, whose rounds count as those of one.
"""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from peftjax.files import replacing
from peftjax.interop.base import Base
from peftjax.study.arms import Arm
from peftjax.study.latency import Latency, Row, measure
from peftjax.study.latency_table import as_data, from_data
from peftjax.study.machine import machine, machine_id
from peftjax.study.programs import Case
from peftjax.study.timing import over, spread


def measured(
    base: Base, arms: Sequence[Arm], cases: Sequence[Case], folder: Path, *, rounds: int = 30, budget_s: float = 60.0, unroll: bool = True,
    sittings: int = 1, say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
) -> tuple[Latency, bool]:
    """(as `peftjax.study.latency.measure`, whether nothing had to be measured).

    Args:
        sittings: in which each case is timed at least; all that are there are taken. Every case has one before any has the next.

    Other arguments and errors as of `measure`.
    """
    names = {case: f"{str(case).replace(' ', '-')}-{_key(base, arms, case, rounds, budget_s, unroll)}" for case in cases}
    kept = True
    for sitting in range(sittings):
        for case, name in names.items():
            file = folder / f"{name}-{sitting}.json"
            if not file.exists():
                kept = False
                say(f"{case}: {len(arms)} arms are compiled and timed")
                found = measure(base, arms, [case], rounds=rounds, budget_s=budget_s, unroll=unroll, say=say)
                with replacing(file) as partial:
                    partial.write_text(json.dumps(as_data(found), indent=1) + "\n")
    files = {case: sorted(folder.glob(f"{name}-*.json")) for case, name in names.items()}
    return joined([pooled([from_data(json.loads(file.read_text())) for file in files[case]]) for case in cases]), kept


def pooled(sittings: Sequence[Latency]) -> Latency:
    """Sittings of the same arms in one case as one: their rounds together, and intervals that know of the sittings."""
    rows = []
    for row in sittings[0].rows:
        times, against = ([t for one in sittings for t in one.row(arm, row.case).times] for arm in (row.arm, row.against))
        counts = [len(one.row(row.arm, row.case).times) for one in sittings]
        ratio = None if row.over is None else over(times, against, sittings=counts)
        rows.append(dataclasses.replace(row, times=tuple(times), seconds=spread(times), over=ratio))
    return _with_rows(sittings, rows)


def joined(parts: Sequence[Latency]) -> Latency:
    """Measurements of the same arms in other cases as one."""
    return _with_rows(parts, [row for part in parts for row in part.rows])


def _with_rows(parts: Sequence[Latency], rows: list[Row]) -> Latency:
    """The load is the lowest before and the highest after any of them."""
    refused = {name: why for part in parts for name, why in part.refused.items()}
    load = (min(part.load[0] for part in parts), max(part.load[1] for part in parts))
    return dataclasses.replace(parts[0], rows=rows, refused=refused, load=load)


def _key(base: Base, arms: Sequence[Arm], case: Case, rounds: int, budget_s: float, unroll: bool) -> str:
    asked = {
        "base": base.fingerprint, "dtype": base.dtype, "machine": machine_id(machine()), "arms": [arm.to_data() for arm in arms],
        "case": dataclasses.asdict(case), "rounds": rounds, "budget_s": budget_s, "unroll": unroll,
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
