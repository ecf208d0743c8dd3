"""What methods cost: prompts read, tokens made and steps trained, in turns on one machine; memory; and all over the base's.

    found = measure(load_base(uri), [Arm("base"), Arm("LoRA", (lora(rank=16),))], [Case("forward", 1, 32), Case("decode", 1)])
    print(as_table(found))                                    (`peftjax.study.latency_table`)

Protocol: compiled and warm, waited for, arms in turns in a new order each round, medians with quartiles, and a bootstrap interval of the
ratio to the base in the same rounds (`peftjax.study.timing`). A ratio whose interval is wider than 10 % is no result, and is told as
none. Steps of training have no base to be compared with; they are compared with the first arm that trains.
"""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any

from peftjax.interop.base import Base
from peftjax.models.config import DecoderConfig
from peftjax.models.decoder import Decoder, cut, unrolled
from peftjax.study.arms import Arm, Size, names, size_of
from peftjax.study.machine import load, machine
from peftjax.study.programs import Case, Program, decoding, forward, training
from peftjax.study.timing import Ratio, Spread, in_turns, over, spread
from peftjax.train.startup import precision


@dataclasses.dataclass(frozen=True)
class Row:
    """One arm in one case.

    Attributes:
        arm, case: which.
        seconds: of a prompt, a token of each row, or a step.
        over: how many times as long as `against`; None of `against` itself.
        against: the arm that it is compared with.
        times: of each round in seconds; those of all arms of a case are of the same rounds.
        temporary_bytes, argument_bytes, compile_s: of the program, see `peftjax.study.programs.Program`.
    """

    arm: str
    case: Case
    seconds: Spread
    over: Ratio | None
    against: str
    times: tuple[float, ...]
    temporary_bytes: int
    argument_bytes: int
    compile_s: float


@dataclasses.dataclass(frozen=True)
class Latency:
    """What was measured.

    Attributes:
        base: where it came from; `fingerprint` and `quantise` as in `peftjax.interop.base.Base`.
        unroll: layers written out (as `--unroll` of generation) or scanned.
        sizes: by arm.
        rows: of all arms and cases that could be.
        refused: arms left out, and what was left out of arms as "arm, what", each with the reason.
        machine: as `peftjax.study.machine.machine`.
        load: processes that wanted to run, before and after.
    """

    base: str
    fingerprint: str
    quantise: Any
    unroll: bool
    sizes: dict[str, Size]
    rows: list[Row]
    refused: dict[str, str]
    machine: dict[str, Any]
    load: tuple[float, float]

    def row(self, arm: str, case: Case) -> Row | None:
        """That row, or None where it was not measured."""
        return next((row for row in self.rows if (row.arm, row.case) == (arm, case)), None)


def measure(
    base: Base, arms: Sequence[Arm], cases: Sequence[Case], *, rounds: int = 30, budget_s: float = 60.0, unroll: bool = True,
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
) -> Latency:
    """Times all arms in all cases.

    Args:
        base: a loaded decoder.
        arms: of which one has no methods. An arm that cannot be on this base is left out, and said so.
        rounds, budget_s: of each case, see `peftjax.study.timing.in_turns`.
        unroll: write the layers out, as it is fastest for few tokens; training scans them, as a run does.

    Raises:
        TypeError: the base is an encoder, which makes no tokens.
        ValueError: as `names`.
    """
    if not isinstance(base.config, DecoderConfig):
        raise TypeError(f"{base.uri} is an encoder; latency is of decoders, which read prompts and make tokens")
    names(arms)
    before, refused, sizes = load(), {}, {}
    for arm in arms:
        try:
            sizes[arm.name] = size_of(arm, base.params, base.config)
        except (TypeError, ValueError) as error:
            refused[arm.name] = str(error)
    there = [arm for arm in arms if arm.name in sizes]
    rows: list[Row] = []
    serving = [case for case in cases if case.kind != "train"]
    if serving:
        rows += _served(base, there, serving, rounds, budget_s, unroll, refused, say)
    for case in cases:
        trained = [arm for arm in there if arm.methods and arm.form == "beside"]
        if case.kind == "train" and trained:
            programs = {arm.name: training(base, arm, case) for arm in trained}
            rows += _timed(programs, case, trained[0].name, rounds, budget_s, say)
    return Latency(base.uri, base.fingerprint, base.quantise, unroll, sizes, rows, refused, machine(), (before, load()))


def _served(base, arms, cases, rounds, budget_s, unroll, refused, say) -> list[Row]:
    """Rows of the cases that serve. All arms lie in memory together, and share the base's arrays where they can."""
    model, params = Decoder(base.config, dtype=precision("auto")), base.params
    if unroll:
        model, params = unrolled(model, params)
    cuts = {arm.name: model.segments if unroll else arm.segments(base.config) for arm in arms}
    held: dict[str, dict] = {}
    reference, rows = next(arm.name for arm in arms if not arm.methods), []
    for case in cases:
        programs = {}
        for arm in arms:
            if arm.form == "bank" and case.batch == 1:
                refused[f"{arm.name}, batches of one row"] = "one row has one adapter"
                continue
            if arm.name not in held:
                held[arm.name] = arm.params(cut(params, base.config, cuts[arm.name]))
            tree = arm.rows(held[arm.name], case.batch, gather=case.kind == "decode")
            build = decoding if case.kind == "decode" else forward
            programs[arm.name] = build(model.clone(segments=cuts[arm.name]), tree, case)
        rows += _timed(programs, case, reference, rounds, budget_s, say)
    return rows


def _timed(programs: dict[str, Program], case: Case, reference: str, rounds: int, budget_s: float, say) -> list[Row]:
    say(f"{case}: {len(programs)} programs compiled in {sum(program.compile_s for program in programs.values()):.1f} s, and now timed")
    seconds = in_turns({name: program.call for name, program in programs.items()}, rounds, budget_s)
    say(f"{case}: {len(seconds[reference])} rounds of {len(programs)} arms")
    return [
        Row(
            name, case, spread(seconds[name]), None if name == reference else over(seconds[name], seconds[reference]), reference,
            tuple(seconds[name]), program.temporary_bytes, program.argument_bytes, program.compile_s,
        )
        for name, program in programs.items()
    ]


