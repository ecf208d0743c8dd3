"""The training step on devices: compiled by jit over a mesh, or mapped by pmap; the same pure function in both."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from peftjax.train.prepare import Prepared
from peftjax.train.routes import arrange
from peftjax.train.sharding import put_batch, replicated
from peftjax.train.step import make_step


def compile_step(config: Any, prepared: Prepared, mesh: Mesh) -> tuple[Callable, Callable]:
    """(step, place): `step(state, frozen, place(batch)) -> (state, metrics)`, `place` puts this process's rows on the devices.

    Under jit the state is donated. pmap keeps data parallelism only.

    Raises:
        ValueError: rows that do not divide by the devices, or pmap with a "model" axis or several processes.
    """
    rows, devices, pieces = config.train.batch_size, mesh.shape["data"], config.train.accumulate
    if rows % (devices * pieces):
        raise ValueError(
            f"config.train.batch_size {rows} must be a multiple of {devices} devices along \"data\" x {pieces} accumulated pieces"
        )
    options = {"accumulate": pieces, "dropout": prepared.dropout, "arrange": arrange, "follow": prepared.annealing}
    if config.train.parallel == "jit":
        step = jax.jit(
            make_step(prepared.model, prepared.optimiser, **options), donate_argnums=0,
            out_shardings=(prepared.state_shardings, replicated(mesh)),
        )
        return step, lambda batch: put_batch(batch, mesh)
    if jax.process_count() > 1:
        raise ValueError(f"pmap is for one process; there are {jax.process_count()}. config.train.parallel=jit takes several")
    if mesh.shape["model"] > 1:
        raise ValueError(f"pmap is data-parallel only; config.train.mesh.model is {mesh.shape['model']}")
    mapped = jax.pmap(make_step(prepared.model, prepared.optimiser, **options, axis="data"), axis_name="data", in_axes=(None, None, 0),
                      out_axes=None, devices=list(mesh.devices.flat))
    local = jax.local_device_count()
    return mapped, lambda batch: jax.tree.map(lambda x: np.asarray(x).reshape(local, -1, *x.shape[1:]), batch)
