"""Adapters that are there already, in our own form, HF PEFT's or AdapterHub's: trained on, or held as they are.

    config.adapter.path = "my-lora"                                          one, trained on
    config.adapters = [loaded("adapters/en", "en", train=False), ...]        several, of which some are held: to train a fusion of them

Their methods join `config.peft`, at the front, and their values take the place of initial ones. Methods of the config are trained beside
them. What is held has no dropout, and lies in the run's checkpoints, so that the run does not need the directories again.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from peftjax.interop.base import Base
from peftjax.interop.exchange.adapter import Adapter, digest
from peftjax.interop.exchange.load import read_adapter
from peftjax.train.config import loads, methods

_NOISE = ("dropout", "stochastic_depth")


@dataclasses.dataclass(frozen=True, eq=False)
class Start:
    """An adapter that a run begins with: its name there, the directory it was read from, and whether it is trained on."""

    name: str
    path: str
    train: bool
    adapter: Adapter


def with_start(config: Any, base: Base) -> tuple[ConfigDict, tuple[Start, ...]]:
    """(the config with the adapters' methods in it, the adapters); the config itself and () where it names none.

    Raises:
        FileNotFoundError, ValueError: no adapter there, or none for this base.
    """
    starts = tuple(Start(one.name, one.path, one.train, read_adapter(one.path, base, one.other_base)) for one in loads(config))
    if not starts:
        return config, ()
    config = ConfigDict(config.to_dict())
    config.peft = [*(method for start in starts for method in _methods(start)), *(ConfigDict(method) for method in config.peft)]
    return config, starts


def held(starts: Sequence[Start]) -> tuple[str, ...]:
    """Names of the adapters that are not trained."""
    return tuple(start.name for start in starts if not start.train)


def start_of(starts: Sequence[Start]) -> dict[str, Any]:
    """What a checkpoint must agree with: the values it began with, and which of them are held."""
    if not starts:
        return {}
    return {"start": {start.name: digest(start.adapter) for start in starts}} | ({"held": list(held(starts))} if held(starts) else {})


def _methods(start: Start) -> list[ConfigDict]:
    own = methods(*start.adapter.methods)
    for method in own:
        method.name = start.name
        if not start.train:
            method.update({field: 0.0 for field in _NOISE if field in method})
    return own
