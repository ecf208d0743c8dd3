"""What each treatment costs, measured side by side on this machine: a step, a prompt with the adapter beside the base and folded in, bytes.

    {"method", "budget", "parameters", "stored_bytes", "merges", "step_s": {"median", "low", "high"}, "temporary_bytes",
     "latency": {"forward 1x32": {"beside": {"value", "low", "high"}, "merged": ...}}}          times the base's own, with intervals

Times are those of `peftjax.study.latency`: compiled, in turns, medians with quartiles. All treatments are taken together in each case, so
that they are of one hour of one machine; a case that was measured is kept in <study>/costs, and where a treatment is new, all are taken
again.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from peftjax.interop.base import Base
from peftjax.models.config import DecoderConfig
from peftjax.peft.spec import from_data
from peftjax.study.arms import Arm
from peftjax.study.cells import Treatment
from peftjax.study.latency import Latency, measure
from peftjax.study.latency_kept import measured
from peftjax.study.programs import Case

PROMPT = Case("forward", 1, 32)  # of which a budget of latency is
PROMPTS = (PROMPT, Case("forward", 8, 128))


def forward_s(base: Base, methods: Sequence[Any]) -> float:
    """Median seconds in which a prompt is read, the methods beside the base."""
    return measure(base, [Arm("base"), Arm("methods", tuple(methods))], [PROMPT], say=lambda _: None).row("methods", PROMPT).seconds.median


def costs_of(
    study: ConfigDict, base: Base, treatments: Sequence[Treatment], folder: Path, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """{"rows": one a treatment, "machine", "load"}; what lies in `folder` of the same base, machine, treatments and rounds is read again.
    No rows where nothing is to be timed, or the base is an encoder."""
    timing = study.timing
    if not timing.rounds or not isinstance(base.config, DecoderConfig):
        return {"rows": []}
    step = Case("train", study.run.train.batch_size, study.run.data.length)
    arms = [Arm("base")] + [Arm(_name(one), tuple(from_data(dict(each)) for each in one.specifications)) for one in treatments]
    say(f"costs of {len(treatments)} treatments, in turns")
    beside, _ = measured(base, arms, [*PROMPTS, step], folder, rounds=timing.rounds, budget_s=timing.budget_s, say=say)
    merging = [arm for arm in arms if not arm.methods or beside.sizes[arm.name].merges]
    merging = [dataclasses.replace(arm, form="merged") if arm.methods else arm for arm in merging]
    merged = None
    if len(merging) > 1:
        merged, _ = measured(base, merging, PROMPTS, folder, rounds=timing.rounds, budget_s=timing.budget_s, say=say)
    rows = [_row(one, beside, merged, step) for one in treatments]
    return {"rows": rows, "machine": beside.machine, "load": list(beside.load)}


def _name(one: Treatment) -> str:
    return f"{one.method}, {one.budget}"


def _row(one: Treatment, beside: Latency, merged: Latency | None, step: Case) -> dict[str, Any]:
    name = _name(one)
    training, size = beside.row(name, step), beside.sizes[name]
    latency = {}
    for case in PROMPTS:
        forms = {"beside": beside.row(name, case), "merged": merged.row(name, case) if merged is not None and size.merges else None}
        latency[str(case)] = {form: None if row is None else dataclasses.asdict(row.over) for form, row in forms.items()}
    return {
        "method": one.method, "budget": one.budget, "parameters": size.trainable, "stored_bytes": size.stored_bytes,
        "merges": size.merges, "step_s": dataclasses.asdict(training.seconds), "temporary_bytes": training.temporary_bytes,
        "latency": latency,
    }
