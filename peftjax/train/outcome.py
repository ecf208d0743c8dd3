"""What a run found, in the words of `result.json` and in lines for people."""

from collections.abc import Sequence
from typing import Any


def paired_predictions(before: dict | None, after: dict, metrics: Sequence[str]) -> list[dict]:
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


def patience_over(evaluations: Sequence[dict], patience: int) -> bool:
    """Whether the last `patience` evaluations on validation all lost more than the best before them; never with a patience of 0."""
    losses = [e["validation_loss"] for e in evaluations if e["step"] > 0 and "validation_loss" in e]
    return bool(patience) and len(losses) > patience and min(losses[-patience:]) >= min(losses[:-patience])


def describe(evaluation: dict) -> str:
    """`step 100: loss 0.21, perplexity 1.2, test exact_match 61.2 % [55.0, 67.1] (n 256), forgetting +0.012`."""
    parts = [f"{key} {evaluation[key]:.4g}" for key in ("loss", "perplexity") if key in evaluation]
    for name, m in evaluation["metrics"].items():
        parts.append(f"{evaluation['split']} {name} {100 * m['mean']:.1f} % [{100 * m['low']:.1f}, {100 * m['high']:.1f}] (n {m['n']})")
    if "forgetting" in evaluation:
        parts.append(f"forgetting {evaluation['forgetting']:+.4f} nats")
    return f"step {evaluation['step']}: {', '.join(parts) or 'nothing held out to measure'}"


def summary(result: dict[str, Any]) -> str:
    """Before and after in a few lines."""
    lines = [describe(e) for e in result["evaluations"] if e["split"] in result["config"]["eval"]["at_end"]]
    timings = result["timings"]
    if timings["tokens_per_s"]:
        lines.append(f"first step {timings['start_to_first_step_s']:.1f} s after the start of the process, evaluation apart; "
                     f"{timings['train_s']:.0f} s of training at {timings['tokens_per_s']:.0f} tokens/s, "
                     f"peak memory {result['memory']['peak_rss_bytes'] / 1e9:.2f} GB")
    return "\n".join(lines)
