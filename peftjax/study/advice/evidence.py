"""Quality that stored studies found: which standings are of a candidate, and which of them are nearest to somebody's data and base.

    near = nearest(found, needs, candidates, fingerprint)   by data set the comparison that is nearest, and the candidates in it

A candidate is a study's method when both do the same in all but size: rank, bottleneck and scale come from a study's budget.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from peftjax.hints import did_you_mean
from peftjax.peft.spec import from_data, to_data
from peftjax.study.advice.candidates import Candidate
from peftjax.study.advice.needs import Needs

SIZES = ("rank", "alpha", "size", "reduction_factor", "name", "dropout")  # what two sizes of one method may differ in


@dataclasses.dataclass(frozen=True)
class Evidence:
    """A method in one comparison of one study.

    Attributes:
        study: its folder.
        comparison: (data set, budget, training records, 0 for all): what is compared with each other.
        method: its name there; `key` says what it does.
        parameters: that it trained.
        base, fingerprint: of the base.
        metric: with mean, low and high: of its mean over seeds and items, and the 95 % interval.
        seeds: how many.
        tied: methods of the comparison that no test tells apart from it.
    """

    study: str
    comparison: tuple[str, str, int]
    method: str
    key: str
    parameters: int
    base: str
    fingerprint: str
    metric: str
    mean: float
    low: float
    high: float
    seeds: int
    tied: tuple[str, ...]


def key_of(specifications: Sequence[Mapping[str, Any]]) -> str:
    """What methods (as data) do in all but their size, as text."""
    kept = []
    for one in specifications:
        data = to_data(from_data(one))
        kept.append({name: _plain(value) for name, value in sorted(data.items()) if name not in SIZES})
    return json.dumps(kept, sort_keys=True)


def candidate_key(candidate: Candidate) -> str:
    """`key_of` of a candidate."""
    return key_of([to_data(method) for method in candidate.methods])


@dataclasses.dataclass(frozen=True)
class Near:
    """The comparison on one data set that is nearest to what is asked.

    Attributes:
        of: method of a candidate -> its evidence.
        comparison: which.
        caveats: in what it is not what was asked: other base, other data, other number of records.
    """

    of: dict[str, Evidence]
    comparison: tuple[str, str, int]
    caveats: tuple[str, ...]


def nearest(found: Sequence[Evidence], needs: Needs, candidates: Sequence[Candidate], fingerprint: str) -> list[Near]:
    """One for each data set, or for the one that the needs name.

    Of several comparisons: one on the same base, then one that holds more of the candidates, then one of about as many
    records, then one of a budget near to the candidates' sizes.

    Raises:
        ValueError: the needs name a data set, studies are there, and none of them has it.
    """
    sets = sorted({one.comparison[0] for one in found})
    if needs.data and found and needs.data not in sets:
        near = did_you_mean(needs.data, sets)
        raise ValueError(f"no study has data called {needs.data!r}{near}; there are {', '.join(sets)}; or name none")
    keys = {candidate_key(candidate): candidate for candidate in candidates}
    near = []
    for data in [needs.data] if needs.data else sets:
        groups: dict[tuple, list[Evidence]] = {}
        for one in found:
            if one.comparison[0] == data and one.key in keys:
                groups.setdefault((one.study, one.comparison), []).append(one)
        if groups:
            best = min(groups.values(), key=lambda group: _distance(group, needs, keys, fingerprint))
            farthest_first = sorted(best, key=lambda one: -_size_apart(one, keys))  # of one method in two sizes the nearer one is taken
            caveats = _caveats(best[0], needs, fingerprint)
            near.append(Near({keys[one.key].method: one for one in farthest_first}, best[0].comparison, caveats))
    return near


def _size_apart(one: Evidence, keys: Mapping[str, Candidate]) -> float:
    """How far the number of trained parameters is from that of the candidate, in logarithms."""
    trainable = keys[one.key].trainable
    return abs(math.log(one.parameters / trainable)) if trainable and one.parameters else math.inf


def _distance(group: list[Evidence], needs: Needs, keys: Mapping[str, Candidate], fingerprint: str) -> tuple:
    records = group[0].comparison[2]
    apart = abs(math.log(records / needs.rows)) if records else math.inf
    sizes = sum(_size_apart(one, keys) for one in group) / len(group)
    return group[0].fingerprint != fingerprint, -len({one.key for one in group}), apart, sizes, group[0].study, group[0].comparison


def _caveats(one: Evidence, needs: Needs, fingerprint: str) -> tuple[str, ...]:
    records, found = one.comparison[2], []
    if one.fingerprint != fingerprint:
        found.append(f"on another base, {one.base}")
    if not needs.data:
        found.append("your data were not named, so that this is one data set among others")
    if records and not 0.25 <= records / needs.rows <= 4:
        found.append(f"with {records} training records, yours are {needs.rows}")
    if one.seeds < 3:
        found.append(f"with {one.seeds} seed{'s' if one.seeds > 1 else ''} only")
    return tuple(found)


def _plain(value: Any) -> Any:
    """Lists for tuples, so that two ways to write a method are the same text."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return {name: _plain(one) for name, one in value.items()} if isinstance(value, Mapping) else value
