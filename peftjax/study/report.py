"""The report of a study, from its tables alone: report.md with figures/*.png, and report.html, one page with all in it."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftjax.files import replacing
from peftjax.study import report_notes as notes
from peftjax.study.blocks import Block, Code, Heading, Items, Picture, Text, markdown, page
from peftjax.study.compare import Analysis, analyse
from peftjax.study.figures.critical import critical
from peftjax.study.figures.effects import effects
from peftjax.study.figures.heat import heat
from peftjax.study.figures.learning import learning
from peftjax.study.figures.pareto import pareto
from peftjax.study.figures.tuning import tuning
from peftjax.study.measure import PERCENT
from peftjax.study.report_tables import costs, pairs, settings, standings, together
from peftjax.study.tables import Tables, read
from peftjax.study.words import answers, place, ranking

DOMAINS = 24  # columns of the heat map


def write_report(workdir: str | Path) -> Path:
    """Writes the report of the tables in a study's folder; the path of the Markdown.

    Raises:
        FileNotFoundError: the study has stored no tables yet.
    """
    workdir = Path(workdir)
    document = blocks(read(workdir))
    for block in document:
        if isinstance(block, Picture):
            with replacing(workdir / "figures" / f"{block.name}.png") as partial:
                partial.write_bytes(block.content)
    title = next(block.text for block in document if isinstance(block, Heading))
    for name, text in {"report.md": markdown(document), "report.html": page(document, title)}.items():
        with replacing(workdir / name) as partial:
            partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    return workdir / "report.md"


def blocks(tables: Tables) -> list[Block]:
    """The document."""
    analysis, study = analyse(tables), tables.plan["study"]
    methods = list(study["methods"])
    document: list[Block] = [Heading(f"Study: {', '.join(methods)}", 1), Text(notes.what(tables))]
    said = answers(analysis, study["region"]) or ["Nothing can be said yet: no comparison is finished and fair."]
    document += [Heading("Answer"), Items(said), Text(ranking(analysis))] + _refused(analysis)
    document += _pictures(tables, analysis, methods)
    document += [Heading("Quality"), standings(tables, analysis), Text(notes.of_standings())]
    document += [Heading("Pairs"), pairs(analysis), Text(notes.of_pairs(study)), Heading("Settings"), settings(tables)]
    if analysis.together:
        document += [Heading("Interference"), together(analysis, study["level"]), Text(notes.of_together())]
    if tables.plan["costs"]["rows"]:
        document += [Heading("Costs"), costs(tables), Text(notes.of_costs(tables.plan["costs"]))]
    return document + [Heading("How it was done"), Items(notes.how(tables)), Code(notes.made_from(tables.plan))]


def _refused(analysis: Analysis) -> list[Block]:
    if not analysis.refused:
        return []
    several = len({comparison[2] for comparison in analysis.refused}) > 1
    reasons = [f"{place(comparison, several)}: {'; '.join(found)}." for comparison, found in analysis.refused.items()]
    return [Text("**Not compared**, because it would not be fair or is not finished:"), Items(reasons)]


def _pictures(tables: Tables, analysis: Analysis, methods: Sequence[str]) -> list[Block]:
    study, rows = tables.plan["study"], tables.plan["costs"]["rows"]
    caption = "Differences of all pairs. Intervals are of each one by itself; colours are verdicts, corrected for how many there are."
    found: list[tuple[str, str, bytes | None]] = [("effects", caption, effects(analysis.pairs, study["region"], analysis.measure))]
    if analysis.ranking is not None:
        caption = "Critical-difference diagram: mean ranks over all comparisons, best on the left; bars join what cannot be told apart."
        found.append(("critical", caption, critical(analysis.ranking)))
    for size in study["sizes"]:
        with_size = f" ({size or 'all'} training records)" if len(study["sizes"]) > 1 else ""
        for name, caption, values, label, log, spread in _axes_of_cost(tables, rows):
            picture = pareto(analysis, methods, size, values, label, log, spread)
            found.append((f"pareto-{name}" + (f"-{size}" if with_size else ""), f"Quality against {caption}{with_size}.", picture))
    shown = analysis.measure.label("metric")
    found.append(("domains", f"Quality by domain of the test items, {shown}.", _domains(analysis)))
    found.append(("learning", "Training loss: mean over seeds, band from the lowest to the highest seed.", learning(tables.runs, methods)))
    found.append(("tuning", "Learning rates on validation; filled: the chosen one; crosses diverged.", tuning(tables.trials, methods)))
    return [Heading("Pictures")] + [Picture(name, caption, content) for name, caption, content in found if content is not None]


def _axes_of_cost(tables: Tables, rows: Sequence[dict[str, Any]]):
    """(name, in words, cost by treatment, label, logarithmic, spread by treatment) of each cost there is."""
    held = {(one["method"], one["budget"]): 4 * one["parameters"] / 1e3 for one in tables.plan["treatments"]}
    yield "bytes", "bytes of the trained numbers", held, "adapter (kB in float32)", True, {}
    if not rows:
        return
    ms = {(row["method"], row["budget"]): {name: 1e3 * value for name, value in row["step_s"].items()} for row in rows}
    middle, ends = {key: one["median"] for key, one in ms.items()}, {key: (one["low"], one["high"]) for key, one in ms.items()}
    yield "time", "the time of a training step", middle, "training step (ms)", False, ends
    for case in rows[0]["latency"]:
        found = {(row["method"], row["budget"]): row["latency"][case]["beside"] for row in rows if row["latency"][case]["beside"]}
        middle, ends = {key: one["value"] for key, one in found.items()}, {key: (one["low"], one["high"]) for key, one in found.items()}
        shape = case.split()[-1]
        words = f"the time of reading a prompt of {shape}, adapter beside the base"
        yield f"latency-{shape}", words, middle, f"latency, times the base's ({shape})", False, ends


def _domains(analysis: Analysis) -> bytes | None:
    columns = sorted(analysis.domains)
    shown, left = [], set()
    for data in dict.fromkeys(data for data, _ in columns):  # an even share of the columns for each data set
        own = [column for column in columns if column[0] == data]
        share = max(1, DOMAINS // len({data for data, _ in columns}))
        shown += own[:share]
        left |= set(own[share:])
    rows = list(dict.fromkeys(key for column in shown for key in analysis.domains[column]))
    gaps = [n for n in range(1, len(shown)) if shown[n][0] != shown[n - 1][0]]
    names = [f"{method}, {budget}" + (f", {size}" if size else "") for budget, size, method in rows]
    values = [[analysis.domains[column].get(row, math.nan) for column in shown] for row in rows]
    return heat(names, [f"{data}: {domain}" if data != domain else data for data, domain in shown], values, gaps,
                analysis.measure is PERCENT)
