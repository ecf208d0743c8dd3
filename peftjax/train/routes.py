"""Rows that a field of their records routes to adapters: one LoRA for each language, one for each domain.

    config.compose = {"stack": [{"batch_split": ["en", "de"], "at": "lang"}, "task"]}
    {"prompt": ..., "response": ..., "lang": "de"}                                          acts: de, then task

`at` names the field: lang, group, source, split, domain (a group up to its first "/"), or any other that the records carry. A row is for
the child that has an adapter of the field's value among its own: of ["en", {"stack": ["de", "formal"]}] a row of "de" takes the second.
Lines of a packed batch hold rows for one child of each split, so that a line is routed whole (`peftjax.peft.route`). Text for forgetting
is routed alike where its field names an adapter, and is for none of the children elsewhere.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from peftjax.data.records import Record
from peftjax.hints import did_you_mean
from peftjax.peft.attach import detach
from peftjax.peft.compose import compose, decompose
from peftjax.peft.composition import BatchSplit, Block, Composition, blocks, names
from peftjax.peft.route import route, routed_by

Routes = Mapping[str, Mapping[str, int]]  # by field: the number of the child that each value is for
_TEXTS = ("lang", "group", "source", "split")


def routes_of(plan: Composition | None) -> Routes:
    """What the `BatchSplit`s of a composition make of a row.

    Raises:
        ValueError: two children that hold one adapter, or splits by one field that number their children differently.
    """
    found: dict[str, dict[str, int]] = {}
    for block in blocks(plan) if plan is not None else ():
        if not isinstance(block, BatchSplit) or block.sizes is not None:
            continue
        numbers: dict[str, int] = {}
        for number, child in enumerate(block.children):
            for name in dict.fromkeys(names(child)):
                if name in numbers:
                    raise ValueError(f"batch_split at {block.at!r} holds {name!r} in two of its children; a row of it could be for either")
                numbers[name] = number
        if found.setdefault(block.at, numbers) != numbers:
            raise ValueError(f"two batch_splits are at {block.at!r} and hold different adapters; their rows are told apart by one number")
    return found


def value_of(record: Record, field: str) -> str:
    """A record's value of a field as text, "" where it has none."""
    if field in _TEXTS:
        return getattr(record, field)
    if field == "domain" and field not in record.extra:
        return record.group.partition("/")[0]
    return str(record.extra.get(field, ""))


def with_routes(rows: Any, source: Sequence[Record], routes: Routes, strict: bool = True) -> Any:
    """Rows of a source that know which child of each split they are for; -1, none of them, for values that name no adapter.

    Args:
        strict: refuse such values.

    Raises:
        ValueError: with the value, the record and the adapters there are.
    """
    if not routes:
        return rows
    found = {}
    for field, numbers in routes.items():
        values = [value_of(record, field) for record in source]
        strange = next((i for i, value in enumerate(values) if value not in numbers), None)
        if strict and strange is not None:
            raise ValueError(f"record {source[strange].id!r} has {field} {values[strange]!r}, for which config.compose has no adapter"
                             f"{did_you_mean(values[strange], numbers)}; its batch_split at {field!r} holds {', '.join(numbers)}")
        found[field] = np.array([numbers.get(value, -1) for value in values], np.int32)[rows.records]
    return dataclasses.replace(rows, routes=found)


def arrange(params: dict, batch: Any) -> dict:
    """The tree for a batch: each line by its own adapters. A tree that routes nothing is left as it is."""
    return follow(params, batch.routes) if routed_by(params) else params


def follow(params: dict, ids: Mapping[str, Any] | None) -> dict:
    """The tree for rows whose numbers by field, int [B], are these."""
    for at in routed_by(params):
        if at not in (ids or {}):
            raise ValueError(f"this tree routes rows by {at!r}, and the batch does not have it; it has {', '.join(ids or ()) or 'none'}")
        params = route(params, ids[at], at)
    return params


def for_rows_of(tokens: Any) -> Any:
    """(params, numbers of rows) -> the tree for a batch of these; what `generate_ids` asks for."""
    return lambda params, numbers: follow(params, {at: ids[numbers] for at, ids in tokens.routes.items()})


def for_row(params: dict, plan: Composition, row: Mapping[str, str]) -> dict:
    """The tree of rows of one kind, {"lang": "de"}, without the adapters that are for others: nothing in it is routed by these fields.

    Raises:
        ValueError: a field that nothing is routed by, or a value for which there is no adapter.
    """
    routes = routes_of(plan)
    for field, value in row.items():
        if field not in routes:
            raise ValueError(f"nothing is routed by {field!r}{did_you_mean(field, routes)}; rows are routed by "
                             f"{', '.join(routes) or 'nothing'}")
        if value not in routes[field]:
            raise ValueError(f"no adapter is for {field} {value!r}{did_you_mean(value, routes[field])}; there are "
                             f"{', '.join(routes[field])}")
    left = _chosen(plan, {field: routes[field][value] for field, value in row.items()})
    gone = set(names(plan)) - set(names(left))
    return compose(detach(decompose(params), gone), left)


def _chosen(plan: Composition, numbers: Mapping[str, int]) -> Composition:
    if not isinstance(plan, Block):
        return plan
    if isinstance(plan, BatchSplit) and plan.sizes is None and plan.at in numbers:
        return _chosen(plan.children[numbers[plan.at]], numbers)
    return plan.over(*(_chosen(child, numbers) for child in plan.children))
