"""Places for members of one form: C chunks of arrays with a leading axis of W members, the base once.

    state   trainable/blocks/attn/q/kernel/default/a   [W, L, R, in]           R: the highest rank among them, zeros behind a lower one
            optimiser/..., step, key                   [W, ...]
    own     blocks/attn/q/kernel/default/scale         [W, L]
    numbers learning_rate, clip, ...                   [W]
    base    blocks/attn/q/kernel                       [L, in, out]            no axis of members

The W members of a chunk are mapped over together: a product with the base is one, of W·B·T rows. W is chosen so that these are about as
many as the machine multiplies best; more only leave its caches. Chunks are stepped one after another, as many as hold members, each where
it lies. On several devices W is split over the mesh's axis "members". What stands in a free place is computed with its chunk, and read by
none.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from peftjax.data.packing import Batch
from peftjax.nn.tree import flatten, unflatten_like
from peftjax.peft.partition import combine, kept
from peftjax.train.journal import Snapshot
from peftjax.train.optimiser import NUMBERS
from peftjax.train.population.batches import padding, stacked
from peftjax.train.population.form import Form, form_of, member_step
from peftjax.train.population.member import Member
from peftjax.train.population.trees import cropped, grown

METRICS = ("loss", "accuracy", "tokens", "grad_norm", "learning_rate")
# W·B·T times the model's width, about, on a CPU (two cores, scripts/bench_population.py), and on accelerators.
ROWS_BY_WIDTH, MANY = 1 << 18, 1 << 26
# Bytes of W members' states, on a CPU: an update of all of them passes through memory several times, which a faster core gains nothing by.
STATES = 256 << 20
# At least, on a CPU where most members end early: the places of those who ended are computed while their chunk holds any.
CHUNKS_TO_THIN = 4


def width_for(
    places: int, tokens: int, model_width: int, devices: int = 1, backend: str | None = None, thinned: bool = False, state: int = 1
) -> int:
    """W for so many members of `tokens` a step, of `state` bytes each: a multiple of `devices`, and no more of a last chunk empty than need
    be. `thinned`: most of the members end early."""
    cpu = (backend or jax.default_backend()) == "cpu"
    rows = tokens * model_width
    most = max(1, min(ROWS_BY_WIDTH // rows, STATES // state) if cpu else MANY // rows)
    share = -(-places // devices)
    if thinned and cpu:
        most = min(most, -(-share // CHUNKS_TO_THIN))
    chunks = -(-share // min(most, share))
    return -(-share // chunks) * devices


class Stack:
    """See the module.

    Args:
        members: all that will ever have a place; they decide the shapes.
        places: how many have one at the same time.
        mesh: with an axis "members".
        width: W; None chooses.
        thinned: whether most of them end early.
    """

    def __init__(self, members: Sequence[Member], places: int, mesh: Mesh, width: int | None = None, thinned: bool = False):
        self.form: Form = form_of(members)
        train, first = members[0].config.train, members[0]
        self.width = width or width_for(
            places, train.batch_size * first.config.data.length, self.form.model.config.width, mesh.shape["members"], thinned=thinned,
            state=sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self.form.state)),
        )
        self.chunks, self.mesh = -(-places // self.width), mesh
        self.places, self.members = places, [None] * (self.chunks * self.width)
        self.padding = padding([m.inputs.train.empty(m.inputs.train.shapes[0]) for m in members])
        specs = {path: _spec(leaf) for path, leaf in first.arrays.items()}
        self.state = self._chunks_of(self.form.state, specs)
        self.own = self._chunks_of(self.form.own, {path: _spec(leaf) for path, leaf in flatten(first.own).items()})
        self.numbers = [{name: np.ones(self.width, np.float32) for name in NUMBERS} for _ in range(self.chunks)]
        self.step = _over(member_step(self.form), self.width)
        self._put_state, self._put_own = (
            jax.jit(_put, donate_argnums=0, out_shardings={path: leaf.sharding for path, leaf in chunks[0].items()})
            for chunks in (self.state, self.own)
        )

    @property
    def there(self) -> list[tuple[int, Member]]:
        """Places that are taken, and by whom."""
        return [(place, member) for place, member in enumerate(self.members) if member is not None]

    @property
    def free(self) -> int:
        """How many places are not taken."""
        return self.places - len(self.there)

    def place(self, member: Member) -> int | None:
        """Where a member stands; None where it has no place."""
        return next((place for place, other in self.there if other is member), None)

    def put(self, member: Member) -> None:
        """Gives a waiting member the first free place."""
        place = self.members.index(None)
        state = {path: grown(member.arrays[path], leaf.shape) for path, leaf in flatten(self.form.state).items()}
        chunk, at = divmod(place, self.width)
        self.state[chunk] = self._put_state(self.state[chunk], at, state)
        self.own[chunk] = self._put_own(self.own[chunk], at, self._own(member.own))
        for name, value in member.numbers.items():
            self.numbers[chunk][name][at] = value
        self.members[place], member.arrays = member, None

    def take(self, place: int) -> Member:
        """Frees a place; its member waits again."""
        member = self.members[place]
        member.arrays, self.members[place] = self._arrays(member, self._at(place)), None
        return member

    def drop(self, place: int) -> Member:
        """Frees the place of a member whose state nobody wants."""
        member, self.members[place] = self.members[place], None
        return member

    def snapshot(self, place: int) -> Snapshot:
        """A member after a step. Its tree is that of the stack: zeros behind its own rows change nothing, and every member's evaluation
        is one program."""
        member, state = self.members[place], self._at(place)
        now = member.annealing(member.own, member.step)
        frozen = combine(unflatten_like(self.form.own, self._own(now)), self.form.base)
        arrays = self._arrays(member, state) | flatten({"kept": kept(now)})
        return Snapshot(unflatten_like(self.form.state, state)["trainable"], frozen, arrays)

    def compact(self) -> None:
        """Moves members to the front, where fewer chunks then hold any."""
        needed = -(-len(self.there) // self.width) * self.width
        for place, _ in [(place, m) for place, m in self.there if place >= needed]:
            self.put(self.take(place))

    def working(self) -> int:
        """Chunks that hold members."""
        return 1 + self.there[-1][0] // self.width if self.there else 0

    def batches(self, chunk: int, batches: Mapping[int, Batch]) -> Any:
        """Members' batches by place, those of a chunk on the devices: [W, B, ...], of padding at free places."""
        here = {place % self.width: batch for place, batch in batches.items() if place // self.width == chunk}
        sharding = NamedSharding(self.mesh, PartitionSpec("members", "data"))
        return jax.tree.map(lambda x: jax.device_put(x, sharding), stacked(here, self.padding, self.width))

    def _at(self, place: int) -> dict[str, jax.Array]:
        chunk, at = divmod(place, self.width)
        return _take(self.state[chunk], at)

    def _own(self, own: Any) -> dict[str, jax.Array]:
        """What is a member's own, in the stack's shapes."""
        return {path: grown(leaf, self.own[0][path].shape[1:]) for path, leaf in flatten(own).items()}

    def _arrays(self, member: Member, state: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """In the member's own shapes."""
        return {path: cropped(leaf, member.shapes[path]) for path, leaf in state.items()}

    def _chunks_of(self, tree: Any, specs: Mapping[str, tuple]) -> list[dict[str, jax.Array]]:
        """Zeros for a chunk's members, C times."""

        def zeros(path: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
            sharding = NamedSharding(self.mesh, PartitionSpec("members", *specs.get(path, ())))
            return jnp.zeros((self.width, *leaf.shape), leaf.dtype, device=sharding)

        return [{path: zeros(path, leaf) for path, leaf in flatten(tree).items()} for _ in range(self.chunks)]


def _over(step: Callable, width: int) -> Callable:
    """A member's step over those of a chunk. One alone is stepped as a run is: an axis of one makes its thin products batched ones."""
    if width > 1:
        return jax.vmap(step, in_axes=(0, 0, 0, 0, None))

    def alone(*arguments):
        *own, base = arguments
        return jax.tree.map(lambda x: x[None], step(*jax.tree.map(lambda x: x[0], own), base))

    return alone


def _spec(leaf: jax.Array) -> tuple:
    return tuple(leaf.sharding.spec) if isinstance(leaf.sharding, NamedSharding) else ()


def _put(stacks, at, values):
    return {path: stack.at[at].set(values[path]) for path, stack in stacks.items()}


@jax.jit
def _take(stacks, at):
    return {path: stack[at] for path, stack in stacks.items()}
