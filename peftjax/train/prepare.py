"""A base with methods on it, ready to train: load, cut, attach, place on the mesh, partition."""

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh

from peftjax.interop.base import Base
from peftjax.models.decoder import Decoder, cut
from peftjax.peft.attach import attach, cut_points
from peftjax.peft.checks import require_read
from peftjax.peft.partition import combine, partition
from peftjax.peft.roles import roles
from peftjax.peft.spec import from_data
from peftjax.train.loss import token_losses
from peftjax.train.optimiser import make_optimiser
from peftjax.train.sharding import replicated, shardings, state_shardings
from peftjax.train.startup import make_model
from peftjax.train.step import TrainState, new_state


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What the loop needs: model, whole parameters, their two halves, the optimiser and the state before the first step."""

    model: Decoder
    params: Any
    frozen: Any
    optimiser: Any
    state: TrainState
    state_shardings: Any
    dropout: bool


def prepare_model(config: Any, base: Base, mesh: Mesh) -> Prepared:
    """Attaches `config.peft` to a loaded base and places everything on the mesh.

    Raises:
        ValueError: a rule that matches nothing, or a method that the cut stack cannot hold.
    """
    methods = [from_data(method.to_dict()) for method in config.peft]
    segments = cut_points(methods, base.config.layers) if config.model.segments == "auto" else tuple(config.model.segments)
    key = jax.random.key(config.train.seed)
    params = attach(cut(base.params, base.config, segments), methods, jax.random.fold_in(key, 0))
    placed = shardings(params, mesh)
    params = jax.device_put(params, placed)
    trainable, frozen = partition(params)
    optimiser = make_optimiser(config.optimizer, config.train.steps, trainable, roles(params))
    abstract = jax.eval_shape(lambda t, k: new_state(t, optimiser, k), trainable, key)
    trained_at = jax.tree.map(lambda leaf, s: None if leaf is None else s, trainable, placed, is_leaf=lambda x: x is None)
    where = state_shardings(abstract, trained_at, mesh)
    run_key = jax.device_put(jax.random.fold_in(key, 1), replicated(mesh))
    state = jax.jit(lambda t, k: new_state(t, optimiser, k), out_shardings=where)(trainable, run_key)
    dropout = any(getattr(method, "dropout", 0) for method in methods)
    return Prepared(make_model(base.config, config.model, segments), params, frozen, optimiser, state, where, dropout)


def check_reads(model: Decoder, state: TrainState, frozen: Any, batch: Any) -> None:
    """Every trainable leaf must reach the loss: refuses adapters that no site or kernel of the model reads."""
    require_read(lambda trainable, rest, data: token_losses(model, combine(trainable, rest), data)[0], state.trainable, frozen, batch)
