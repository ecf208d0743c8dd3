"""From configs to members: the base, the data sets and the evaluators are made once for all that share them."""

import contextlib
import dataclasses
import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from peftjax.interop.base import Base
from peftjax.models.decoder import cut
from peftjax.nn.tree import flatten
from peftjax.peft.partition import size
from peftjax.peft.spec import from_data
from peftjax.train.checkpoint import Checkpoints
from peftjax.train.config import plain
from peftjax.train.inputs import Inputs, in_order, prepare
from peftjax.train.journal import Journal
from peftjax.train.population.member import Member, waiting
from peftjax.train.prepare import Prepared, prepare_model, segments_of
from peftjax.train.sharding import shardings
from peftjax.train.start import start_of, with_start
from peftjax.train.stored import restored, specification
from peftjax.train.task import task_for
from peftjax.train.untouched import Untouched, written_beside
from peftjax.train.wording import with_ids
from peftjax.train.workdir import WorkDir


def make_mesh(places: int, data: int = -1, model: int = 1, devices: list | None = None) -> Mesh:
    """A mesh ("members", "data", "model") of all devices. With `data` -1 as many as divide evenly, and `places` are there for, are along
    the members, and the rest along the batch.

    Raises:
        ValueError: the numbers do not fit the devices there are.
    """
    devices = jax.devices() if devices is None else devices
    if len(devices) % (model * max(1, data)):
        raise ValueError(f"a mesh of {data} x {model} does not divide the {len(devices)} devices there are")
    rest = len(devices) // model
    members = rest // data if data != -1 else max(n for n in range(1, rest + 1) if rest % n == 0 and n <= places)
    return Mesh(np.asarray(devices).reshape(members, rest // members, model), ("members", "data", "model"))


def placed(base: Base, config: Any, mesh: Mesh) -> Base:
    """The base with its stack cut as the methods of `config` ask, on the mesh: what members attach to, and share."""
    segments = segments_of(config.model.segments, [from_data(method.to_dict()) for method in config.peft], base.config.layers)
    params = cut(base.params, base.config, segments)
    return dataclasses.replace(base, params=jax.device_put(params, shardings(params, mesh)))


class Opening:
    """Makes members on one base.

    Args:
        base: see `placed`.
        mesh: see `make_mesh`.
        started: `time.time()` at the start.
        say, notice: are told results, and how far long work is.
        closing: closes what members opened.
    """

    def __init__(
        self, base: Base, mesh: Mesh, started: float, say: Callable[[str], None], notice: Callable[[str], None],
        closing: contextlib.ExitStack,
    ):
        self.base, self.mesh, self.started, self.say, self.notice, self.closing = base, mesh, started, say, notice, closing
        self.size, self._leaves = size(base.params), flatten(base.params)
        self._inputs: dict[str, Inputs] = {}
        self._evaluators: dict[str, tuple[Any, Untouched]] = {}

    def member(self, config: Any, folder: WorkDir) -> Member:
        """The run of a config as it starts in its folder or goes on there, its journal begun.

        Raises:
            ValueError, FileNotFoundError: as `peftjax.train.loop.run`.
        """
        config, starts = with_start(with_ids(config, self.base.tokenizer), self.base)
        inputs = self.inputs(config)
        checkpoints = self.closing.enter_context(
            Checkpoints.of(config, folder.path / "checkpoints", specification(config, self.base, inputs) | start_of(starts))
        )
        first = None if checkpoints.latest_step() is not None else lambda: [inputs.train.at(n) for n in range(config.train.init_batches)]
        prepared = prepare_model(config, self.base, self.mesh, inputs.task, starts, first)
        first_values = written_beside(self.base, starts, prepared.state.trainable)
        state, prepared, resumed = restored(checkpoints, prepared)
        evaluator, untouched = self._evaluator(config, inputs, prepared, first_values)
        journal = self.closing.enter_context(
            Journal(config, folder, inputs, evaluator, untouched, checkpoints, self.started,
                    say=lambda line: self.say(f"{folder.path.name}: {line}"))
        )
        journal.begin(resumed)
        return waiting(config, inputs, journal, prepared, state, self._leaves)

    def inputs(self, config: Any) -> Inputs:
        """The data of a config; sets are read once, whatever the seed of their order."""
        task, asked = task_for(config, self.base.config), plain(config)
        measured = asked["eval"]["rows"], asked["eval"]["general"]
        key = json.dumps([asked["data"], asked["compose"], measured, asked["train"]["batch_size"], repr(task)])
        seed = str(config.train.seed)
        if key not in self._inputs:
            self._inputs[key] = self._inputs[key + seed] = prepare(config, self.base.tokenizer, task=task)
        if key + seed not in self._inputs:
            self._inputs[key + seed] = in_order(self._inputs[key], config)
        return self._inputs[key + seed]

    def _evaluator(self, config: Any, inputs: Inputs, prepared: Prepared, first_values: Any) -> tuple[Any, Untouched]:
        asked = plain(config)
        key = json.dumps([asked["data"], asked["compose"], asked["eval"], repr(inputs.task), repr(prepared.model)])
        if key not in self._evaluators:
            evaluator = inputs.task.evaluator(prepared.model, self.base.tokenizer, config, inputs.held, self.notice)
            self._evaluators[key] = evaluator, Untouched(evaluator, lambda: self.base.params)
        evaluator, untouched = self._evaluators[key]
        if first_values is not None:  # what is compared with is the member's own
            untouched = Untouched(evaluator, lambda: prepared.frozen, first_values)
        return evaluator, untouched
