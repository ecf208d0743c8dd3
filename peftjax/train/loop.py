"""A run from its config to its report. The work directory is the run: the same command starts it, resumes it or finds it done."""

import contextlib
import dataclasses
import math
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from peftjax.data.batches import prefetch
from peftjax.interop.base import load_base
from peftjax.nn.tree import flatten, unflatten_like
from peftjax.peft.attach import detach
from peftjax.peft.partition import combine, kept, nothing, size
from peftjax.peft.spec import from_data, to_data
from peftjax.train.checkpoint import Checkpoints
from peftjax.train.config import check, plain
from peftjax.train.inputs import Inputs, prepare
from peftjax.train.logs import MetricsLog
from peftjax.train.memory import peak_memory_bytes
from peftjax.train.parallel import compile_step
from peftjax.train.prepare import Prepared, check_reads, prepare_model
from peftjax.train.progress import Progress
from peftjax.train.report import write_report, write_result
from peftjax.train.sharding import make_mesh
from peftjax.train.start import start_of, with_start
from peftjax.train.startup import precision, use_compilation_cache
from peftjax.train.step import TrainState
from peftjax.train.task import task_for
from peftjax.train.versions import versions
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
    with contextlib.closing(folder):
        if folder.done:
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

    # ---- the base, the data, the methods -----------------------------------------------------------------------------
    mesh = make_mesh(config.train.mesh.data, config.train.mesh.model)
    base = load_base(config.base.uri, dtype=precision(config.base.dtype).name, quantise=config.base.quantise)
    base_size = size(base.params)
    say(f"base {base.uri}: {base_size[0]:,} parameters, loaded at {time.time() - started:.1f} s")
    config, starts = with_start(config, base)
    for start in starts:
        for note in start.adapter.notes:
            say(f"note: {start.path}: {note}")
    inputs = prepare(config, base.tokenizer, (jax.process_index(), jax.process_count()), task_for(config, base.config))
    task = inputs.task
    say(f"data {config.data.name}: {inputs.report['splits']}, {inputs.train.steps_per_epoch} steps an epoch")

    # ---- the state: 1. the newest complete checkpoint of this run, 2. from scratch ------------------------------------
    with Checkpoints(
        folder.path / "checkpoints", specification(config, base, inputs) | start_of(starts), keep_newest=config.checkpoint.keep_newest,
        keep_every=config.checkpoint.keep_every or None, best="min" if config.checkpoint.best else None,
    ) as checkpoints:
        first = None if checkpoints.latest_step() is not None else lambda: [inputs.train.at(n) for n in range(config.train.init_batches)]
        prepared = prepare_model(config, base, mesh, task, starts, first)
        base = dataclasses.replace(base, params=None)  # the frozen tree holds them now
        say(prepared.table)
        state, prepared, resumed = restored(checkpoints, prepared)
        prepared = dataclasses.replace(prepared, state=None)  # used up by the first step, or not needed
        if resumed is not None:
            say(f"resumed at step {resumed}")

        # ---- compile, evaluate, train ------------------------------------------------------------------------------
        step, place = compile_step(config, prepared, mesh)
        check_reads(prepared.model, state, prepared.frozen, inputs.train.at(0))
        evaluator = task.evaluator(prepared.model, base.tokenizer, config, inputs.held, notice if main else lambda _: None)
        loop = Loop(config, folder, prepared, inputs, evaluator, checkpoints, started, main)
        state = loop.train(state, resumed, step, place)

    # ---- the result ------------------------------------------------------------------------------------------------
    if main:
        result = loop.result(base, base_size, state)
        write_result(folder.path, result)
        report = write_report(folder.path)
        say(prepared.totals)
        say(summary(result))
        say(f"report: {report}")


def notice(text: str) -> None:
    """A line for who waits; results go to stdout, this does not."""
    print(text, file=sys.stderr, flush=True)


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


class Loop:
    """The steps of one run, with what is written on the way."""

    def __init__(self, config, folder, prepared, inputs, evaluator, checkpoints, started, main):
        self.config, self.folder, self.prepared, self.inputs, self.main = config, folder, prepared, inputs, main
        self.evaluator, self.checkpoints, self.started = evaluator, checkpoints, started
        self.evaluations: list[dict] = []
        self.first_step_s = None
        self.eval_s = 0.0
        self.step_s: list[float] = []
        self.step_tokens: list[int] = []

    def train(self, state: TrainState, resumed: int | None, step, place) -> TrainState:
        """Runs the steps that are left; returns the last state."""
        total, done = self.config.train.steps, int(state.step)
        self.evaluations = self.folder.evaluations(until=resumed) if resumed is not None else []
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(MetricsLog(self.folder.path, resumed, enabled=self.main, tensorboard=self.config.log.tensorboard))
            if self.config.eval.before and self.inputs.task.measures_base and not self.evaluations:
                base = detach(self.prepared.frozen)
                self.evaluate(0, self.config.eval.at_end, nothing(base), base, log)
            batches = stack.enter_context(prefetch(lambda: (self.inputs.train.at(s) for s in range(done, total))))
            progress = stack.enter_context(Progress(total, done, enabled=self.main))
            for number, batch in zip(range(done + 1, total + 1), batches, strict=False):
                begin = time.perf_counter()
                state, metrics = step(state, self.prepared.frozen, place(batch))
                metrics = jax.device_get(metrics)
                self.count(number, batch, metrics, time.perf_counter() - begin)
                if number % self.config.log.every == 0 or number == total:
                    log.write(number, **metrics)
                progress.update(number, metrics["loss"], self.step_tokens[-1])
                score = None
                every = self.config.eval.every
                if number == total or (every and number % every == 0):
                    splits = self.config.eval.at_end if number == total else ("validation",)
                    score = self.evaluate(number, splits, state.trainable, self.prepared.frozen, log).get("loss", math.inf)
                if score is not None or number % self.config.checkpoint.every == 0:  # an evaluated state is kept, it may be the best
                    self.checkpoints.save(number, state_arrays(state, self.prepared.frozen), score)
                if score is not None:
                    progress.restart_clock()
        there = {e["split"] for e in self.evaluations if e["step"] == total}
        if missing := [split for split in self.config.eval.at_end if split not in there]:  # the last checkpoint is there without them
            with MetricsLog(self.folder.path, total, enabled=self.main, tensorboard=False) as log:
                self.evaluate(total, missing, state.trainable, self.prepared.frozen, log)
        return state

    def count(self, number: int, batch: Any, metrics: dict, seconds: float) -> None:
        """Keeps the step's time and tokens, and refuses a loss that is not finite."""
        if not np.isfinite(metrics["loss"]):
            raise FloatingPointError(
                f"loss at step {number} is {metrics['loss']} (gradient norm {metrics['grad_norm']}): training has diverged; lower "
                f"config.optimizer.learning_rate (now {self.config.optimizer.learning_rate}). "
                f"The last checkpoint is {self.checkpoints.latest_step()}"
            )
        if self.first_step_s is None:
            self.first_step_s = time.time() - self.started - self.eval_s
        self.step_s.append(seconds)
        self.step_tokens.append(int(np.count_nonzero(batch.segments)) * jax.process_count())

    def evaluate(self, number: int, splits: Sequence[str], trainable: Any, frozen: Any, log: MetricsLog) -> dict:
        """An evaluation of each split, stored and logged; the last one. Those numbered 0 are of the untouched base."""
        begin = time.time()
        base_loss = next((e["general_loss"] for e in self.evaluations if e["step"] == 0 and "general_loss" in e), None)
        if base_loss is None and number > 0 and "general" in self.inputs.held:
            base_loss = self.untouched_general_loss()
        several = number in (0, self.config.train.steps) and len(self.config.eval.at_end) > 1
        for split in splits:
            found = self.evaluator.run(number, split, trainable, frozen, base_loss)
            self.evaluations.append(found)
            if self.main:
                self.folder.write_evaluation(found, several)
                scalars = {f"eval/{key}": value for key, value in found.items() if isinstance(value, float)}
                scalars |= {f"eval/{split}/{name}": metric["mean"] for name, metric in found["metrics"].items()}
                log.write(number, **scalars)
                print(describe(found), flush=True)
        self.eval_s += time.time() - begin
        return found

    def untouched_general_loss(self) -> float:
        """The base's own loss on the general text, where it was not measured before training."""
        base = detach(self.prepared.frozen)
        return self.evaluator.row_losses("general", nothing(base), base).summary()["loss"]

    def result(self, base: Any, base_size: tuple[int, int], state: TrainState) -> dict:
        """Everything about the run as plain data: the content of result.json."""
        count, held_bytes = size(state.trainable)
        base_count, base_bytes = base_size
        after = [e for e in self.evaluations if e["split"] == self.config.eval.at_end[-1]][-1]
        before = next((e for e in self.evaluations if e["step"] == 0 and e["split"] == after["split"]), None)
        median = statistics.median(self.step_s) if self.step_s else None
        return {
            "config": plain(self.config), "versions": versions(),
            "base": {"uri": base.uri, "fingerprint": base.fingerprint, "parameters": base_count, "bytes": base_bytes},
            "tokenizer": {"fingerprint": base.tokenizer.fingerprint}, "methods": plain(self.config)["peft"],
            "trainable": {"parameters": count, "bytes": held_bytes},
            "data": {"name": self.config.data.name, "counts": self.inputs.report, "content_hash": self.inputs.fingerprint},
            "evaluations": [{k: v for k, v in e.items() if k != "predictions"} for e in self.evaluations],
            "predictions": paired_predictions(before, after, list(self.config.eval.metrics)),
            "timings": {
                "start_to_first_step_s": self.first_step_s, "train_s": sum(self.step_s), "step_s_median": median,
                "tokens_per_s": sum(self.step_tokens[1:]) / sum(self.step_s[1:]) if len(self.step_s) > 1 else None,
                "evaluation_s": self.eval_s, "total_s": time.time() - self.started, "steps_in_this_process": len(self.step_s),
            },
            "memory": peak_memory_bytes(),
        } | self.inputs.task.specification()


def paired_predictions(before: dict | None, after: dict, metrics: list[str]) -> list[dict]:
    """The items of the last evaluation, each beside what the untouched base said of it."""
    earlier = {item["id"]: item for item in before["predictions"]} if before else {}
    rows = []
    for item in after["predictions"]:
        row = {key: item[key] for key in ("id", "prompt", "reference") if key in item}
        for when, source in (("before", earlier.get(item["id"], {})), ("after", item)):
            row[when] = source.get("prediction")
            row |= {f"{key}_{when}": source[key] for key in (*metrics, "nll", "tokens") if key in source}
        rows.append(row)
    return rows


def describe(evaluation: dict) -> str:
    """`step 100: loss 0.21, perplexity 1.2, test exact_match 61.2 % [55.0, 67.1] (n 256), forgetting +0.012`."""
    parts = [f"{key} {evaluation[key]:.4g}" for key in ("loss", "perplexity") if key in evaluation]
    for name, m in evaluation["metrics"].items():
        parts.append(f"{evaluation['split']} {name} {100 * m['mean']:.1f} % [{100 * m['low']:.1f}, {100 * m['high']:.1f}] (n {m['n']})")
    if "forgetting" in evaluation:
        parts.append(f"forgetting {evaluation['forgetting']:+.4f} nats")
    return f"step {evaluation['step']}: {', '.join(parts) or 'nothing held out to measure'}"


def summary(result: dict) -> str:
    """Before and after in a few lines."""
    lines = [describe(e) for e in result["evaluations"] if e["split"] in result["config"]["eval"]["at_end"]]
    timings = result["timings"]
    if timings["tokens_per_s"]:
        lines.append(f"first step {timings['start_to_first_step_s']:.1f} s after the start of the process, evaluation apart; "
                     f"{timings['train_s']:.0f} s of training at {timings['tokens_per_s']:.0f} tokens/s, "
                     f"peak memory {result['memory']['peak_rss_bytes'] / 1e9:.2f} GB")
    return "\n".join(lines)
