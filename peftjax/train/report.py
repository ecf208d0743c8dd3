"""`report.md`: what a run did, in tables, curves and samples that a reader can judge.

    write_result(workdir, result)     -> workdir/result.json      (peftjax/train/result.py says what it holds)
    write_report(workdir)             -> workdir/report.md and workdir/curves/*.png

Everything comes from result.json and metrics.jsonl, so that a report can be written again, and later, by itself.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from peftjax.files import replacing
from peftjax.train.curves import write_curves
from peftjax.train.logs import read_metrics
from peftjax.train.result import read_result, write_result

__all__ = ["write_report", "write_result"]

FILE = "report.md"
CAPTIONS = {"loss.png": "Loss", "metrics.png": "Metrics", "forgetting.png": "Forgetting",
            "learning_rate.png": "Learning rate"}
LOSSES = {
    "loss": "loss, held-out (nats per {unit})", "perplexity": "perplexity, held-out",
    "general_loss": "loss, general text (nats per token)", "forgetting": "forgetting (nats per token)",
}
SAMPLES = 12  # predictions shown side by side
LONGEST = 240  # characters of a prompt or an answer shown


def write_report(workdir) -> Path:
    """Write `report.md` and its curves into a run's folder; the report's path.

    Raises FileNotFoundError when the folder has no result.json.
    """
    workdir = Path(workdir)
    result = read_result(workdir)
    drawn = result["config"].get("log", {}).get("pictures", True)
    curves = write_curves(workdir / "curves", read_metrics(workdir), result["evaluations"]) if drawn else []
    sections = [_summary(result), _metrics(result["evaluations"], "text" if "labels" in result else "token"), _curves(curves),
                _samples(result["predictions"]),
                _costs(result), _provenance(result)]
    path = workdir / FILE
    text = "\n\n".join(section for section in sections if section) + "\n"
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    return path


def table(header: Sequence[str], rows: Sequence[Sequence]) -> str:
    """A Markdown table; numbers to the right."""
    numeric = [all(isinstance(row[column], int | float) or str(row[column])[:1] in "-+0123456789" for row in rows)
               for column in range(len(header))]
    lines = [header, ["---:" if right else "---" for right in numeric], *rows]
    return "\n".join("| " + " | ".join(_cell(str(value)) for value in line) + " |" for line in lines)


def _summary(result: Mapping) -> str:
    """Title, and what was trained on what."""
    base, trainable, data = result["base"], result["trainable"], result["data"]
    share = 100 * trainable["parameters"] / base["parameters"]
    methods = "; ".join(_method(method) for method in result["methods"]) or "none"
    return "\n".join([
        f"# {data['name']} on {_base_name(str(base['uri']))}", "",
        f"- Methods: {methods}",
        f"- Trained: {trainable['parameters']:,} parameters ({_bytes(trainable['bytes'])}), {share:.3g} % of the "
        f"base's {base['parameters']:,}",
        "", "## Data", "", table(["", "count"], _counts(data["counts"])),
    ])


def _base_name(uri: str) -> str:
    """The last part of where a base came from; of a folder in a package, the package."""
    uri = uri.split("#")[0]
    return uri.removeprefix("pypi:").split("==")[0] if "*" in uri else uri.rstrip("/").rsplit("/", 1)[-1]


def _counts(counts: Mapping, name: str = "") -> list[list]:
    """[name, count] rows of counts that may be nested: `["train rows", 3972]`."""
    rows = []
    for key, count in counts.items():
        path = f"{name} {key}".replace("_", " ").strip()
        rows += _counts(count, path) if isinstance(count, Mapping) else [[path, count]]
    return rows


def _method(method: Mapping | str) -> str:
    """`lora(rank=8, alpha=16)`: a method with what was set."""
    if isinstance(method, str):
        return method
    fields = {key: value for key, value in method.items() if key not in ("name", "method") and value not in (None, "", [], {}, ())}
    return f"{method.get('method', 'method')}({', '.join(f'{key}={value}' for key, value in fields.items())})"


# Of an evaluation: when and of what it is, and what has rows of its own.
NOT_MEASURED = ("step", "split", "losses_of", "metrics", "predictions")


def _metrics(evaluations: Sequence[Mapping], unit: str) -> str:
    """The evaluations of the last step, a table for each split; a loss is a mean by `unit`."""
    last = [evaluation for evaluation in evaluations if evaluation["step"] == evaluations[-1]["step"]]
    return "\n\n".join(_compared(evaluations, after, unit, "" if len(last) == 1 else f" on {after['split']}") for after in last)


def _compared(evaluations: Sequence[Mapping], after: Mapping, unit: str, where: str) -> str:
    """One evaluation, with intervals, against the first one of the same split where there is one (that before training, unless the run
    left it out)."""
    compared = [each for each in evaluations if each["split"] == after["split"] and each is not after][:1] + [after]
    rows = []
    for name in dict.fromkeys(name for evaluation in compared for name in evaluation.get("metrics") or {}):
        found = [(evaluation.get("metrics") or {}).get(name) for evaluation in compared]
        change = f"{100 * (float(found[1]['mean']) - float(found[0]['mean'])):+.1f}" if len(found) == 2 and all(found) else ""
        rows.append([name.replace("_", " ") + " (%)", *map(interval, found), change, (found[-1] or found[0])["n"]])
    for name in dict.fromkeys([*LOSSES, *(name for evaluation in compared for name in evaluation)]):
        found = [evaluation.get(name) for evaluation in compared]
        if name not in NOT_MEASURED and any(value is not None for value in found):
            change = f"{float(found[1]) - float(found[0]):+.4g}" if len(found) == 2 and None not in found else ""
            label = LOSSES.get(name, name.replace("_", " ")).format(unit=unit)
            rows.append([label, *("" if value is None else f"{float(value):.4g}" for value in found), change, ""])
    header = ["", *(f"step {evaluation['step']}" for evaluation in compared), "change", "records"]
    note = "In brackets: 95 % interval. Change of a percentage is in points."
    if len(compared) == 1:  # nothing to compare with
        header, rows, note = header[:2] + header[3:], [row[:2] + row[3:] for row in rows], "In brackets: 95 % interval."
    return f"## Metrics{where}\n\n{table(header, rows)}\n\n{note}"


def interval(metric: Mapping | None) -> str:
    """`63.2 [59.1, 67.0]`."""
    if metric is None:
        return ""
    mean, low, high = (100 * float(metric[key]) for key in ("mean", "low", "high"))
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def _curves(names: Sequence[str]) -> str:
    """The pictures."""
    shown = [f"![{caption}](curves/{name})" for name, caption in CAPTIONS.items() if name in names]
    return "## Curves\n\n" + "\n".join(shown) if shown else ""


def _samples(predictions: Sequence[Mapping]) -> str:
    """Answers before and after, side by side; a spread over the records, not the first ones."""
    predictions = [one for one in predictions if one.get("after") is not None]
    if not predictions:
        return ""
    shown = [predictions[number * len(predictions) // SAMPLES] for number in range(SAMPLES)] \
        if len(predictions) > SAMPLES else predictions
    rows = [[*(verbatim(one[key]) for key in ("prompt", "reference")),
             *(verbatim(one.get(key)) + _mark(one.get(f"exact_match_{key}")) for key in ("before", "after"))]
            for one in shown]
    changed = [(float(one["exact_match_before"]), float(one["exact_match_after"])) for one in predictions
               if None not in (one.get("exact_match_before"), one.get("exact_match_after"))]
    note = ""
    if changed:
        better = sum(after > before for before, after in changed)
        worse = sum(after < before for before, after in changed)
        note = f" Of {len(changed):,} records, {better:,} became right and {worse:,} became wrong."
    return (f"## Samples\n\n{len(shown)} of {len(predictions):,} records, evenly spaced; ✓ is an exact match.{note}\n\n"
            + table(["prompt", "reference", "before", "after"], rows))


def _mark(exact: float | None) -> str:
    """A tick or a cross, nothing where it was not measured."""
    return "" if exact is None else " ✓" if float(exact) == 1 else " ✗"


def _costs(result: Mapping) -> str:
    """Time and memory."""
    labels = {
        "start_to_first_step_s": ("start to first step, evaluation apart", "s"), "train_s": ("training, last process", "s"),
        "step_s_median": ("one step, median", "s"), "tokens_per_s": ("speed", "tokens/s"),
    }
    rows = []
    for name, value in result["timings"].items():
        if value is None:  # nothing was trained in this process: the run had only its last evaluation to do
            continue
        label, unit = labels.get(name, (name.removesuffix("_s").replace("_", " "), "s" if name.endswith("_s") else ""))
        rows.append([label, f"{float(value):,.0f} {unit}" if float(value) >= 1000 else f"{float(value):.3g} {unit}"])
    for name, value in result["memory"].items():
        rows.append([name.removesuffix("_bytes").replace("_", " ").replace("rss", "resident memory"), _bytes(value)])
    rows.append(["base weights", _bytes(result["base"]["bytes"])])
    return "## Time and memory\n\n" + table(["", "measured"], rows)


def _provenance(result: Mapping) -> str:
    """What it takes to get the same again."""
    rows = [["base", result["base"]["uri"]], ["base fingerprint", result["base"]["fingerprint"]],
            ["tokenizer fingerprint", result["tokenizer"]["fingerprint"]],
            ["data hash", result["data"]["content_hash"]],
            *([name, version] for name, version in result["versions"].items())]
    return "## Made from\n\n" + table(["", ""], [[name, f"`{value}`"] for name, value in rows]) + \
        "\n\nThe config, every evaluation and every prediction are in [result.json](result.json)."


def _bytes(count) -> str:
    """`1.21 GB`, in powers of ten."""
    count = float(count)
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 999.5 * size else f"{count / size:,.0f} {unit}"
    return f"{count:.0f} bytes"


def verbatim(text: str | None) -> str:
    """A text from data or model as code, so that nothing in it is taken for markup; a long one is cut and counted."""
    if not text:
        return "" if text is None else "(empty)"
    cut = f" ({len(text) - LONGEST:,} characters more)" if len(text) > LONGEST else ""
    text = " ⏎ ".join(text[:LONGEST].splitlines()) or "⏎"
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}{cut}"


def _cell(text: str) -> str:
    """Text that cannot leave its cell."""
    return " ".join(text.splitlines()).replace("|", "\\|")
