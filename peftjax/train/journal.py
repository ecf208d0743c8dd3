"""What a run writes into its folder on the way: metrics, evaluations, checkpoints, and at the end the result and its report.

    with Journal(config, folder, ...) as journal:
        journal.begin(resumed)                                  None: from the start; then the base alone is evaluated
        for each step:
            journal.count(number, batch, metrics, seconds)      the line of the step
            if journal.due(number):
                journal.keep(number, snapshot)                  its evaluations, and a checkpoint
        journal.finish(...)                                     result.json, report.md

It does not compute steps, so that it is the same whoever does.
"""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from peftjax.train.checkpoint import Checkpoints
from peftjax.train.config import plain
from peftjax.train.inputs import Inputs
from peftjax.train.logs import MetricsLog
from peftjax.train.memory import peak_memory_bytes
from peftjax.train.outcome import describe, paired_predictions, patience_over
from peftjax.train.report import write_report, write_result
from peftjax.train.untouched import Untouched
from peftjax.train.versions import versions
from peftjax.train.workdir import WorkDir


class Snapshot(NamedTuple):
    """A run after a step: both halves of its tree, to evaluate, and the arrays that are stored."""

    trainable: Any
    frozen: Any
    arrays: dict[str, jax.Array]


@dataclasses.dataclass
class Timings:
    """Of this process: seconds and tokens of each step, seconds of all evaluations, and from the start to the end of the first step."""

    step_s: list[float] = dataclasses.field(default_factory=list)
    step_tokens: list[int] = dataclasses.field(default_factory=list)
    eval_s: float = 0.0
    first_step_s: float | None = None


class Journal:
    """The folder of one run while its steps are taken.

    Args:
        config: the run's.
        folder: its work directory, claimed.
        inputs: its data.
        evaluator: see `peftjax.train.task`.
        untouched: the base alone, under the same evaluator.
        checkpoints: in the folder, open.
        started: `time.time()` at the start of the process.
        main: whether this process writes.
        say: is told each evaluation.
    """

    def __init__(
        self, config: Any, folder: WorkDir, inputs: Inputs, evaluator: Any, untouched: Untouched, checkpoints: Checkpoints, started: float,
        main: bool = True, say: Callable[[str], None] = print,
    ):
        self.config, self.folder, self.inputs, self.checkpoints, self.main, self.say = config, folder, inputs, checkpoints, main, say
        self.evaluator, self.untouched, self.started = evaluator, untouched, started
        self.evaluations: list[dict] = []
        self.timings = Timings()
        self._log: MetricsLog | None = None

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Closes the log."""
        if self._log is not None:
            self._log.close()
            self._log = None

    def begin(self, resumed: int | None) -> None:
        """Opens the log where the run goes on, at the checkpoint of step `resumed`; from the start the base alone is evaluated."""
        self.evaluations = self.folder.evaluations(until=resumed) if resumed is not None else []
        self._log = MetricsLog(self.folder.path, resumed, enabled=self.main, tensorboard=self.config.log.tensorboard)
        if self.config.eval.before and self.inputs.task.measures_base and not self.evaluations:
            for split in self.config.eval.at_end:
                self._evaluated(0, lambda split=split: self.untouched.evaluation(split))

    def over(self, number: int) -> bool:
        """Whether the run ends with step `number`: its last one, or that at which its patience is over."""
        return number == self.config.train.steps or patience_over(
            [e for e in self.evaluations if e["step"] <= number], self.config.eval.patience
        )

    def count(self, number: int, batch: Any, metrics: dict, seconds: float) -> None:
        """Keeps and logs a step, and refuses a loss that is not finite. `seconds` are what the run's own part of the step took."""
        if not np.isfinite(metrics["loss"]):
            last = self.checkpoints.latest_step()
            raise FloatingPointError(
                f"loss at step {number} is {metrics['loss']} (gradient norm {metrics['grad_norm']}): training has diverged; lower "
                f"config.optimizer.learning_rate (now {self.config.optimizer.learning_rate}). "
                + ("No checkpoint was stored before" if last is None else f"The last checkpoint is that of step {last}")
            )
        timings = self.timings
        if timings.first_step_s is None:
            timings.first_step_s = time.time() - self.started - timings.eval_s
        timings.step_s.append(seconds)
        timings.step_tokens.append(int(np.count_nonzero(batch.segments)) * jax.process_count())
        if number % self.config.log.every == 0 or number == self.config.train.steps:
            self._log.write(number, **metrics)

    def due(self, number: int) -> bool:
        """Whether anything is evaluated or stored after step `number`."""
        every = self.config.eval.every
        return number == self.config.train.steps or number % self.config.checkpoint.every == 0 or bool(every) and number % every == 0

    def keep(self, number: int, snapshot: Snapshot) -> bool:
        """Evaluates and stores what is due after step `number`; whether anything was evaluated. An evaluated state is always stored: it may
        be the best."""
        every, found = self.config.eval.every, None
        if number == self.config.train.steps:
            found = self.evaluate(number, self.config.eval.at_end, snapshot)
        elif every and number % every == 0:
            found = self.evaluate(number, ("validation",), snapshot)
            if self.over(number):
                found = self.evaluate(number, [split for split in self.config.eval.at_end if split != "validation"], snapshot) or found
        score = None if found is None else found.get("loss", math.inf)
        if found is not None or number % self.config.checkpoint.every == 0:
            self.checkpoints.save(number, snapshot.arrays, score)
        return found is not None

    def compare(self, number: int, snapshot: Snapshot) -> float:
        """The loss on validation by which members of a population are compared after step `number`, logged as `rung_loss`; the state is
        stored, as the member may stop here."""
        begin = time.time()
        loss = self.evaluator.loss("validation", snapshot.trainable, snapshot.frozen)
        self._log.write(number, rung_loss=loss)
        self.timings.eval_s += time.time() - begin
        self.checkpoints.save(number, snapshot.arrays, loss)
        return loss

    def complete(self, number: int, snapshot: Snapshot) -> None:
        """Makes up for evaluations of the last step `number` that are not there."""
        there = {e["split"] for e in self.evaluations if e["step"] == number}
        self.evaluate(number, [split for split in self.config.eval.at_end if split not in there], snapshot)

    def evaluate(self, number: int, splits: Sequence[str], snapshot: Snapshot) -> dict | None:
        """An evaluation of each split, stored and logged; the last one, or None of no split."""
        found = None
        for split in splits:
            base_loss = next((e["general_loss"] for e in self.evaluations if e["step"] == 0 and "general_loss" in e), None)
            if base_loss is None and "general" in self.inputs.held:
                base_loss = self.untouched.general_loss()
            found = self._evaluated(
                number, lambda s=split, b=base_loss: self.evaluator.run(number, s, snapshot.trainable, snapshot.frozen, b)
            )
        return found

    def _evaluated(self, number: int, measure: Callable[[], dict]) -> dict:
        begin, found = time.time(), measure()
        several = len(self.config.eval.at_end) > 1 and number in (0, self.config.train.steps)
        several = several or any(e["step"] == number for e in self.evaluations)
        self.evaluations.append(found)
        if self.main:
            split = found["split"]
            self.folder.write_evaluation(found, others=several)
            scalars = {f"eval/{key}": value for key, value in found.items() if isinstance(value, float)}
            scalars |= {f"eval/{split}/{name}": metric["mean"] for name, metric in found["metrics"].items()}
            self._log.write(number, **scalars)
            self.say(describe(found))
        self.timings.eval_s += time.time() - begin
        return found

    def finish(self, base: Any, base_size: tuple[int, int], trainable_size: tuple[int, int]) -> dict:
        """Writes result.json and report.md; the result. Sizes are (number of values, bytes)."""
        result = self.result(base, base_size, trainable_size)
        write_result(self.folder.path, result)
        write_report(self.folder.path)
        return result

    def result(self, base: Any, base_size: tuple[int, int], trainable_size: tuple[int, int]) -> dict:
        """Everything about the run as plain data: the content of result.json."""
        after = [e for e in self.evaluations if e["split"] == self.config.eval.at_end[-1]][-1]
        before = next((e for e in self.evaluations if e["step"] == 0 and e["split"] == after["split"]), None)
        timings, (step_s, tokens) = self.timings, (self.timings.step_s, self.timings.step_tokens)
        return {
            "config": plain(self.config), "versions": versions(),
            "base": {"uri": base.uri, "fingerprint": base.fingerprint, "parameters": base_size[0], "bytes": base_size[1]},
            "tokenizer": {"fingerprint": base.tokenizer.fingerprint}, "methods": plain(self.config)["peft"],
            "trainable": {"parameters": trainable_size[0], "bytes": trainable_size[1]},
            "data": {"name": self.config.data.name, "counts": self.inputs.report, "content_hash": self.inputs.fingerprint},
            "evaluations": [{k: v for k, v in e.items() if k != "predictions"} for e in self.evaluations],
            "predictions": paired_predictions(before, after, list(self.config.eval.metrics)),
            "timings": {
                "start_to_first_step_s": timings.first_step_s, "train_s": sum(step_s),
                "step_s_median": statistics.median(step_s) if step_s else None,
                "tokens_per_s": sum(tokens[1:]) / sum(step_s[1:]) if len(step_s) > 1 else None,
                "evaluation_s": timings.eval_s, "total_s": time.time() - self.started, "steps_in_this_process": len(step_s),
            },
            "memory": peak_memory_bytes(),
        } | self.inputs.task.specification()
