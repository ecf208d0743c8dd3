"""Which runs can share one program: those of one base held one way, cut at the same layers, with batches of one shape and as many steps.

They may differ in methods, ranks, every number of the optimiser, seeds and data.
"""

import json
from collections.abc import Sequence
from typing import Any

from peftjax.train.config import flat_config, plain

MOST = 32  # members of a program: each holds its trainables and the optimiser's state, three times its float32 parameters with Adam
SAME = (
    "base.", "model.", "train.steps", "train.batch_size", "train.accumulate", "train.parallel", "train.mesh.", "data.length", "data.layout",
)


def shared_fields(config: Any) -> dict[str, Any]:
    """What members of one program must have in common, by dotted name."""
    same = {name: value for name, value in flat_config(config).items() if name.startswith(SAME)}
    layers = {json.dumps(method["layers"]) for method in plain(config)["peft"] if method.get("layers") is not None}
    return same | {"peft[...].layers": sorted(layers)}


def alone(config: Any) -> str | None:
    """Why a run cannot share a program; None where it can."""
    if config.train.parallel != "jit":
        return f"config.train.parallel is {config.train.parallel!r}; populations are compiled by jit"
    if config.data.layout == "buckets":
        return "config.data.layout is 'buckets', whose batches have several shapes; 'packed' and 'rows' have one"
    return None


def programs(configs: Sequence[Any], most: int = MOST) -> list[list[int]]:
    """Numbers of configs that can share a program, in lists of at most `most`, in the order of their first; every config is in one list.
    A config that can share none is in a list of its own, and is for `peftjax.train.loop.run`."""
    groups: dict[str, list[int]] = {}
    for number, config in enumerate(configs):
        key = json.dumps(shared_fields(config), sort_keys=True, default=str)
        groups.setdefault(f"{number} alone" if alone(config) else key, []).append(number)
    return [group[start : start + most] for group in groups.values() for start in range(0, len(group), most)]
