"""Where arrays live: a mesh ("data", "model") and rules from paths to partition specs.

Rows of a batch are split over "data". Kernels are split over "model" by the rules below; the factors of low-rank methods follow their
kernel: `a` its input axis, `b` its output axis, the rank unsharded. All else is replicated.
"""

import dataclasses
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from peftjax.nn.kernels import Entry, Kernel, Tied
from peftjax.nn.quant.quantised import Quantised
from peftjax.nn.tree import place
from peftjax.peft.parts import Trained

# Logical path -> axes of (in, out), the leading layer axis apart. The first match counts.
RULES = (
    (r"blocks/attn/(q|k|v)/kernel", (None, "model")),
    (r"blocks/attn/o/kernel", ("model", None)),
    (r"blocks/mlp/(gate|up)/kernel", (None, "model")),
    (r"blocks/mlp/down/kernel", ("model", None)),
    (r"embed/embedding", ("model", None)),
    (r"head/kernel", (None, "model")),
)


def make_mesh(data: int = -1, model: int = 1, devices: list | None = None) -> Mesh:
    """A mesh of `data` x `model` devices; -1 is all that are left.

    Raises:
        ValueError: the numbers do not fit the devices there are.
    """
    devices = jax.devices() if devices is None else devices
    data = len(devices) // model if data == -1 else data
    if data * model != len(devices):
        raise ValueError(f"a mesh of {data} x {model} does not use the {len(devices)} devices there are")
    return Mesh(np.asarray(devices).reshape(data, model), ("data", "model"))


def shardings(params: Any, mesh: Mesh, rules=RULES) -> Any:
    """A NamedSharding for every leaf of a parameter tree, adapters included; an axis that does not divide evenly stays whole."""
    return _shard(params, mesh, rules, "")


def _shard(value: Any, mesh: Mesh, rules, path: str) -> Any:
    if isinstance(value, dict):
        return {name: _shard(child, mesh, rules, f"{path}/{name}" if path else name) for name, child in value.items()}
    if isinstance(value, Tied):  # it reads the embedding, and lies where that lies
        return dataclasses.replace(value, base=_shard(value.base, mesh, rules, "embed/embedding"))
    if isinstance(value, Kernel | Entry):
        placed = {}
        for field in value.array_fields:
            child = getattr(value, field)
            if child is None:
                placed[field] = None
            elif field == "base":
                placed[field] = _shard(child, mesh, rules, path)
            elif field == "parts":  # of composed adapters
                placed[field] = {name: _shard(part, mesh, rules, path) for name, part in child.items()}
            else:
                placed[field] = jax.tree.map(lambda x, f=field: _named(x, mesh, _field_axes(value, f, _axes(path, rules))), child)
        return dataclasses.replace(value, **placed)
    return jax.tree.map(lambda x: _named(x, mesh, _axes(path, rules)), value)


def _axes(path: str, rules) -> tuple | None:
    logical = place(path, 0).logical
    return next((axes for pattern, axes in rules if re.fullmatch(pattern, logical)), None)


def _field_axes(owner: Any, field: str, axes: tuple | None) -> tuple | None:
    if axes is None:
        return None
    if field in getattr(owner, "ranked", ()):
        return (None, axes[0] if field == "a" else axes[1])
    if isinstance(owner, Quantised):  # all its leaves are in the order of what it stores
        return axes[::-1] if owner.rows else axes
    return axes if isinstance(owner, Trained) else None


def _named(leaf: Any, mesh: Mesh, axes: tuple | None) -> NamedSharding:
    if axes is None or leaf.ndim < len(axes):
        return NamedSharding(mesh, PartitionSpec())
    full = (None,) * (leaf.ndim - len(axes)) + tuple(axes)
    even = [axis if axis is None or size % mesh.shape[axis] == 0 else None for axis, size in zip(full, leaf.shape, strict=True)]
    return NamedSharding(mesh, PartitionSpec(*even))


def replicated(mesh: Mesh) -> NamedSharding:
    """On every device whole."""
    return NamedSharding(mesh, PartitionSpec())


def put(tree: Any, where: Any) -> Any:
    """Arrays on their shardings. Of several processes each puts its own parts of what all of them hold: unlike `device_put`, nothing is
    sent to compare them."""
    if jax.process_count() == 1:
        return jax.device_put(tree, where)
    return jax.tree.map(lambda x, at: jax.make_array_from_callback(x.shape, at, np.asarray(x).__getitem__), tree, where)


def to_host(tree: Any) -> Any:
    """Arrays as numpy on every process, also where parts lie on others."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """This process's rows of a batch -> global arrays, rows split over "data"."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def state_shardings(state: Any, trainable_shardings: Any, mesh: Mesh) -> Any:
    """Shardings of a train state (abstract): leaves in the form of the trainables go where those go, all else is replicated."""
    structure, trained = jax.tree.structure(trainable_shardings), state.trainable

    def is_copy(value: Any) -> bool:
        return jax.tree.structure(value) == structure

    def like(leaf: Any, of: Any, where: NamedSharding) -> NamedSharding:
        return where if leaf.shape == of.shape else replicated(mesh)  # factored moments have other shapes

    def shard(value: Any) -> Any:
        if is_copy(value):
            return jax.tree.map(like, value, trained, trainable_shardings)
        return jax.tree.map(lambda _: replicated(mesh), value)

    return jax.tree.map(shard, state, is_leaf=is_copy)
