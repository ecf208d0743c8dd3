"""`result.json`: all that a finished run found, in one document.

    {
      "config": {...},                                   the run's config, as plain data
      "versions": {"jax": "0.10.2", ...},                peftjax.train.versions
      "base": {"uri", "fingerprint", "parameters", "bytes"},
      "tokenizer": {"fingerprint"},
      "methods": [{"method": "lora", "rank": 8, ...}],
      "trainable": {"parameters", "bytes"},
      "data": {"name", "counts": {"train": 4000, ...}, "content_hash"},            counts may be nested
      "evaluations": [{"step": 0, "split": "test", "loss": nats a token, "perplexity",
                       "metrics": {"exact_match": {"mean", "low", "high", "n"}},      low, high: 95 % interval
                       "general_loss": nats a token, "forgetting": change of it since step 0}, ...],
      "predictions": [{"id", "prompt", "reference", "before", "after", "exact_match_before", "exact_match_after"}, ...],
      "timings": {"start_to_first_step_s", "train_s", "step_s_median", "tokens_per_s"},
      "memory": {"peak_rss_bytes", "peak_device_bytes" where there is a device that counts}
    }

An evaluation must have its step; what else it measured is up to the run, and so is what was timed (None: not measured).
Further keys are kept as they are. JSON has no word for numbers that are not finite: they stand as "NaN", "Infinity" and
"-Infinity", which `float` reads.
"""

import difflib
import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from peftjax.files import replacing

FILE = "result.json"
KEYS = ("config", "versions", "base", "tokenizer", "methods", "trainable", "data", "evaluations", "predictions",
        "timings", "memory")


def write_result(workdir, result: Mapping) -> Path:
    """Write `workdir/result.json` atomically; its path.

    Raises ValueError naming the keys that are missing, an evaluation without a step, or a value that JSON cannot hold.
    """
    missing = [key for key in KEYS if key not in result]
    if missing:
        near = {key: difflib.get_close_matches(key, result, n=1) for key in missing}
        raise ValueError("the result lacks " + ", ".join(
            key + (f" (found {near[key][0]!r})" if near[key] else "") for key in missing))
    for number, evaluation in enumerate(result["evaluations"]):
        if "step" not in evaluation:
            raise ValueError(f"evaluation {number} has no step; it has {', '.join(evaluation)}")
    text = json.dumps(_plain(result, "result"), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    path = Path(workdir) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:  # the error handler, because a model may well write half a surrogate pair
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    return path


def read_result(workdir) -> dict:
    """The document that `write_result` wrote; FileNotFoundError when the run has none yet."""
    return json.loads((Path(workdir) / FILE).read_text("utf-8"))


def _plain(value, where: str):
    """The value as JSON holds it: numbers of NumPy and JAX as Python's, numbers that are not finite as their names."""
    if isinstance(value, Mapping):
        if stray := [key for key in value if not isinstance(key, str)]:
            raise ValueError(f"{where} has the key {stray[0]!r}; JSON keys are texts")
        return {key: _plain(child, f"{where}.{key}") for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(child, f"{where}.{number}") for number, child in enumerate(value)]
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Path):
        return str(value)
    if not isinstance(value, int | float):
        if getattr(value, "shape", None) != ():
            raise ValueError(f"{where} is a {type(value).__name__}, which JSON cannot hold: {str(value)[:80]}")
        value = np.asarray(value).item()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
