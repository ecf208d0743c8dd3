"""Advice told: as text for a terminal, as Markdown with tables, and as plain data."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from peftjax.study.advice.candidates import FORMS
from peftjax.study.advice.conditions import all_hold, in_words
from peftjax.study.advice.costs import Cost
from peftjax.study.advice.decide import CHOICE, DOMINATED, FRONT, OUT, RECOMMENDED, Advice, Verdict
from peftjax.study.advice.rules import RULES, Bound, Exclude, Note, Prefer, Rule
from peftjax.study.measure import LOSS, measure_called
from peftjax.study.timing import Ratio

OF_QUALITY = " Quality: means with 95 % intervals; which of them differ is told by paired tests, not by these."
EFFECTS = {Exclude: "leaves out", Bound: "bounds", Prefer: "prefers", Note: "notes"}


def answer(advice: Advice) -> str:
    """One sentence."""
    first, tied = advice.of(RECOMMENDED), advice.of(CHOICE)
    if first:
        blind = "" if advice.near or not advice.of(FRONT) else ": by its costs and by what others published, for no study here compares it"
        return f"Take {first[0].candidate.name}{blind}."
    if tied:
        return f"A tie: {', '.join(one.candidate.name for one in tied)} cannot be told apart by what is known here; take any of them."
    return "Nothing fits these demands."


def as_text(advice: Advice) -> str:
    """For a terminal."""
    lines = [answer(advice), "", *advice.basis]
    for title, state in (("Recommended", RECOMMENDED), ("Tied", CHOICE), ("Behind", FRONT), ("Dominated", DOMINATED)):
        for number, one in enumerate(advice.of(state)):
            lines += ["", title] if number == 0 else []
            lines.append(f"  {one.candidate.name}{_numbers(one)}")
            lines += [f"      {reason}" for reason in one.reasons]
            lines += [f"      preferred: {', '.join(one.preferred)}"] if one.preferred else []
    lines += ["", "Left out", *(f"  {names}: {why}" for names, why in left_out(advice))] if advice.of(OUT) else []
    for number, (rule, why) in enumerate(advice.notes):
        lines += ["", "Notes"] if number == 0 else []
        lines.append(f"  {rule.name}: {why} ({rule.source})")
    return "\n".join(lines)


def left_out(advice: Advice) -> list[tuple[str, str]]:
    """(candidates, why they are left out): those of one form and one reason together, "all" where they are all of their form."""
    forms, found = Counter(one.candidate.form for one in advice.verdicts), {}
    for one in advice.of(OUT):
        for reason in one.reasons:
            found.setdefault((one.candidate.form, reason), []).append(one.candidate.method)
    return [
        (f"{FORMS[form]}, {'all' if len(methods) == forms[form] else '; '.join(methods)}", reason)
        for (form, reason), methods in found.items()
    ]


def as_markdown(advice: Advice, picture: str | None = None) -> str:
    """With tables, and the picture if there is one."""
    parts = [f"# Advice\n\n**{answer(advice)}**", "\n".join(f"- {line}" for line in advice.basis)]
    measured = [one for one in advice.verdicts if one.cost is not None]
    if measured:
        sets = list(dict.fromkeys(data for one in measured for data in one.quality))
        heads = ["candidate", "", *sets, "token", "prompt", "step s", "training MB", "serving MB", "stored MB", "trains"]
        parts.append(_table(heads, [_row(one, sets) for one in measured]))
        parts.append("Token and prompt: times the base's, with 95 % intervals. Serving: parameters for all domains. Stored: one adapter in "
                     f"float32.{OF_QUALITY if sets else ''}")
    if picture:
        parts.append(f"![Costs of the candidates]({picture})")
    parts.append("## Why\n\n" + _table(["candidate", "", "because"], [
        [one.candidate.name, one.state, "; ".join([*one.reasons, *(f"preferred: {name}" for name in one.preferred)]) or "its costs"]
        for one in advice.verdicts if one.state != OUT
    ]))
    if advice.of(OUT):
        parts.append("## Left out\n\n" + _table(["candidates", "because"], left_out(advice)))
    parts.append("## Rules that held\n\n" + rules_table(rule for rule in RULES if all_hold(rule.when, advice.needs)))
    parts.append("## What was asked\n\n" + _table(["question", "answer"], [
        [field.metadata["ask"], _answer(getattr(advice.needs, field.name))] for field in dataclasses.fields(advice.needs)
    ]))
    return "\n\n".join(parts) + "\n"


def rules_table(rules: Iterable[Rule]) -> str:
    """Rules in Markdown."""
    return _table(["rule", "when", "does", "why", "source"], [
        [rule.name, in_words(rule.when), _effect(rule.effect), rule.why, rule.source] for rule in rules
    ])


def as_data(advice: Advice) -> dict[str, Any]:
    """Plain data for JSON."""
    return {
        "answer": answer(advice), "needs": dataclasses.asdict(advice.needs), "basis": list(advice.basis),
        "candidates": [
            {
                "name": one.candidate.name, "state": one.state, "reasons": list(one.reasons), "preferred": list(one.preferred),
                "cost": None if one.cost is None else dataclasses.asdict(one.cost),
                "quality": {data: dataclasses.asdict(found) for data, found in one.quality.items()},
            }
            for one in advice.verdicts
        ],
        "notes": [{"rule": rule.name, "why": why, "source": rule.source} for rule, why in advice.notes],
    }


def _effect(effect: Any) -> str:
    if isinstance(effect, Exclude | Prefer):
        return f"{EFFECTS[type(effect)]} {in_words(effect.of)}"
    return f"bounds {effect.cost} by {effect.field}" if isinstance(effect, Bound) else EFFECTS[type(effect)]


def _numbers(one: Verdict) -> str:
    """What a candidate costs and how good it was, in half a line."""
    if one.cost is None:
        return ""
    quality = "".join(f", {data} {_score(found)}" for data, found in one.quality.items())
    return f": token {_ratio(one.cost.token)}, step {one.cost.step_s:.3g} s, {one.cost.serving_bytes / 1e6:.4g} MB when serving{quality}"


def _row(one: Verdict, sets: Sequence[str]) -> list[str]:
    cost: Cost = one.cost
    return [
        one.candidate.name, one.state, *(_score(one.quality[data]) if data in one.quality else "no evidence" for data in sets),
        _ratio(cost.token), _ratio(cost.prompt), f"{cost.step_s:.3g}", f"{cost.training_bytes / 1e6:.4g}",
        f"{cost.serving_bytes / 1e6:.4g}", f"{cost.stored_bytes / 1e6:.3g}", f"{one.candidate.trainable:,}",
    ]


def _ratio(ratio: Ratio) -> str:
    return f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]" + ("" if ratio.kept else " (noisy)")


def _score(found: Any) -> str:
    measure = measure_called(found.metric)
    if measure is LOSS:  # of which more is better with the sign turned; a reader knows it without
        mean, low, high = (measure.value(-value) for value in (found.mean, found.high, found.low))
        return f"loss {mean} [{low}, {high}] nats a token"
    mean, low, high = map(measure.value, (found.mean, found.low, found.high))
    return f"{mean} % [{low}, {high}]"


def _answer(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "no demand" if value in (None, "") else str(value)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, ["---"] * len(heads), *rows])
