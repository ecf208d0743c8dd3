"""The log of a run: `metrics.jsonl`, one JSON object a line, and TensorBoard event files beside it.

    {"step": 0, "eval/loss": 3.2, "eval/exact_match": 0.04}
    {"step": 1, "loss": 2.9, "learning_rate": 0.0001}

    with MetricsLog(workdir, resume_at=checkpoint_step) as log:      # None: a run from its start
        log.write(step, loss=loss, learning_rate=rate)

A line is out when `write` returns. A run that resumes at step s drops the lines past s, so that its file equals that
of a run never stopped, as long as everything of step s is written before the checkpoint of step s. JSON has no word for
numbers that are not finite: they stand as "NaN", "Infinity" and "-Infinity", and `read` gives floats.
"""

import json
import math
from pathlib import Path

import numpy as np

from peftjax.files import replacing

FILE = "metrics.jsonl"
TENSORBOARD = "tensorboard"
NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class MetricsLog:
    """Appends scalars to `workdir/metrics.jsonl` and, with `tensorboard`, to event files in `workdir/tensorboard`.

    Args:
        workdir: the run's folder; created if needed.
        resume_at: lines of later steps are dropped; None drops all of them.
        enabled: False on every process but process 0: then nothing is written.
        tensorboard: whether event files are written; needs the package tensorboardX.
    """

    def __init__(self, workdir, resume_at: int | None = None, enabled: bool = True, tensorboard: bool = True):
        self._path = Path(workdir) / FILE
        self._file = self._events = None
        if not enabled:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        _keep(self._path, -1 if resume_at is None else resume_at)
        self._file = self._path.open("ab", buffering=0)  # unbuffered: a line is out when `write` returns
        if tensorboard:
            from tensorboardX import SummaryWriter

            purge = 0 if resume_at is None else resume_at + 1
            self._events = SummaryWriter(str(self._path.parent / TENSORBOARD), purge_step=purge, flush_secs=10)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Flush and close both files."""
        for file in (self._file, self._events):
            if file is not None:
                file.close()
        self._file = self._events = None

    def write(self, step: int, /, **scalars) -> None:
        """Append one line: `step` and the scalars, each a Python, NumPy or JAX number of shape ().

        Names with a slash come as `**{"eval/loss": 0.1}`. Raises ValueError for a value that is no number, and for one
        called "step".
        """
        if self._file is None:
            return
        if "step" in scalars:
            raise ValueError("'step' is the line's own step; call the value something else")
        values = {name: _number(name, value) for name, value in scalars.items()}
        line = {"step": int(step)} | {name: _named(value) for name, value in values.items()}
        self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, int(step))

    def read(self) -> list[dict]:
        """The lines written so far, as `read_metrics`."""
        return read_metrics(self._path.parent)


def read_metrics(workdir) -> list[dict]:
    """The lines of a run's `metrics.jsonl`; [] when there is none.

    A last line without its end is left out: its writer was killed. Raises ValueError naming file and line for any other
    line that is not a JSON object with a step.
    """
    path = Path(workdir) / FILE
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    return [_parse(path, number, line) for number, line in enumerate(lines, 1)]


def _keep(path: Path, last_step: int) -> None:
    """Drop the lines past `last_step` and a half-written last one, atomically; later writes go to the new file."""
    if not path.is_file():
        return
    content = path.read_bytes().split(b"\n")[:-1]
    kept = [line for number, line in enumerate(content, 1) if _parse(path, number, line)["step"] <= last_step]
    with replacing(path) as partial:
        partial.write_bytes(b"".join(line + b"\n" for line in kept))


def _parse(path: Path, number: int, line: bytes) -> dict:
    """One line as a dict, with its floats back; ValueError naming the line when it is not one of ours."""
    try:
        values = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{path}, line {number} is not JSON ({error}): {line[:80]!r}") from error
    if not isinstance(values, dict) or not isinstance(values.get("step"), int):
        raise ValueError(f"{path}, line {number} is not an object with a step: {line[:80]!r}")
    return {name: NOT_FINITE.get(value, value) if isinstance(value, str) else value for name, value in values.items()}


def _number(name: str, value) -> int | float:
    """A Python number from a scalar of any kind."""
    array = np.asarray(value)
    real = array.dtype.kind not in "OUSMm" and np.result_type(array, np.float64) == np.float64  # bfloat16 has kind V
    if array.shape != () or not real:
        found = f"{type(value).__name__} of shape {array.shape}: {str(value)[:60]}"
        raise ValueError(f"{name} must be one number; found {found}")
    return int(array) if array.dtype.kind in "iub" else float(array)


def _named(value: int | float) -> int | float | str:
    """The number itself, or the name of one that is not finite."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
