"""A population from its configs to its folders: many runs in one program, each of which could have been run alone.

    outcomes = run_population(configs, workdirs, name="sweep")

Members may be at different steps: one that ends, by its last step, its patience, a loss that is not finite or a comparison, leaves its
place to the next that waits. Each folder is what `peftjax.train.loop.run` leaves, and goes on from where it was by either.
"""

import collections
import contextlib
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from peftjax.interop.base import Base, load_base
from peftjax.peft.partition import combine, size
from peftjax.train.config import check, differences
from peftjax.train.ending import Outcome
from peftjax.train.logs import read_metrics
from peftjax.train.loop import notice
from peftjax.train.population.halving import Halving
from peftjax.train.population.member import Member
from peftjax.train.population.opening import Opening, make_mesh, placed
from peftjax.train.population.program import Program, Stepped
from peftjax.train.population.programs import alone, shared_fields
from peftjax.train.population.stack import Stack
from peftjax.train.prepare import check_reads
from peftjax.train.progress import Progress
from peftjax.train.report import write_report
from peftjax.train.startup import precision, use_compilation_cache
from peftjax.train.workdir import WorkDir, default_workdir


def run_population(
    configs: Sequence[Any], workdirs: Sequence[str | Path] | None = None, *, name: str = "population", base: Base | None = None,
    halving: Halving | None = None, places: int | None = None, say: Callable[[str], None] = print,
) -> list[Outcome]:
    """Trains all configs in one program; see the module.

    Args:
        configs: of runs that can share one (`programs`).
        workdirs: their folders; default `runs/<name>-<hash of the config>`.
        name: for default folders.
        base: loaded already, as the configs have it.
        halving: when members are compared, and how many go on.
        places: how many train at the same time, of each form; default all.
        say: is told results.

    Raises:
        ValueError: configs that cannot share a program, with what differs, or several processes.
    """
    started = time.time()
    folders = [Path(workdir) for workdir in workdirs] if workdirs is not None else [default_workdir(name, config) for config in configs]
    _require_one_program(configs)
    if len(set(folders)) < len(folders) or len(folders) != len(configs):
        raise ValueError(f"{len(configs)} configs need as many folders of their own; found {len(set(folders))}")
    use_compilation_cache()
    with contextlib.ExitStack() as closing:
        population = _Population(configs, folders, halving, say, closing)
        population.open(base, places, started)
        population.train()
        return population.outcomes()


def _require_one_program(configs: Sequence[Any]) -> None:
    if jax.process_count() > 1:
        raise ValueError(f"a population is trained by one process; there are {jax.process_count()}")
    first = shared_fields(configs[0]) if configs else {}
    for number, config in enumerate(configs):
        if differing := differences(first, shared_fields(config)):
            raise ValueError(f"configs 0 and {number} cannot share a program, as peftjax.train.population.programs says: "
                             f"{'; '.join(differing)}")
        if (reason := alone(config)) is not None:
            raise ValueError(f"config {number} cannot share a program: {reason}")


class _Population:
    """The runs by number, those that are still to be trained as members, and their program."""

    def __init__(self, configs, folders, halving, say, closing):
        self.configs, self.folders, self.halving, self.say, self.closing = configs, folders, halving, say, closing
        self.members: dict[int, Member] = {}
        self.ended: dict[int, Outcome] = {}
        self.program: Program | None = None

    # ---- opening -----------------------------------------------------------------------------------------------------

    def open(self, base: Base | None, places: int | None, started: float) -> None:
        """Finds out who is done, and makes members of the others."""
        claimed = {}
        for number, (config, path) in enumerate(zip(self.configs, self.folders, strict=True)):
            with self._failing(number):
                check(config)
                folder = WorkDir(path, config)
                self.closing.callback(folder.close)
                if folder.done:
                    if not (path / "report.md").exists():
                        write_report(path)
                    self.ended[number] = Outcome(path, "done")
                else:
                    claimed[number] = folder
        if not claimed:
            return
        config = self.configs[next(iter(claimed))]
        mesh = make_mesh(min(places or len(claimed), len(claimed)), config.train.mesh.data, config.train.mesh.model)
        if base is None:
            base = load_base(config.base.uri, dtype=precision(config.base.dtype).name, quantise=config.base.quantise)
        opening = Opening(placed(base, config, mesh), mesh, started, self.say, notice, self.closing)
        self.base, self.base_size = opening.base, opening.size
        self.say(f"base {base.uri}: {self.base_size[0]:,} parameters, loaded at {time.time() - started:.1f} s")
        for number, folder in claimed.items():
            if self.halving is None or not (folder.path / "stopped.json").exists():
                with self._failing(number, folder):
                    folder.unmark()
                    member = opening.member(self.configs[number], folder)
                    if self.halving is not None and "validation" not in member.inputs.held:
                        raise ValueError("a halving compares members on validation, and the data has no row there")
                    self.members[number] = member
            else:
                self.ended[number] = Outcome(folder.path, "stopped")
        members = list(self.members.values())
        if members:
            self.program = Program(members, places or len(members), mesh, thinned=self.halving is not None)
            for stack in self.program.stacks:
                first = next(member for member in members if self.program.stack_of(member) is stack)
                check_reads(first.model, first.trainable, combine(first.own, first.base), first.inputs.train.at(0))
            forms = len(self.program.stacks)
            self.say(f"{len(members)} member{'s' * (len(members) > 1)} in {forms} form{'s' * (forms > 1)}, opened at "
                     f"{time.time() - started:.1f} s")

    @contextlib.contextmanager
    def _failing(self, number: int, folder: WorkDir | None = None):
        """What cannot be prepared fails alone."""
        try:
            yield
        except (ValueError, FileNotFoundError) as error:
            self.ended[number] = Outcome(self.folders[number], "failed", str(error))
            if folder is not None:
                folder.mark("failed", {"error": str(error)})
            self.say(f"{self.folders[number].name}: failed: {error}")

    # ---- training ----------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Takes all steps that are left, from rung to rung."""
        running = list(range(len(self.configs)))
        for rung, step in enumerate(self.halving.rungs if self.halving else ()):
            if self.program is None or step >= self.configs[0].train.steps:
                break
            running = [number for number in running if self.ended.get(number, Outcome(Path(), "")).status != "failed"]
            self._drive([n for n in running if n in self.members and self.loss_at(n, step) is None], step)
            losses = [self.loss_at(number, step) for number in running]
            ahead = self.halving.survivors(rung, [float("inf") if loss is None else loss for loss in losses])
            for place, number in enumerate(running):
                if place not in ahead and number not in self.ended:
                    self._stop(number, step, losses[place])
            running = [running[place] for place in ahead]
        self._drive([number for number in running if number in self.members and number not in self.ended], None)

    def loss_at(self, number: int, step: int) -> float | None:
        """The loss by which a run was compared at a rung, as its folder has it; None where it was not."""
        found = [line["rung_loss"] for line in read_metrics(self.folders[number]) if line["step"] == step and "rung_loss" in line]
        return found[-1] if found else None

    def _drive(self, numbers: list[int], until: int | None) -> None:
        """Trains these members to step `until`, where they are compared, or to their ends."""
        if not numbers:
            return
        queue = collections.deque((number, self.members[number]) for number in numbers)
        names = {id(member): number for number, member in queue}
        total = sum((until or m.config.train.steps) - m.step for _, m in queue)
        with contextlib.ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch"))
            progress = stack.enter_context(Progress(total))
            ahead: dict[int, Any] = {}
            taken = 0
            while True:
                for number, member in list(queue):
                    places = self.program.stack_of(member)
                    if places.free:
                        queue.remove((number, member))
                        places.put(member)
                        with self._diverging(number, member, places):
                            self._arrived(number, places, member, until)
                active = [member for places in self.program.stacks for _, member in places.there]
                if not active:
                    return
                batches = {id(m): ahead.pop(id(m)).result() if id(m) in ahead else m.inputs.train.at(m.step) for m in active}
                for member in active:
                    ahead[id(member)] = pool.submit(member.inputs.train.at, member.step + 1)
                done = self.program.step(batches)
                taken += len(done)
                progress.update(min(taken, total), _mean([s.metrics["loss"] for _, s in done]), sum(s.metrics["tokens"] for _, s in done))
                if any([self._stepped(names[id(s.member)], places, s, until) for places, s in done]):
                    progress.restart_clock()
                ahead = {key: future for key, future in ahead.items() if any(id(m) == key for p in self.program.stacks for _, m in p.there)}

    def _stepped(self, number: int, places: Stack, stepped: Stepped, until: int | None) -> bool:
        """Journals a member's step; whether that took long."""
        member, step, long = stepped.member, stepped.member.step, False
        with self._diverging(number, member, places):
            member.journal.count(step, stepped.batch, stepped.metrics, stepped.seconds)
            if member.journal.due(step):
                long = member.journal.keep(step, places.snapshot(places.place(member)))
            long = self._arrived(number, places, member, until) or long
        return long

    def _arrived(self, number: int, places: Stack, member: Member, until: int | None) -> bool:
        """A member that is where it should be leaves its place; whether it did."""
        if member.journal.over(member.step):
            member.journal.complete(member.step, places.snapshot(places.place(member)))
            member.journal.finish(self.base, self.base_size, size(member.trainable))
            self.ended[number] = Outcome(self.folders[number], "done")
            places.drop(places.place(member))
        elif member.step == until:
            member.journal.compare(until, places.snapshot(places.place(member)))
            places.take(places.place(member))
        return places.place(member) is None

    @contextlib.contextmanager
    def _diverging(self, number: int, member: Member, places: Stack):
        """A loss that is not finite ends its own member."""
        try:
            yield
        except FloatingPointError as error:
            places.drop(places.place(member))
            member.journal.folder.mark("failed", {"error": str(error), "step": member.step})
            self.ended[number] = Outcome(self.folders[number], "failed", str(error))
            self.say(f"{member.name}: failed: {error}")

    def _stop(self, number: int, step: int, loss: float | None) -> None:
        """A member that lost a comparison."""
        member = self.members[number]
        loss = loss if loss is not None and math.isfinite(loss) else None
        last = {k: v for k, v in (member.journal.evaluations or [{}])[-1].items() if k != "predictions"}
        member.journal.folder.mark("stopped", {"step": step, "validation_loss": loss, "evaluation": last or None})
        member.arrays = None
        self.ended[number] = Outcome(self.folders[number], "stopped")
        self.say(f"{member.name}: stopped at step {step} with {'no finite loss' if loss is None else f'{loss:.4f} nats'} on validation")

    def outcomes(self) -> list[Outcome]:
        """In the order of the configs."""
        return [self.ended[number] for number in range(len(self.configs))]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
