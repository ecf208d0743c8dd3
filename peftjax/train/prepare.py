"""A base with methods on it, ready to train: load, cut, attach, place on the mesh, partition."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from peftjax.interop.base import Base, load_base
from peftjax.interop.exchange.adapter import fill
from peftjax.models.decoder import Decoder, cut
from peftjax.models.encoder import Encoder
from peftjax.nn.kernels import Kernel
from peftjax.nn.tree import walk
from peftjax.peft.attach import adapters, attach, cut_points
from peftjax.peft.checks import require_read
from peftjax.peft.compose import compose
from peftjax.peft.initialise import initialise, wanted
from peftjax.peft.partition import combine, partition
from peftjax.peft.probe import measure
from peftjax.peft.roles import roles
from peftjax.peft.spec import from_data
from peftjax.peft.table import table, totals
from peftjax.train.annealing import Annealing, annealing
from peftjax.train.config import composition
from peftjax.train.loss import token_losses
from peftjax.train.optimiser import make_optimiser
from peftjax.train.routes import arrange
from peftjax.train.sharding import put, replicated, shardings, state_shardings
from peftjax.train.start import Start, held
from peftjax.train.startup import make_model
from peftjax.train.step import TrainState, new_state
from peftjax.train.task import NEXT_TOKEN, Task


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What the loop needs.

    Attributes:
        model: the decoder or encoder.
        frozen: what is not trained, placed on the mesh.
        own: the leaves of `frozen` that came with the methods; None where the base's are.
        optimiser: of the trainables.
        state: the state before the first step.
        state_shardings: where its leaves live.
        dropout: whether any method drops anything.
        annealing: what of `frozen` follows the step.
        table: the start-up table, `totals` its last line.
    """

    model: Decoder | Encoder
    frozen: Any
    own: Any
    optimiser: Any
    state: TrainState
    state_shardings: Any
    dropout: bool
    annealing: Annealing
    table: str
    totals: str


def segments_of(option: str, methods: list, layers: int) -> tuple[int, ...]:
    """Segment lengths for `config.model.segments`: what the methods' layers ask for with "auto", else numbers, as in "10,20".

    Raises:
        ValueError: text that is neither.
    """
    if option == "auto":
        return cut_points(methods, layers)
    if not re.fullmatch(r"[\s(]*\d+(\s*,\s*\d+)*[\s,)]*", option):
        raise ValueError(f"config.model.segments is {option!r}; it may be auto, or lengths that add up to {layers} layers, as in '10,20'")
    return tuple(int(number) for number in re.findall(r"\d+", option))


def prepare_model(
    config: Any, base: Base, mesh: Mesh, task: Task = NEXT_TOKEN, starts: Sequence[Start] = (),
    batches: Callable[[], Sequence[Any]] | None = None,
) -> Prepared:
    """Attaches `config.peft`, as the task has it, to a loaded base, composed as `config.compose` says, and places everything on the mesh.

    Args:
        starts: adapters whose methods are in `config.peft`, under their names; training begins with their values.
        batches: gives batches of training, for methods whose init needs statistics; None leaves ordinary values, for a checkpoint's to
            take their place.

    Raises:
        ValueError: a rule that matches nothing, or a method that the cut stack cannot hold.
    """
    methods = task.methods([from_data(method.to_dict()) for method in config.peft])
    segments = segments_of(config.model.segments, methods, base.config.layers)
    key = jax.random.key(config.train.seed)
    bare = cut(base.params, base.config, segments)
    params = attach(bare, methods, jax.random.fold_in(key, 0))
    for start in starts:
        params = fill(params, start.adapter, start.name, start.path)
    new = [method for method in methods if method.name not in {start.name for start in starts}]
    if batches is not None and wanted(new):
        model = make_model(base.config, config.model, segments)
        params = _initialised(model, params, new, base, batches, jax.random.fold_in(key, 0))
    if (plan := composition(config)) is not None:
        params = compose(params, plan)
    theirs = {id(leaf) for leaf in jax.tree.leaves(bare)}  # a method shares the arrays that it does not change
    added = jax.tree.map(lambda leaf: id(leaf) not in theirs, params)
    placed = shardings(params, mesh)
    params = put(params, placed)
    trainable, frozen = partition(params, set(adapters(params)) - set(held(starts)))
    own = jax.tree.map(lambda leaf, mine: leaf if mine else None, frozen, added, is_leaf=lambda leaf: leaf is None)
    optimiser = make_optimiser(config.optimizer, config.train.steps, trainable, roles(params), params)
    abstract = jax.eval_shape(lambda t, k: new_state(t, optimiser, k), trainable, key)
    trained_at = jax.tree.map(lambda leaf, s: None if leaf is None else s, trainable, placed, is_leaf=lambda x: x is None)
    where = state_shardings(abstract, trained_at, mesh)
    run_key = jax.random.wrap_key_data(put(jax.random.key_data(jax.random.fold_in(key, 1)), replicated(mesh)))
    state = jax.jit(lambda t, k: new_state(t, optimiser, k), out_shardings=where)(trainable, run_key)
    dropout = any(getattr(method, "dropout", 0) for method in methods)
    return Prepared(
        make_model(base.config, config.model, segments), frozen, own, optimiser, state, where, dropout,
        annealing(new, config.train.steps), table(params, trainable), totals(params, trainable),
    )


def _initialised(
    model: Decoder | Encoder, params: dict, methods: list, base: Base, batches: Callable[[], Sequence[Any]], key: jax.Array
) -> dict:
    """The tree with the inits that need statistics, two kernels at a time, of the sum of the token losses, or the dense weights."""
    needs = wanted(methods)
    if jax.process_count() > 1:
        raise ValueError(f"inits by statistics ({', '.join(needs)}) are for runs of one process; there are {jax.process_count()}")
    found = {}
    if needs.pop("dense", None):
        whole = cut(load_base(base.uri).params, base.config, model.segments)
        found["dense"] = {path: value for path, value in walk(whole) if path.endswith("/kernel") and not isinstance(value, Kernel)}
    first = batches() if needs else ()

    def loss(params, batch):
        return jnp.sum(token_losses(model, params, batch)[0] * batch.weights)

    found |= {kind: measure(loss, params, first, targets, kind, at_once=2) for kind, targets in needs.items()}
    return initialise(params, methods, found, key)


def check_reads(model: Decoder | Encoder, trainable: Any, frozen: Any, batch: Any) -> None:
    """Every trainable leaf must reach the loss: refuses adapters that no site or kernel of the model reads."""
    def losses(trained, rest, data):
        return token_losses(model, arrange(combine(trained, rest), data), data)[0]

    require_read(losses, trainable, frozen, batch)
