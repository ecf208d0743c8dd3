"""Methods as data: what a config holds, a checkpoint stores and a person overrides on the command line.

    as_code(lora(rank=4)) == "lora(rank=4)", what is the default left out
    to_data(lora(rank=8)) == {"method": "lora", "rank": 8, "alpha": None, ...};   from_data(to_data(m)) is m again, lists as tuples
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from peftjax.hints import did_you_mean
from peftjax.peft.across_layers import across_layers
from peftjax.peft.adalora import adalora
from peftjax.peft.boft import boft
from peftjax.peft.bottleneck import bottleneck
from peftjax.peft.classifier import classifier
from peftjax.peft.compacter import compacter
from peftjax.peft.delora import delora
from peftjax.peft.dense_delta import dense_delta
from peftjax.peft.fourierft import fourierft
from peftjax.peft.fusion import fusion
from peftjax.peft.gated_lora import gated_lora
from peftjax.peft.gralora import gralora
from peftjax.peft.hira import hira
from peftjax.peft.hra import hra
from peftjax.peft.ia3 import ia3
from peftjax.peft.invertible import invertible
from peftjax.peft.loha import loha
from peftjax.peft.lokr import lokr
from peftjax.peft.lora import lora
from peftjax.peft.miss import miss
from peftjax.peft.oft import oft
from peftjax.peft.parts import bitfit, full, head_only, norm_only
from peftjax.peft.prefix import prefix
from peftjax.peft.prompt import p_tuning, prompt_tuning
from peftjax.peft.randlora import randlora
from peftjax.peft.reft import reft
from peftjax.peft.road import road
from peftjax.peft.shira import shira
from peftjax.peft.tokens import trainable_tokens
from peftjax.peft.vera import vera

METHODS = {
    "lora": lora,
    "adalora": adalora,
    "bottleneck": bottleneck,
    "full": full,
    "bitfit": bitfit,
    "norm_only": norm_only,
    "head_only": head_only,
    "classifier": classifier,
    "trainable_tokens": trainable_tokens,
    "dense_delta": dense_delta,
    "delora": delora,
    "fourierft": fourierft,
    "gralora": gralora,
    "hira": hira,
    "loha": loha,
    "lokr": lokr,
    "miss": miss,
    "randlora": randlora,
    "shira": shira,
    "vera": vera,
    "ia3": ia3,
    "oft": oft,
    "boft": boft,
    "hra": hra,
    "road": road,
    "across_layers": across_layers,
    "compacter": compacter,
    "gated_lora": gated_lora,
    "invertible": invertible,
    "prefix": prefix,
    "prompt_tuning": prompt_tuning,
    "p_tuning": p_tuning,
    "reft": reft,
    "fusion": fusion,
}


def to_data(method: Any) -> dict[str, Any]:
    """A method as plain data, one within another too. Pattern tables become lists of [pattern, value], since config keys may hold no dots.
    """
    data = {"method": type(method).__name__}
    for field in dataclasses.fields(method):
        value = getattr(method, field.name)
        if isinstance(value, Mapping):
            value = [list(pair) for pair in value.items()]
        elif isinstance(value, range | tuple | list):
            value = list(value)
        elif dataclasses.is_dataclass(value):
            value = to_data(value)
        data[field.name] = value
    return data


def as_code(method: Any) -> str:
    """A method as a config file says it, `lora(rank=8)`: what is the default is left out."""
    said = []
    for field in dataclasses.fields(method):
        value = getattr(method, field.name)
        made = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if value != made:
            said.append(f"{field.name}={as_code(value) if dataclasses.is_dataclass(value) else repr(value)}")
    return f"{type(method).__name__}({', '.join(said)})"


def from_data(data: Mapping[str, Any]) -> Any:
    """The method that some data describe.

    Raises:
        ValueError: no such method, or no such field, with the nearest right one.
    """
    data = dict(data)
    name = data.pop("method", None)
    if name not in METHODS:
        raise ValueError(f"no method is called {name!r}{did_you_mean(str(name), METHODS)}; methods are {', '.join(METHODS)}")
    method = METHODS[name]
    fields = {field.name: field for field in dataclasses.fields(method)}
    for field in data:
        if field not in fields:
            raise ValueError(f"{name} has no field {field!r}{did_you_mean(field, fields)}; fields are {', '.join(fields)}")
    return method(**{field: _from_plain(field, value) for field, value in data.items()})


def _from_plain(field: str, value: Any) -> Any:
    if field.endswith("_pattern"):
        return dict(tuple(pair) for pair in (value.items() if isinstance(value, Mapping) else value))
    if isinstance(value, Mapping) and "method" in value:
        return from_data(value)
    return tuple(value) if isinstance(value, list | tuple) else value
