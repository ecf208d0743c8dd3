"""What an answer rests on, in words: studies, measurements, what is too noisy to tell, and answers that nobody gave.

    basis(needs, near, within, quality, costs)      ("Quality: icd at small, 1000 training records, ...", "Costs: measured on ...")
    unsaid(needs, front, preferred, rules)          ("'many records' prefers some of these since rows = 1000, which is the default ...",)
"""

import dataclasses
from collections.abc import Mapping, Sequence

from peftjax.study.advice.candidates import Candidate
from peftjax.study.advice.costs import Costs, prompts_timed
from peftjax.study.advice.evidence import Evidence, Near
from peftjax.study.advice.needs import Needs
from peftjax.study.advice.rules import Prefer, Rule


def basis(
    needs: Needs, near: Sequence[Near], within: Sequence[Candidate], quality: Mapping[str, Mapping[str, Evidence]],
    costs: Costs | None,
) -> tuple[str, ...]:
    """What the answer rests on, with what it lacks; `within` are the candidates that no bound leaves out, `quality` is by their names."""
    said = []
    if not near:
        data = f"data like {needs.data}" if needs.data else "such data"
        said.append(f"No evidence of quality: no stored study compares these methods on {data}. What follows rests on costs and on what "
                    "others published with other bases and data; whether one method learns your task better is not known.")
    for one in near:
        data, budget, records = one.comparison
        caveats = f"; {', '.join(one.caveats)}" if one.caveats else ""
        first = next(iter(one.of.values()))
        said.append(f"Quality: {data} at {budget}, {records or 'all'} training records, {first.metric}, {first.seeds} seeds, from "
                    f"{first.study}{caveats}.")
    bare = sorted({one.method for one in within if near and not quality[one.name]})
    if bare:
        said.append(f"No evidence of the quality of {'; '.join(bare)}.")
    if costs is not None:
        busy = max(costs.serving.load)
        said.append(f"Costs: measured on {costs.serving.machine['processor']}, {costs.serving.machine['cores']} cores"
                    + (", before now" if costs.kept else "") + f", load {busy:.1f}.")
        for first in dict.fromkeys(costs.timed_by.values()):
            others = [name for name, by in costs.timed_by.items() if by == first]
            said.append(f"Serving of {first} was timed for {'; '.join(others)} too: they are one program.")
        faster = sorted(one.name for one in within if min(costs.of[one.name].token.high, costs.of[one.name].prompt.high) < 1)
        if faster:
            said.append(f"Timed as faster than the base alone, which no adapter is: {'; '.join(faster)}. There they count as equal to it.")
        rows = prompts_timed(needs).batch
        if rows < needs.batch:
            said.append(f"Prompts were timed on {rows} rows of {needs.prompt} tokens, not on {needs.batch}: this machine multiplies so "
                        "many about as fast as more.")
        noisy = _noisy(costs)
        if noisy:
            said.append(f"Too noisy to tell, intervals wider than 10 %: {', '.join(noisy)}. One more of --sittings, at a quieter time, is "
                        "counted together with what was timed.")
    if not within:
        said.append("Nothing remains: see why each candidate was left out.")
    return tuple(said)


def unsaid(needs: Needs, front: Sequence[Candidate], preferred: Mapping[str, tuple[str, ...]], active: Sequence[Rule]) -> tuple[str, ...]:
    """Preferences that order the front and rest on an answer that is the default."""
    defaults, found = {field.name: field.default for field in dataclasses.fields(needs)}, []
    for rule in active:
        orders = 0 < sum(rule.name in preferred[one.name] for one in front) < len(front)
        fields = [field for field, *_ in rule.when if getattr(needs, field) == defaults[field]]
        if isinstance(rule.effect, Prefer) and orders and fields:
            taken = " and ".join(f"{field} = {getattr(needs, field)}" for field in fields)
            found.append(f"'{rule.name}' prefers some of these since {taken}, which is the default: say your own number if it is another.")
    return tuple(found)


def _noisy(costs: Costs) -> list[str]:
    """By case the arms whose intervals are too wide."""
    rows, found = [row for row in costs.serving.rows + costs.training.rows if row.over], []
    for case in dict.fromkeys(row.case for row in rows):
        wide = [row.arm for row in rows if row.case == case and not row.over.kept]
        steady = [row.arm for row in rows if row.case == case and row.over.kept]
        if wide:
            some = f"all but {', '.join(map(repr, steady))}" if len(wide) > len(steady) else ", ".join(map(repr, wide))
            found.append(f"in {case} {some if steady else 'all'}")
    return found
