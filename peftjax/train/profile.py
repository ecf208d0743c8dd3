"""Where the time of a training step goes: the compiled program's instructions, timed by the profiler, with their FLOPs and origin.

    profile_step(base, method, 4, 256)   -> Profile; `as_table` writes it out

The profiler's events carry the names of the compiled program's instructions; the program's text says for each of them which products it
holds (their shapes give the FLOPs) and which line of the model it stems from (`op_name`). On a CPU several instructions may run at a
time, so that their times add up to more than the step's.
"""

import collections
import dataclasses
import re
import tempfile
from pathlib import Path
from typing import Any

import jax

from peftjax.interop.base import Base
from peftjax.train.bench import begin_compiled
from peftjax.train.bench_machine import gemm_rate

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)$")
_SHAPE = re.compile(r"\w+\[([\d,]*)\]")
_WHERE = re.compile(r"(?:Decoder|Encoder)\.\w+|(?:blocks\w*|head|embed|final_norm)(?:/[a-z_]\w*)*")


@dataclasses.dataclass(frozen=True)
class Op:
    """An instruction of the compiled step: seconds in all its calls, FLOPs of the products in it (all calls), and its origin:
    `phase` (forward, backward, recomputed, update) and `where` (module of the model)."""

    name: str
    calls: int
    seconds: float
    flops: float
    phase: str
    where: str


@dataclasses.dataclass(frozen=True)
class Profile:
    """A profiled step: seconds of an undisturbed step, counted FLOPs of it, bytes, FLOP/s of the machine's GEMM, and its instructions."""

    step_s: float
    flops: float
    gemm: float
    temporary_bytes: int
    argument_bytes: int
    ops: list[Op]


def profile_step(base: Base, method: Any, batch: int, length: int, remat: str = "auto") -> Profile:
    """Compiles and takes the steps of one case (`peftjax.train.bench`): some timed, one under the profiler."""
    begun, step, compiled = begin_compiled(base, method, batch, length, remat)
    times = sorted(step() for _ in range(3))
    gemm = gemm_rate()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            step()
        events = _events(folder)
    memory = compiled.memory_analysis()
    return Profile(
        times[1], begun.flops, gemm, begun.temporary_bytes, memory.argument_size_in_bytes, match(events, compiled.as_text()),
    )


def _events(folder: str) -> dict[str, tuple[int, float]]:
    """Name of an event -> (how often, seconds in all), over all threads and devices."""
    found: dict[str, list] = collections.defaultdict(lambda: [0, 0.0])
    for file in Path(folder).rglob("*.xplane.pb"):
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
            for line in plane.lines:
                for event in line.events:
                    entry = found[event.name]
                    entry[0] += 1
                    entry[1] += event.duration_ns / 1e9
    return {name: tuple(entry) for name, entry in found.items()}


def match(events: dict[str, tuple[int, float]], program: str) -> list[Op]:
    """The instructions of a compiled program (its text) that events are named after, slowest first."""
    computations: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in program.splitlines():
        begins = _COMPUTATION.match(line)
        if begins:
            lines = computations.setdefault(begins[1], [])
        else:
            lines.append(line)
    ops = []
    for body in computations.values():
        for line in body:
            instruction = _INSTRUCTION.match(line)
            if instruction is None or instruction[1] not in events:
                continue
            called = re.search(r"calls=%?([\w.\-]+)", line)
            calls, seconds = events[instruction[1]]
            flops = calls * product_flops(computations.get(called[1], []) if called else [line], body)
            origin = re.search(r'op_name="([^"]*)"', line)
            if instruction[3] not in ("while", "call", "conditional"):  # their bodies are listed themselves
                ops.append(Op(instruction[1], calls, seconds, flops, *_origin(origin[1] if origin else "")))
    return sorted(ops, key=lambda op: -op.seconds)


def product_flops(lines: list[str], around: list[str] = ()) -> float:
    """FLOPs of the products among some instructions of one computation; `around` are those that operands may be defined in."""
    shapes = {}
    for line in (*around, *lines):
        instruction = _INSTRUCTION.match(line)
        shape = _SHAPE.match(instruction[2]) if instruction else None
        if shape:
            shapes[instruction[1]] = [int(size) for size in shape[1].split(",") if size]
    total = 0.0
    for line in lines:
        instruction = _INSTRUCTION.match(line)
        if instruction is None or instruction[3] != "dot":
            continue
        operand = re.search(r"%([\w.\-]+)", instruction[4])
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line)
        flops = 2.0
        for size in shapes[instruction[1]]:
            flops *= size
        for axis in contracted[1].split(","):
            flops *= shapes[operand[1]][int(axis)]
        total += flops
    return total


def _origin(op_name: str) -> tuple[str, str]:
    """`jit(step)/transpose(jvp(..))/../blocks/mlp/up/dot_general` -> ("backward", "blocks/mlp/up")."""
    if "rematted_computation" in op_name:
        phase = "recomputed"
    elif "transpose(" in op_name:
        phase = "backward"
    else:
        phase = "forward" if "jvp(" in op_name else "update"
    places = _WHERE.findall(op_name)
    where = places[-1] if places else ""
    where = where.rpartition("/")[0] if where.count("/") else where  # the last part is the operation
    return phase, re.sub(r"^blocks\w*", "blocks", where) or "elsewhere"


def as_table(profile: Profile, top: int = 25) -> str:
    """The step, its parts by origin and its slowest instructions, as Markdown."""
    rate = profile.flops / profile.step_s
    lines = [
        f"step {profile.step_s:.2f} s, {profile.flops / 1e9:.0f} GFLOP needed: {rate / 1e9:.0f} GFLOP/s, {100 * rate / profile.gemm:.0f} % "
        f"of this machine's {profile.gemm / 1e9:.0f}; temporaries {profile.temporary_bytes / 1e6:.0f} MB, arguments "
        f"{profile.argument_bytes / 1e6:.0f} MB", "", "| phase | where | seconds | GFLOP | GFLOP/s |", "|---|---|--:|--:|--:|",
    ]
    groups: dict[tuple[str, str], list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
    for op in profile.ops:
        entry = groups[op.phase, op.where]
        entry[0] += op.seconds
        entry[1] += op.flops
    for (phase, where), (seconds, flops) in sorted(groups.items(), key=lambda item: -item[1][0])[:top]:
        lines.append(f"| {phase} | {where} | {seconds:.3f} | {flops / 1e9:.1f} | {flops / seconds / 1e9:.0f} |")
    products = sum(op.seconds for op in profile.ops if op.flops)
    rest = sum(op.seconds for op in profile.ops if not op.flops)
    lines += ["", f"instructions with products {products:.2f} s, others {rest:.2f} s", "",
              "| instruction | calls | seconds | GFLOP/s | phase | where |", "|---|--:|--:|--:|---|---|"]
    for op in profile.ops[:top]:
        lines.append(f"| {op.name} | {op.calls} | {op.seconds:.3f} | {op.flops / op.seconds / 1e9:.0f} | {op.phase} | {op.where} |")
    return "\n".join(lines)
