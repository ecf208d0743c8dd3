"""Measurements that are kept: a file for each case, so that what was interrupted goes on, and what was asked before is answered at once.

    found, kept = measured(base, arms, cases, folder)        <folder>/forward-1x32-8f3a0c11d2e4b596.json, ...

A file's name holds a hash of all that decides: base, machine, arms, case, rounds, and whether layers are written out. All arms of a case
are taken together, since their ratios are of the same rounds.
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
from peftjax.study.latency import Latency, measure
from peftjax.study.latency_table import as_data, from_data
from peftjax.study.machine import machine, machine_id
from peftjax.study.programs import Case


def measured(
    base: Base, arms: Sequence[Arm], cases: Sequence[Case], folder: Path, *, rounds: int = 30, budget_s: float = 60.0, unroll: bool = True,
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
) -> tuple[Latency, bool]:
    """(as `peftjax.study.latency.measure`, whether nothing had to be measured). Arguments and errors as there."""
    parts, kept = [], True
    for case in cases:
        file = folder / f"{str(case).replace(' ', '-')}-{_key(base, arms, case, rounds, budget_s, unroll)}.json"
        if not file.exists():
            kept = False
            found = measure(base, arms, [case], rounds=rounds, budget_s=budget_s, unroll=unroll, say=say)
            with replacing(file) as partial:
                partial.write_text(json.dumps(as_data(found), indent=1) + "\n")
        parts.append(from_data(json.loads(file.read_text())))
    return joined(parts), kept


def joined(parts: Sequence[Latency]) -> Latency:
    """Measurements of the same arms as one. The load is the lowest before and the highest after any of them."""
    rows = [row for part in parts for row in part.rows]
    refused = {name: why for part in parts for name, why in part.refused.items()}
    load = (min(part.load[0] for part in parts), max(part.load[1] for part in parts))
    return dataclasses.replace(parts[0], rows=rows, refused=refused, load=load)


def _key(base: Base, arms: Sequence[Arm], case: Case, rounds: int, budget_s: float, unroll: bool) -> str:
    asked = {
        "base": base.fingerprint, "dtype": base.dtype, "machine": machine_id(machine()), "arms": [arm.to_data() for arm in arms],
        "case": dataclasses.asdict(case), "rounds": rounds, "budget_s": budget_s, "unroll": unroll,
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
