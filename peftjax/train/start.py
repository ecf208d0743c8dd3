"""Training on from an adapter that is there already: `config.adapter.path`, in our own form, HF PEFT's or AdapterHub's.

Its methods join `config.peft`, at the front, and its values take the place of initial ones. Further methods of the config are trained
beside it.
"""

from typing import Any

from ml_collections import ConfigDict

from peftjax.interop.base import Base
from peftjax.interop.exchange.adapter import Adapter, digest
from peftjax.interop.exchange.load import read_adapter
from peftjax.train.config import methods


def with_start(config: Any, base: Base) -> tuple[ConfigDict, Adapter | None]:
    """(the config with the adapter's methods in it, the adapter); the config itself and None where it names none.

    Raises:
        FileNotFoundError, ValueError: no adapter there, or none for this base.
    """
    if not config.adapter.path:
        return config, None
    adapter = read_adapter(config.adapter.path, base, config.adapter.other_base)
    config = ConfigDict(config.to_dict())
    own = methods(*adapter.methods)
    for method in own:
        method.name = config.adapter.name
    config.peft = [*own, *(ConfigDict(method) for method in config.peft)]
    return config, adapter


def start_of(adapter: Adapter | None) -> dict[str, Any]:
    """What a checkpoint must agree with: the values it began with."""
    return {} if adapter is None else {"start": digest(adapter)}
