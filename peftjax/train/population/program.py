"""One compiled step of all members, whatever their forms.

Members of one form lie on a stack. The stacks of several forms are stepped in the same program, if each is mapped over whole; one that is
stepped chunk by chunk, as a CPU does with a large base, has a program of its own, called for each chunk: a loop within the program would
copy the chunk's state out and in again. What stands in which place is data: members come, go and end without another compilation.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from peftjax.data.packing import Batch
from peftjax.train.population.form import key_of
from peftjax.train.population.member import Member
from peftjax.train.population.stack import METRICS, Stack


@dataclasses.dataclass(frozen=True)
class Stepped:
    """What a step made of one member: its place, the batch it read, its metrics (Python floats), and its share of the seconds."""

    place: int
    member: Member
    batch: Batch
    metrics: dict[str, float]
    seconds: float


class Program:
    """Places for members, and the step of all that have one.

    Args:
        members: all that will ever have a place.
        places: how many have one at the same time, of each form.
        mesh: with axes "members", "data" and "model".
        width: how many members of a form are mapped over together; None chooses (`peftjax.train.population.stack`).
        thinned: whether most members end early, as by a halving: then fewer are.
    """

    def __init__(self, members: Sequence[Member], places: int, mesh: Mesh, width: int | None = None, thinned: bool = False):
        by_form: dict[tuple, list[Member]] = {}
        for member in members:
            by_form.setdefault(key_of(member), []).append(member)
        self.stacks = [Stack(group, min(places, len(group)), mesh, width, thinned) for group in by_form.values()]
        self._of = {id(member): stack for stack, group in zip(self.stacks, by_form.values(), strict=True) for member in group}
        whole = [stack for stack in self.stacks if stack.chunks == 1]
        groups = [[stack] for stack in self.stacks if stack.chunks > 1] + ([whole] if whole else [])
        self._groups = [(stacks, _compiled(stacks)) for stacks in groups]

    def stack_of(self, member: Member) -> Stack:
        """The stack on which it has, or will have, a place."""
        return self._of[id(member)]

    @property
    def compilations(self) -> int:
        """How often steps were compiled."""
        return sum(step._cache_size() for _, step in self._groups)

    def lowered(self) -> list[jax.stages.Lowered]:
        """The steps as they would be compiled for what is there now."""
        given = {id(stack): {p: m.inputs.train.at(m.step) for p, m in stack.there} for stack in self.stacks}
        return [step.lower(*_arguments(stacks, 0, given)) for stacks, step in self._groups]

    def step(self, batches: dict[int, Batch]) -> list[tuple[Stack, Stepped]]:
        """Takes a step of every member that has a place. `batches` has each member's next, by `id`."""
        begin = time.perf_counter()
        for stack in self.stacks:
            stack.compact()
        given = {id(stack): {place: batches[id(member)] for place, member in stack.there} for stack in self.stacks}
        metrics = {}
        for stacks, step in self._groups:
            for chunk in range(max(stack.working() for stack in stacks)):
                states, found = step(*_arguments(stacks, chunk, given))
                for stack, state in zip(stacks, states, strict=True):
                    stack.state[chunk] = state
                # Waited for: chunks that are stepped at once hold their temporaries at once.
                metrics |= {(id(stack), chunk): values for stack, values in zip(stacks, jax.device_get(found), strict=True)}
        share = (time.perf_counter() - begin) / sum(map(len, given.values()))
        done = []
        for stack in self.stacks:
            for place, member in stack.there:
                chunk, at = divmod(place, stack.width)
                member.step += 1
                values = {name: float(metrics[id(stack), chunk][name][at]) for name in METRICS}
                done.append((stack, Stepped(place, member, given[id(stack)][place], values, share)))
        return done


def _arguments(stacks: Sequence[Stack], chunk: int, given: dict[int, dict[int, Batch]]) -> tuple[list, ...]:
    """Of a group's step: states, own, numbers, batches and bases of its stacks."""
    parts = [
        (stack.state[chunk], stack.own[chunk], stack.numbers[chunk], stack.batches(chunk, given[id(stack)]), stack.form.base)
        for stack in stacks
    ]
    return tuple(map(list, zip(*parts, strict=True)))


def _compiled(stacks: Sequence[Stack]) -> Callable:
    """(states, metrics by name [W]) of a chunk of each of these, as one program. States are written where they lie."""

    def step(states, owns, numbers, batches, bases):
        done = [stack.step(*parts) for stack, *parts in zip(stacks, states, owns, numbers, batches, bases, strict=True)]
        return [state for state, _ in done], [metrics for _, metrics in done]

    shardings = [{path: leaf.sharding for path, leaf in stack.state[0].items()} for stack in stacks]
    everywhere = NamedSharding(stacks[0].mesh, PartitionSpec())
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, everywhere))
