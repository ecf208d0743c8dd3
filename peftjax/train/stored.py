"""A run's state in the form that checkpoints hold: arrays by path, and what they fit."""

import dataclasses
from typing import Any

import jax

from peftjax.nn.tree import flatten, unflatten_like
from peftjax.peft.partition import combine, kept
from peftjax.peft.spec import from_data, to_data
from peftjax.train.checkpoint import Checkpoints
from peftjax.train.config import plain
from peftjax.train.inputs import Inputs
from peftjax.train.prepare import Prepared
from peftjax.train.startup import precision
from peftjax.train.step import TrainState
from peftjax.train.versions import versions


def specification(config: Any, base: Any, inputs: Inputs) -> dict:
    """What a checkpoint fits: methods, base, tokenizer and data by fingerprint, and the optimiser."""
    asked = plain(config)
    attached = inputs.task.methods([from_data(method) for method in asked["peft"]])
    return {
        "methods": [to_data(method) for method in attached],
        "optimizer": asked["optimizer"], "train": asked["train"], "data": asked["data"],
        "model": {"segments": asked["model"]["segments"]},
        "base": {"fingerprint": base.fingerprint, "dtype": precision(config.base.dtype).name}, "tokenizer": base.tokenizer.fingerprint,
        "records": inputs.fingerprint, "versions": versions(), "info": {"base_uri": base.uri},
    } | ({} if asked.get("compose") is None else {"compose": asked["compose"]}) | inputs.task.specification()


def state_arrays(state: TrainState, frozen: Any) -> dict[str, jax.Array]:
    """A state as path -> array, the form that is stored; the key as its raw data. Of the frozen tree, what is the run's own."""
    return flatten({
        "trainable": state.trainable, "kept": kept(frozen), "optimiser": state.optimiser, "step": state.step,
        "key": jax.random.key_data(state.key),
    })


def restored(checkpoints: Checkpoints, prepared: Prepared) -> tuple[TrainState, Prepared, int | None]:
    """(the newest stored state, what goes with it, its step), or (the state before the first step, `prepared`, None)."""
    arrays = state_arrays(prepared.state, prepared.frozen)
    found = checkpoints.restore({path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for path, x in arrays.items()})
    if found is None:
        return prepared.state, prepared, None
    step, arrays = found
    state = prepared.state
    like = {"trainable": state.trainable, "kept": kept(prepared.frozen), "optimiser": state.optimiser, "step": state.step, "key": 0}
    tree = unflatten_like(like, arrays)
    frozen = combine(tree.pop("kept"), prepared.frozen)
    tree["key"] = jax.random.wrap_key_data(tree["key"])
    return TrainState(**tree), dataclasses.replace(prepared, frozen=frozen), step
