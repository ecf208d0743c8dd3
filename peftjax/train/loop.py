"""A run from its config to its report. The work directory is the run: the same command starts it, resumes it or finds it done."""

import contextlib
import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from peftjax.data.batches import prefetch
from peftjax.interop.base import load_base
from peftjax.peft.attach import detach
from peftjax.peft.partition import size
from peftjax.train.checkpoint import Checkpoints
from peftjax.train.config import check, plain
from peftjax.train.ending import failures_told
from peftjax.train.inputs import prepare
from peftjax.train.journal import Journal, Snapshot
from peftjax.train.multihost import require_same
from peftjax.train.outcome import summary
from peftjax.train.parallel import compile_step
from peftjax.train.prepare import check_reads, prepare_model
from peftjax.train.progress import Progress
from peftjax.train.report import write_report
from peftjax.train.sharding import make_mesh
from peftjax.train.start import start_of, with_start
from peftjax.train.startup import precision, use_compilation_cache
from peftjax.train.step import TrainState
from peftjax.train.stored import restored, specification, state_arrays
from peftjax.train.task import task_for
from peftjax.train.untouched import Untouched, written_beside
from peftjax.train.wording import with_ids
from peftjax.train.workdir import WorkDir, default_workdir


def run(config: Any, workdir: str | Path | None = None, *, name: str = "run", started: float | None = None) -> Path:
    """Trains, evaluates and reports as `config` says; returns the work directory.

    Args:
        config: see `peftjax.train.config.default_config`.
        workdir: the run's folder; default `runs/<name>-<hash of the config>`.
        name: path of the config file.
        started: `time.time()` at the start of the process, for the start-up time in the result.

    Raises:
        ValueError: anything in config, data, base, methods or checkpoints that does not fit, named.
        FloatingPointError: the loss is not finite.
    """
    started = time.time() if started is None else started
    check(config)
    folder = WorkDir(workdir or default_workdir(name, config), config, main=jax.process_index() == 0)
    with contextlib.closing(folder), failures_told(folder.path, folder.main):
        if folder.done:
            if folder.main:
                if not (folder.path / "report.md").exists():  # killed between the result and its report
                    write_report(folder.path)
                print(f"{folder.path} is done: see {folder.path / 'report.md'}")
            return folder.path
        _run(config, folder, started)
    return folder.path


def _run(config: Any, folder: WorkDir, started: float) -> None:
    use_compilation_cache()
    main = jax.process_index() == 0
    say = print if main else lambda *_: None
    if main:
        folder.unmark()

    # ---- the base, the data, the methods -----------------------------------------------------------------------------
    mesh = make_mesh(config.train.mesh.data, config.train.mesh.model)
    base = load_base(config.base.uri, dtype=precision(config.base.dtype).name, quantise=config.base.quantise)
    base_size = size(base.params)
    say(f"base {base.uri}: {base_size[0]:,} parameters, loaded at {time.time() - started:.1f} s")
    config, starts = with_start(with_ids(config, base.tokenizer), base)
    for start in starts:
        for note in start.adapter.notes:
            say(f"note: {start.path}: {note}")
    inputs = prepare(config, base.tokenizer, (jax.process_index(), jax.process_count()), task_for(config, base.config))
    require_same({"config": json.dumps(plain(config), sort_keys=True), "base": base.fingerprint, "data": inputs.fingerprint})
    task = inputs.task
    say(f"data {config.data.name}: {inputs.report['splits']}, {inputs.train.steps_per_epoch} steps an epoch")

    # ---- the state: 1. the newest complete checkpoint of this run, 2. from scratch ------------------------------------
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(
            Checkpoints.of(config, folder.path / "checkpoints", specification(config, base, inputs) | start_of(starts))
        )
        first = None if checkpoints.latest_step() is not None else lambda: [inputs.train.at(n) for n in range(config.train.init_batches)]
        prepared = prepare_model(config, base, mesh, task, starts, first)
        base = dataclasses.replace(base, params=None)  # the frozen tree holds them now
        say(prepared.table)
        first_values = written_beside(base, starts, prepared.state.trainable)
        state, prepared, resumed = restored(checkpoints, prepared)
        prepared = dataclasses.replace(prepared, state=None)  # used up by the first step, or not needed
        if resumed is not None:
            say(f"resumed at step {resumed}")

        # ---- compile, evaluate, train ------------------------------------------------------------------------------
        step, place = compile_step(config, prepared, mesh)
        check_reads(prepared.model, state.trainable, prepared.frozen, inputs.train.at(0))
        evaluator = task.evaluator(prepared.model, base.tokenizer, config, inputs.held, notice if main else lambda _: None)
        untouched = Untouched(evaluator, lambda: detach(prepared.frozen) if first_values is None else prepared.frozen, first_values)
        journal = stack.enter_context(Journal(config, folder, inputs, evaluator, untouched, checkpoints, started, main))
        journal.begin(resumed)
        frozen_at = functools.partial(prepared.annealing, prepared.frozen)
        state = train(journal, state, frozen_at, lambda s, batch: step(s, prepared.frozen, place(batch)))

        # ---- the result --------------------------------------------------------------------------------------------
        if main:
            result = journal.finish(base, base_size, size(state.trainable))
            say(prepared.totals)
            say(summary(result))
            say(f"report: {folder.path / 'report.md'}")


def notice(text: str) -> None:
    """A line for who waits; results go to stdout, this does not."""
    print(text, file=sys.stderr, flush=True)


def train(journal: Journal, state: TrainState, frozen_at: Callable[[int], Any], step: Callable[[TrainState, Any], Any]) -> TrainState:
    """Takes the steps that are left, `step(state, batch) -> (state, metrics)`, and journals them with the frozen half as it is after each;
    returns the last state."""
    total, done = journal.config.train.steps, int(state.step)

    def snapshot() -> Snapshot:
        frozen = frozen_at(done)
        return Snapshot(state.trainable, frozen, state_arrays(state, frozen))

    with contextlib.ExitStack() as stack:
        batches = stack.enter_context(prefetch(lambda: map(journal.inputs.train.at, range(done, total))))
        progress = stack.enter_context(Progress(total, done, enabled=journal.main))
        while not journal.over(done):
            done, batch, begin = done + 1, next(batches), time.perf_counter()
            state, metrics = step(state, batch)
            metrics = jax.device_get(metrics)
            journal.count(done, batch, metrics, time.perf_counter() - begin)
            progress.update(done, metrics["loss"], journal.timings.step_tokens[-1])
            if journal.due(done) and journal.keep(done, snapshot()):
                progress.restart_clock()
    journal.complete(done, snapshot())
    return state
