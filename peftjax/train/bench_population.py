"""K members in one program against K runs of their own: seconds a step, memory, and a search by halving, as ratios in one run.

Members are LoRAs of rank 16 on all linear layers with rates, seeds and data of their own, on dense batches (`peftjax.train.bench`). The
solo step is the one that a run takes; K of them are what K runs take, one after another, once each is compiled and has its base loaded. A
population compiles once and loads one base; what that saves is not in the ratio of steps.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import jax
import numpy as np

from peftjax.data.layouts import Shape
from peftjax.data.packing import Batch
from peftjax.interop.base import Base
from peftjax.models.config import DecoderConfig
from peftjax.models.decoder import init_params
from peftjax.nn.tree import flatten
from peftjax.peft import lora
from peftjax.peft.partition import combine, size
from peftjax.train.bench import begin_compiled, dense_batch
from peftjax.train.bench_worker import Worker
from peftjax.train.config import default_config, methods
from peftjax.train.loss import token_losses
from peftjax.train.population.halving import Halving
from peftjax.train.population.member import Member, waiting
from peftjax.train.population.opening import make_mesh, placed
from peftjax.train.population.program import Program
from peftjax.train.prepare import prepare_model

# About a million parameters, as of the T128 of the studies: where a step is bound by what surrounds the products.
SMALL = DecoderConfig(vocab_size=1024, width=128, layers=4, heads=4, kv_heads=4, head_size=32, ff=352, tied=True)


def small_base() -> Base:
    """A random base of `SMALL`."""
    return Base("a million random parameters", SMALL, init_params(SMALL, jax.random.key(0)), None, "")


@dataclasses.dataclass(frozen=True)
class Dense:
    """Training batches of random tokens in which every position carries loss; see `peftjax.data.batches.Batches`."""

    vocabulary: int
    lines: int
    length: int
    seed: int

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The one shape."""
        return (Shape(self.lines, self.length, self.length),)

    def at(self, step: int) -> Batch:
        """As of `Batches`."""
        return dense_batch(self.vocabulary, self.lines, self.length, 1000 * self.seed + step)

    def empty(self, shape: Shape) -> Batch:
        """As of `Batches`."""
        return jax.tree.map(lambda x: 0 * x, self.at(0))


def members(base: Base, count: int, batch: int, length: int, steps: int = 1000) -> tuple[list[Member], Base]:
    """Members without folders, as the bench steps them, and the base that they lie on."""
    made, mesh = [], make_mesh(count)
    for number in range(count):
        config = default_config()
        config.peft, config.train.batch_size, config.data.length = methods(lora(rank=16)), batch, length
        config.train.steps, config.train.seed, config.optimizer.learning_rate = steps, number, 1e-4 * (number + 1)
        if not made:
            base = placed(base, config, mesh)
            leaves = flatten(base.params)
        prepared = prepare_model(config, base, mesh)
        inputs = SimpleNamespace(train=Dense(base.config.vocab_size, batch, length, number))
        made.append(waiting(config, inputs, None, prepared, prepared.state, leaves))
    return made, base


@dataclasses.dataclass(frozen=True)
class Row:
    """A case: seconds of K solo steps and of the population's one, medians of turns; bytes of base, of K members' states, and of what the
    compiled steps hold beside them; compilation and first step of each."""

    name: str
    count: int
    batch: int
    length: int
    solo_s: float
    together_s: float
    base_bytes: int
    state_bytes: int
    solo_temporary: int
    temporary: int
    solo_first_s: float
    first_s: float
    width: int

    @property
    def ratio(self) -> float:
        """Of the population to K runs."""
        return self.together_s / self.solo_s


def compare(name: str, base: Base, count: int, batch: int, length: int, turns: int = 5, width: int | None = None) -> Row:
    """Steps of K runs and of a population of K, in turns."""
    begun, solo, _ = begin_compiled(base, lora(rank=16), batch, length)
    made, base = members(base, count, batch, length)
    program = population(made, width)
    [compiled] = [lowered.compile() for lowered in program.lowered()]
    step = stepping(program, made)
    first = step()
    pairs = [(sum(solo() for _ in range(count)), step()) for _ in range(turns)]
    state = sum(leaf.nbytes for stack in program.stacks for chunk in stack.state for leaf in chunk.values())
    return Row(
        name, count, batch, length, statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs), size(base.params)[1],
        state, begun.temporary_bytes, compiled.memory_analysis().temp_size_in_bytes, begun.first_step_s, first, program.stacks[0].width,
    )


def population(made: Sequence[Member], width: int | None = None, thinned: bool = False) -> Program:
    """The program of these members, each in its place."""
    program = Program(made, len(made), make_mesh(len(made)), width, thinned)
    for member in made:
        program.stack_of(member).put(member)
    return program


def stepping(program: Program, made: Sequence[Member]) -> Callable[[], float]:
    """One step of all, as its seconds."""

    def step() -> float:
        done = program.step({id(member): member.inputs.train.at(member.step) for member in made})
        return sum(stepped.seconds for _, stepped in done)

    return step


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep of `count` LoRAs of `steps` here and in HF PEFT, which trains one after another: seconds until a side has done its first
    step, here of all, there of one; and of a step of all, medians of turns."""

    count: int
    steps: int
    ours_ready_s: float
    ours_s: float
    peer_ready_s: float
    peer_s: float

    @property
    def ratio(self) -> float:
        """Of all steps, start-up counted on both sides."""
        ours = self.ours_ready_s + (self.steps - 1) * self.ours_s
        return ours / (self.peer_ready_s + (self.steps - 1 / self.count) * self.peer_s)


def sweep(load: Callable[[], Base], command: Sequence[str], count: int, batch: int, length: int, steps: int, turns: int = 2) -> Sweep:
    """Steps of a population and as many of a peer (scripts/peers/bench_train_peer.py, `command`) in turns."""
    with Worker("HF PEFT", command) as peer:
        peer.ready()
        begin = time.perf_counter()
        made, _ = members(load(), count, batch, length)
        program = population(made)
        step = stepping(program, made)
        step()
        ready = time.perf_counter() - begin
        pairs = [(step(), sum(peer.ask("step")["seconds"] for _ in range(count // 2)) * count / (count // 2)) for _ in range(turns)]
    return Sweep(
        count, steps, ready, statistics.median(a for a, _ in pairs), peer.ready_s, statistics.median(b for _, b in pairs)
    )


@dataclasses.dataclass(frozen=True)
class Search:
    """The best of `count` points: seconds of training all of them, and with successive halving; the numbers of the points found."""

    count: int
    steps: int
    all_s: float
    halving_s: float
    best: int
    found: int


def search(base: Base, batch: int, length: int, halving: Halving, count: int = 16, steps: int = 200) -> Search:
    """Trains points that differ in learning rate to the end, all of them and by halving, on one program each; compilation apart, the
    comparisons counted. Points are told apart by their loss on the batch of a seed that none trains on."""
    held = Dense(base.config.vocab_size, batch, length, 10_000).at(0)

    def run(rungs) -> tuple[float, int]:
        made, on = members(base, count, batch, length, steps)
        program = population(made, thinned=bool(rungs))
        stack = program.stacks[0]
        measure = jax.jit(lambda trainable, frozen: token_losses(made[0].model, combine(trainable, frozen), held)[0].mean())
        losses = lambda: [float(measure(*stack.snapshot(place)[:2])) for place, _ in stack.there]  # noqa: E731
        stepping(program, made)(), losses()
        begin, running = time.perf_counter(), list(made)
        for rung, until in enumerate([*rungs, steps]):
            step = stepping(program, running)
            while running[0].step < until:
                step()
            there = [member for _, member in stack.there]
            ahead = halving.survivors(rung, losses()) if until < steps else [int(np.argmin(losses()))]
            for number, member in enumerate(there):
                if number not in ahead:
                    stack.drop(stack.place(member))
            running = [there[number] for number in ahead]
        return time.perf_counter() - begin, made.index(running[0])

    (all_s, best), (halving_s, found) = run(()), run(halving.rungs)
    return Search(count, steps, all_s, halving_s, best, found)


def as_table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = [
        "| base | K | batch x length | W | K solo steps, s | one population step, s | ratio | base, MB | K states, MB | temporaries solo / "
        "population, MB | first step solo / population, s |",
        "|---|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        lines.append(
            f"| {row.name} | {row.count} | {row.batch} x {row.length} | {row.width} | {row.solo_s:.3f} | {row.together_s:.3f} | "
            f"**{row.ratio:.2f}** | {row.base_bytes / 1e6:.0f} | {row.state_bytes / 1e6:.0f} | {row.solo_temporary / 1e6:.0f} / "
            f"{row.temporary / 1e6:.0f} | {row.solo_first_s:.1f} / {row.first_s:.1f} |"
        )
    return "\n".join(lines)
