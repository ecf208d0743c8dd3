"""Interference: what is left of each adapter when those of all data sets act together as their average, measured on every data set.

    base + lora[home], lora[icd], lora[bank]  ->  Average("home", "icd", "bank")          of the same method, budget and seed

The average is over what the adapters do (`peftjax.peft.composition.Average`), which is the same for LoRAs and for bottlenecks.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from peftjax.files import replacing
from peftjax.interop.base import Base
from peftjax.interop.exchange.adapter import extract, insert
from peftjax.models.decoder import cut
from peftjax.peft.compose import compose
from peftjax.peft.composition import Average
from peftjax.peft.partition import nothing
from peftjax.study.config import run_on, slug
from peftjax.train.adapters import of_run
from peftjax.train.inputs import prepare
from peftjax.train.startup import make_model
from peftjax.train.task import task_for

WAY = "average"


def combined(
    study: ConfigDict, base: Base, runs: Sequence[Mapping[str, Any]], workdir: Path, say: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """Items of every combination whose runs are all done, as rows of the table of items. What was measured before is read again.

    Args:
        runs: rows of the table of runs.
    """
    together: dict[tuple, dict[str, Mapping]] = {}
    for run in runs:
        if not run["error"]:
            together.setdefault((run["budget"], run["size"], run["method"], run["seed"]), {})[run["data"]] = run
    whole = {key: of for key, of in together.items() if len(of) == len(study.data)}
    evaluators: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for number, (key, of) in enumerate(whole.items(), 1):
        stored = workdir / "combined" / ("-".join(slug(str(part)) for part in key) + ".json")
        rates = {data: run["rate"] for data, run in of.items()}
        found = json.loads(stored.read_text()) if stored.exists() else None
        if found is None or found["rates"] != rates:
            say(f"average {number} of {len(whole)}: {', '.join(map(str, key))}")
            found = {"rates": rates, "items": _measure(study, base, key, of, evaluators)}
            with replacing(stored) as partial:
                partial.write_text(json.dumps(found))
        rows += found["items"]
    return rows


def _measure(study: ConfigDict, base: Base, key: tuple, of: Mapping[str, Mapping], evaluators: dict[str, Any]) -> list[dict[str, Any]]:
    budget, size, method, seed = key
    params, segments = base.params, None
    for data, run in of.items():
        ready = of_run(run["folder"])
        if segments is None:
            segments = ready.segments
            params = cut(params, base.config, segments)
        params = insert(params, extract(ready.params, ready.methods, slug(data)), slug(data), run["folder"])
    params = compose(params, Average(*map(slug, of)))
    rows = []
    for data in of:
        if (data, segments) not in evaluators:
            evaluators[data, segments] = _evaluator(study, base, data, segments)
        found = evaluators[data, segments].run(0, "test", nothing(params), params, None)
        rows += [
            {"data": data, "budget": budget, "size": size, "method": method, "seed": seed, "id": item["id"], "group": item["group"],
             "nll": item["nll"], "tokens": item["tokens"], "combined": WAY}
            | {name: item[name] for name in study_metrics(study, data) if name in item} for item in found["predictions"]
        ]
    return rows


def study_metrics(study: ConfigDict, data: str) -> list[str]:
    """Metrics of a data set."""
    return list(run_on(study, data).eval.metrics)


def _evaluator(study: ConfigDict, base: Base, data: str, segments: tuple[int, ...]) -> Any:
    config = run_on(study, data)
    config.eval.general.name, config.eval.at_end = "", ("test",)
    inputs = prepare(config, base.tokenizer, task=task_for(config, base.config))
    return inputs.task.evaluator(make_model(base.config, config.model, segments), base.tokenizer, config, inputs.held, lambda _: None)
