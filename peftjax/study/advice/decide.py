"""The decision: rules leave out and bound, costs and quality leave a front, preferences order it, and ties are said as ties.

    remaining, left_out = by_rules(candidates, needs)       before anything is measured
    advice = decide(needs, candidates, costs, near)         after

One candidate dominates another where it is worse in nothing that is known of both and better in something: quality by the groups of the
study, times where intervals of ratios lie apart (and differ by more than TIME), bytes where they differ by more than BYTES. Quality that is
not known of both is no tie: it leaves both on the front, unless they are one method in two forms, which compute the same.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from peftjax.study.advice.basis import basis, unsaid
from peftjax.study.advice.candidates import Candidate
from peftjax.study.advice.conditions import all_hold
from peftjax.study.advice.costs import Cost, Costs
from peftjax.study.advice.evidence import Evidence, Near
from peftjax.study.advice.needs import Needs
from peftjax.study.advice.rules import RULES, Bound, Exclude, Note, Prefer, Rule
from peftjax.study.timing import Ratio

TIME, BYTES = 0.02, 0.05  # differences below are ties
BETTER, WORSE, TIED, UNKNOWN = "better", "worse", "tied", "unknown"
RECOMMENDED, CHOICE, FRONT, DOMINATED, OUT = "recommended", "tied for it", "on the front", "dominated", "left out"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of a candidate: one of the five states above, the reasons in words, what it costs (None where not measured), the rules
    that prefer it, and its quality by data set."""

    candidate: Candidate
    state: str
    reasons: tuple[str, ...]
    cost: Cost | None = None
    preferred: tuple[str, ...] = ()
    quality: Mapping[str, Evidence] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Advice:
    """The answer.

    Attributes:
        needs: what was asked.
        verdicts: of all candidates, best first.
        basis: in words, what the answer rests on, with what it lacks.
        notes: of rules.
        near: the comparisons that quality was taken from.
        costs: None where nothing was left to measure.
    """

    needs: Needs
    verdicts: tuple[Verdict, ...]
    basis: tuple[str, ...]
    notes: tuple[tuple[Rule, str], ...]
    near: tuple[Near, ...]
    costs: Costs | None

    def of(self, state: str) -> list[Verdict]:
        """The verdicts of this state."""
        return [verdict for verdict in self.verdicts if verdict.state == state]


def by_rules(
    candidates: Sequence[Candidate], needs: Needs, rules: Sequence[Rule] = RULES
) -> tuple[list[Candidate], dict[str, tuple[str, ...]]]:
    """(those that remain, name -> reasons of the others)."""
    active = [rule for rule in rules if all_hold(rule.when, needs) and isinstance(rule.effect, Exclude)]
    left_out = {}
    for candidate in candidates:
        reasons = [candidate.possible] if candidate.possible else []
        reasons += [f"{rule.why} ({rule.source})" for rule in active if all_hold(rule.effect.of, candidate)]
        if reasons:
            left_out[candidate.name] = tuple(reasons)
    return [candidate for candidate in candidates if candidate.name not in left_out], left_out


def decide(
    needs: Needs, candidates: Sequence[Candidate], costs: Costs | None, near: Sequence[Near], rules: Sequence[Rule] = RULES
) -> Advice:
    """The advice. `costs` are of those that `by_rules` leaves; None where it leaves none."""
    remaining, left_out = by_rules(candidates, needs, rules)
    active = [rule for rule in rules if all_hold(rule.when, needs)]
    quality = {one.name: {n.comparison[0]: n.of[one.method] for n in near if one.method in n.of} for one in candidates}
    bounds = {one.name: _bounds(costs.of[one.name], needs, active) for one in remaining}
    within = [one for one in remaining if not bounds[one.name].above]
    preferred = {one.name: tuple(r.name for r in active if isinstance(r.effect, Prefer) and all_hold(r.effect.of, one)) for one in within}
    beaten = {one.name: _beaten_by(one, within, costs, quality) for one in within}
    front = [one for one in within if not beaten[one.name]] or within  # of a circle none is beaten
    best, *behind = _ordered(front, preferred, costs, quality) or [[]]

    def verdict(one: Candidate, state: str, *reasons: str) -> Verdict:
        doubts = bounds[one.name].doubts if one.name in bounds else ()
        cost = costs.of[one.name] if one.name in bounds else None
        return Verdict(one, state, (*doubts, *reasons), cost, preferred.get(one.name, ()), quality[one.name])

    verdicts = [verdict(one, RECOMMENDED) for one in best] if len(best) == 1 else [
        verdict(one, CHOICE, f"not to be told apart from {', '.join(other.name for other in best if other is not one)}") for one in best
    ]
    verdicts += [verdict(one, FRONT, _why_behind(one, best[0], preferred, costs, quality)) for rank in behind for one in rank]
    verdicts += [verdict(one, DOMINATED, _by_the_best(beaten[one.name], front)) for one in within if one not in front]
    verdicts += [verdict(one, OUT, *bounds[one.name].above) for one in remaining if one not in within]
    verdicts += [verdict(one, OUT, *left_out[one.name]) for one in candidates if one.name in left_out]
    notes = tuple((rule, rule.why) for rule in active if isinstance(rule.effect, Note))
    rests_on = (*basis(needs, near, within, quality, costs), *unsaid(needs, front, preferred, active))
    return Advice(needs, tuple(verdicts), rests_on, notes, tuple(near), costs)


def relaxed(needs: Needs, candidates: Sequence[Candidate], rules: Sequence[Rule] = RULES) -> dict[str, int]:
    """Where rules leave nothing: rule -> how many candidates would remain without it."""
    found = {}
    for rule in rules:
        if isinstance(rule.effect, Exclude) and all_hold(rule.when, needs):
            count = len(by_rules(candidates, needs, [other for other in rules if other is not rule])[0])
            if count:
                found[rule.name] = count
    return found


def quality_of(a: str, b: str, quality: Mapping[str, Mapping[str, Evidence]], same: bool) -> str:
    """How the first compares with the second over the data sets: TIED where no test tells them apart on any, BETTER or WORSE where all that
    say something say so, UNKNOWN where one has no evidence or data sets disagree."""
    if same:
        return TIED
    if not quality[a] or set(quality[a]) != set(quality[b]):
        return UNKNOWN
    said = {_pair(quality[a][data], quality[b][data]) for data in quality[a]}
    clear = said - {TIED}
    return TIED if not clear else clear.pop() if len(clear) == 1 else UNKNOWN


def _pair(a: Evidence, b: Evidence) -> str:
    if b.method in a.tied or a.method == b.method:
        return TIED
    return BETTER if a.mean > b.mean else WORSE


def time_of(a: Ratio | None, b: Ratio | None) -> str:
    """How times compare, by intervals; the thing that others are compared with has none, and is 1."""
    a, b = (Ratio(1.0, 1.0, 1.0) if one is None else one for one in (a, b))
    if abs(a.value - b.value) <= TIME or (a.low <= b.high and b.low <= a.high):
        return TIED
    return BETTER if a.value < b.value else WORSE


def over_base(ratio: Ratio) -> Ratio:
    """Of serving: at least 1. An adapter adds work to the base's; what was timed as less is the same products, compiled otherwise."""
    return Ratio(*(max(1.0, value) for value in dataclasses.astuple(ratio)))


def bytes_of(a: int, b: int) -> str:
    """How bytes compare."""
    if abs(a - b) <= BYTES * max(a, b):
        return TIED
    return BETTER if a < b else WORSE


def compared(a: Candidate, b: Candidate, costs: Costs, quality: Mapping[str, Mapping[str, Evidence]]) -> dict[str, str]:
    """How the first compares with the second in all that decides."""
    x, y = costs.of[a.name], costs.of[b.name]
    return {
        "quality": quality_of(a.name, b.name, quality, a.method == b.method),
        "time of a token": time_of(over_base(x.token), over_base(y.token)),
        "time of a prompt": time_of(over_base(x.prompt), over_base(y.prompt)), "time of a training step": time_of(x.step, y.step),
        "memory when training": bytes_of(x.training_bytes, y.training_bytes),
        "memory when serving": bytes_of(x.serving_bytes, y.serving_bytes),
    }


def _beaten_by(one: Candidate, others: Sequence[Candidate], costs: Costs, quality) -> dict[str, str]:
    """By whom -> in what."""
    found = {}
    for other in others:
        said = compared(other, one, costs, quality) if other is not one else {}
        if BETTER in said.values() and not {WORSE, UNKNOWN} & set(said.values()):
            better = ", ".join(what for what, how in said.items() if how == BETTER)
            alike = "it computes the same, " if other.method == one.method else "no test tells their quality apart, "
            found[other.name] = f"{other.name} is better in {better}; {alike if said['quality'] == TIED else ''}and it is worse in nothing"
    return found


def _by_the_best(beaten: Mapping[str, str], front: Sequence[Candidate]) -> str:
    """The reason of one that is itself not beaten, where there is one."""
    standing = {one.name for one in front}
    return next((said for other, said in beaten.items() if other in standing), next(iter(beaten.values())))


class Bounds(NamedTuple):
    """Of one candidate: reasons to leave it out, and doubts."""

    above: tuple[str, ...]
    doubts: tuple[str, ...]


def _bounds(cost: Cost, needs: Needs, active: Sequence[Rule]) -> Bounds:
    above, doubts = [], []
    for rule in active:
        if not isinstance(rule.effect, Bound):
            continue
        value, most = getattr(cost, rule.effect.cost), getattr(needs, rule.effect.field) * rule.effect.unit
        low, high = (value.low, value.high) if isinstance(value, Ratio) else (value, value)
        middle = value.value if isinstance(value, Ratio) else value
        said = f"{rule.name}: {shown(rule.effect.cost, middle)} where at most {shown(rule.effect.cost, most)} is allowed"
        interval = f" [{low:.3f}, {high:.3f}]" if isinstance(value, Ratio) else ""
        if low > most:
            above.append(said + interval)
        elif high > most:
            doubts.append(f"not certain: {said}, interval{interval}")
    return Bounds(tuple(above), tuple(doubts))


def shown(cost: str, value: float) -> str:
    """A cost in its unit: megabytes, milliseconds, or times the base's."""
    if cost.endswith("_bytes"):
        return f"{value / 1e6:,.{0 if value >= 1e9 else 1}f} MB"
    return f"{1e3 * value:.3g} ms" if cost.endswith("_s") else f"{value:.3f} times the base's"


def _ordered(front: Sequence[Candidate], preferred: Mapping[str, tuple[str, ...]], costs, quality) -> list[list[Candidate]]:
    """The front in ranks, the best first: who is clearly worse in quality than another comes after it, and whose quality is not known after
    those of whom it is; then the number of preferences counts, then costs, of which one must be better in some and worse in none to come
    first."""
    left, ranks = list(front), []
    while left:
        best = [one for one in left if not any(_better(other, one, quality) for other in left)] or left
        best = [one for one in best if quality[one.name]] or best
        most = max(len(preferred[one.name]) for one in best)
        best = [one for one in best if len(preferred[one.name]) == most]
        best = [one for one in best if not any(_cheaper(o, one, costs, quality) for o in best)] or best
        ranks.append(best)
        left = [one for one in left if one not in best]
    return ranks


def _better(a: Candidate, b: Candidate, quality) -> bool:
    return quality_of(a.name, b.name, quality, a.method == b.method) == BETTER


def _cheaper(a: Candidate, b: Candidate, costs: Costs, quality) -> bool:
    said = {how for what, how in compared(a, b, costs, quality).items() if what != "quality"}
    return BETTER in said and WORSE not in said


def _why_behind(one: Candidate, best: Candidate, preferred: Mapping[str, tuple[str, ...]], costs: Costs, quality) -> str:
    how = quality_of(one.name, best.name, quality, one.method == best.method)
    if how == WORSE:
        return f"its quality is below that of {best.name}"
    if quality[best.name] and not quality[one.name]:
        return f"behind {best.name}, of which studies know the quality; of this one they do not"
    fewer = [rule for rule in preferred[best.name] if rule not in preferred[one.name]]
    said = "quality is not known of both" if how == UNKNOWN else "their quality is tied"
    if not fewer:
        return f"behind {best.name}: {said}, and it costs more"
    cheaper = [what for what, which in compared(one, best, costs, quality).items() if which == BETTER and what != "quality"]
    though = f"; it costs less in {', '.join(cheaper)}" if cheaper else ""
    return f"behind {best.name}: {said}, and what speaks for that one does not for this one ({', '.join(fewer)}){though}"
