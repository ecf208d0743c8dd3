"""The configuration of a measurement of latency: which base, arms and cases.

    def get_config(variant=""):
        config = default_config()
        config.arms = as_data(Arm("base"), Arm("LoRA", (lora(rank=16),)))
        return config

A base is what `peftjax.interop.base.load_base` takes, or one of random weights in a `shape` of one's own, for which no quality is known
and which costs what a trained one of that shape does.
"""

from typing import Any

import jax
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from peftjax.hints import did_you_mean
from peftjax.interop.base import Base, load_base
from peftjax.interop.fingerprint import fingerprint
from peftjax.models.config import DecoderConfig
from peftjax.models.decoder import init_params
from peftjax.study.arms import Arm, arm_from_data, names
from peftjax.study.programs import Case
from peftjax.train.config import SMOLLM2
from peftjax.train.startup import precision


def default_config() -> ConfigDict:
    """All fields."""
    return ConfigDict({
        # As in a run's config; a `shape` (fields of a decoder's architecture) takes the place of `uri`.
        "base": {"uri": SMOLLM2, "dtype": "auto", "quantise": placeholder(object), "shape": {}},
        "arms": [],  # as_data(Arm(...), ...)
        "only": (),  # names of those that are timed; none: all
        "forward": ("1x1", "1x32", "1x128", "8x128"),  # BATCHxLENGTH
        "decode": (1, 8),  # rows
        "train": (),  # BATCHxLENGTH
        "unroll": True,
        "rounds": 30, "budget_s": 60.0,  # of each case in a sitting
        "sittings": 1,  # more of them, at other times, tell a busy minute from what an arm costs
    })


def as_data(*arms: Arm) -> list[dict[str, Any]]:
    """Arms as the data a config holds."""
    return [arm.to_data() for arm in arms]


def arms_of(config: Any) -> list[Arm]:
    """The arms that are timed. Errors as of `arm_from_data` and `names`; a ValueError too for one in `only` that there is not."""
    arms = [arm_from_data(arm.to_dict() if isinstance(arm, ConfigDict) else arm) for arm in config.arms]
    there = names(arms)
    for name in config.only:
        if name not in there:
            raise ValueError(f"config.only names {name!r}{did_you_mean(name, there)}; arms are {', '.join(there)}")
    arms = [arm for arm in arms if not config.only or arm.name in config.only]
    names(arms)
    return arms


def cases_of(config: Any) -> list[Case]:
    """The cases.

    Raises:
        ValueError: a shape that is not BATCHxLENGTH.
    """
    return [
        *(Case("forward", *_shape(text)) for text in config.forward), *(Case("decode", int(rows)) for rows in config.decode),
        *(Case("train", *_shape(text)) for text in config.train),
    ]


def base_of(config: Any) -> Base:
    """The base, loaded or made.

    Raises:
        ValueError: a field of `shape` that an architecture has not; and as `load_base`.
    """
    shape, dtype = config.base.shape.to_dict(), precision(config.base.dtype).name
    if not shape:
        return load_base(config.base.uri, dtype, config.base.quantise)
    known = [field for field in DecoderConfig.__dataclass_fields__]
    for field in shape:
        if field not in known:
            raise ValueError(f"config.base.shape has {field!r}{did_you_mean(field, known)}; fields are {', '.join(known)}")
    architecture = DecoderConfig(**shape)
    params = jax.jit(lambda key: init_params(architecture, key))(jax.random.key(0))
    text = f"random weights, width {architecture.width} x {architecture.layers} layers"
    return Base(text, architecture, params, None, fingerprint(params), dtype)


def _shape(text: str) -> tuple[int, int]:
    parts = str(text).split("x")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise ValueError(f"{text!r} is no shape; write rows and tokens as in '8x128'")
    return int(parts[0]), int(parts[1])
