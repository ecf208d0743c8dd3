"""What runs left in their folders, as rows of a study's tables."""

import json
import math
from pathlib import Path
from typing import Any

from peftjax.study.cells import Cell
from peftjax.study.execute import failure
from peftjax.train.config import flatten_data
from peftjax.train.logs import read_metrics
from peftjax.train.result import read_result

# What methods of a comparison may differ in, and what says nothing of what is computed.
OWN = ("peft", "optimizer.learning_rate", "checkpoint.", "log.")


def trial(folder: Path, cell: Cell, k: int, rate: float, seed: int, measure: str) -> dict[str, Any] | None:
    """A row of the table of trials: lower scores are better, infinity is a trial that diverged. None where the run is not done."""
    row = {"data": cell.data, "budget": cell.budget, "size": cell.size, "method": cell.method, "k": k, "rate": rate, "seed": seed}
    if failure(folder) is not None:
        return row | {"score": math.inf, "measure": measure, "settings": settings(json.loads((folder / "config.json").read_text()))}
    if not (folder / "result.json").exists():
        return None
    result = read_result(folder)
    last = [e for e in result["evaluations"] if e["split"] == "validation"][-1]
    score = last["validation_loss"] if measure == "loss" else -last["metrics"][measure]["mean"]
    return row | {"score": float(score), "measure": measure, "settings": settings(result["config"])}


def outcome(folder: Path, cell: Cell, rate: float, seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
    """(a row of the table of runs, rows of the table of items); None where the run is not done, (row with an error, []) where it failed."""
    row = {"data": cell.data, "budget": cell.budget, "size": cell.size, "method": cell.method, "rate": rate, "seed": seed, "error": None}
    error = failure(folder)
    if error is not None:
        return row | {"error": error}, []
    if not (folder / "result.json").exists():
        return None
    result = read_result(folder)
    last = [e for e in result["evaluations"] if e["split"] == "test"][-1]
    stored = json.loads((folder / "evaluations" / f"{last['step']:08d}.json").read_text())
    names = list(result["config"]["eval"]["metrics"])
    items = [
        {"data": cell.data, "budget": cell.budget, "size": cell.size, "method": cell.method, "seed": seed, "id": item["id"],
         "group": item.get("group", item["id"]), "nll": item["nll"], "tokens": item["tokens"],
         "combined": ""} | {name: item[name] for name in names}
        for item in stored["predictions"]
    ]
    return row | {
        "folder": str(folder), "metric": names[0], "loss": last["test_loss"], "forgetting": last.get("forgetting"),
        "parameters": result["trainable"]["parameters"], "bytes": result["trainable"]["bytes"],
        "records": result["data"]["content_hash"], "base": result["base"]["fingerprint"], "settings": settings(result["config"]),
        "train_s": result["timings"].get("train_s"), "curve": curve(folder, result),
    }, items


def settings(config: dict) -> dict[str, Any]:
    """What must be equal between the methods of a comparison: every field of the run but `OWN` and the steps, which time may decide."""
    return {name: value for name, value in flatten_data(config).items() if not name.startswith(OWN)}


def curve(folder: Path, result: dict, points: int = 200) -> dict[str, list]:
    """{"step", "loss"} of training, means over at most `points` stretches, and {"validation_step", "validation_loss"} where measured."""
    log = [(line["step"], line["loss"]) for line in read_metrics(folder) if "loss" in line]
    width = max(1, math.ceil(len(log) / points))
    stretches = [log[start:start + width] for start in range(0, len(log), width)]
    held = [(e["step"], e["loss"]) for e in result["evaluations"] if e.get("losses_of") == "validation"]
    return {
        "step": [stretch[-1][0] for stretch in stretches], "loss": [sum(loss for _, loss in s) / len(s) for s in stretches],
        "validation_step": [step for step, _ in held], "validation_loss": [loss for _, loss in held],
    }
