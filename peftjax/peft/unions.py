"""Unions: methods that work together as one adapter, each a list of methods of one name.

    config.peft = methods(*unipelt())                   three methods called "default", which are trained, stored and detached together

| union        | methods                                                          | source            |
|---|---|---|
| mam          | prefix tuning and a scaled parallel bottleneck                   | 2110.04366, 2021  |
| unipelt      | LoRA, prefix tuning and a Pfeiffer bottleneck, each with a gate  | 2110.07577, 2021  |
| pfeiffer_inv | a Pfeiffer bottleneck and an invertible adapter (MAD-X)          | 2005.00052, 2020  |
| houlsby_inv  | a Houlsby bottleneck and an invertible adapter                   | 2005.00052, 2020  |

Options of a part are given as a mapping: `mam(prefix={"length": 10}, bottleneck={"size": 64})`.
"""

from collections.abc import Mapping
from typing import Any

from peftjax.peft.bottleneck import houlsby, pfeiffer, scaled_parallel
from peftjax.peft.gated_lora import gated_lora
from peftjax.peft.invertible import invertible
from peftjax.peft.prefix import prefix as prefix_tuning

Options = Mapping[str, Any]


def mam(prefix: Options | None = None, bottleneck: Options | None = None, **common) -> list[Any]:
    """Mix-and-match: a prefix of 30 from a network of width 512 (AdapterHub's is 800), and the paper's parallel bottleneck with a learned
    scale. `common` options, as `name` and `layers`, are those of both."""
    return [
        prefix_tuning(**{"length": 30, "hidden": 512, **common, **(prefix or {})}),
        scaled_parallel(**{**common, **(bottleneck or {})}),
    ]


def unipelt(lora: Options | None = None, prefix: Options | None = None, bottleneck: Options | None = None, **common) -> list[Any]:
    """LoRA of rank 8 on queries and values, a prefix of 10 and a bottleneck of D/16, with a gate for each token; with
    bottleneck={"gate": "mean"} that one's gate is the paper's, for encoders. All of AdapterHub's are: lora={"gate": "row"},
    prefix={"gating": "mean", "offset": False}."""
    return [
        gated_lora(**{**common, **(lora or {})}),
        prefix_tuning(**{"length": 10, "hidden": 512, "gates": 1, **common, **(prefix or {})}),
        pfeiffer(**{"gate": "token", **common, **(bottleneck or {})}),
    ]


def pfeiffer_inv(inverse: Options | None = None, name: str = "default", **options) -> list[Any]:
    """A language adapter of MAD-X: `pfeiffer(**options)` and `invertible(**inverse)`, of the same activation."""
    return _with_coupling(pfeiffer(name=name, **options), inverse)


def houlsby_inv(inverse: Options | None = None, name: str = "default", **options) -> list[Any]:
    """`houlsby(**options)` and `invertible(**inverse)`, of the same activation."""
    return _with_coupling(houlsby(name=name, **options), inverse)


def _with_coupling(method: Any, options: Options | None) -> list[Any]:
    return [method, invertible(**{"activation": method.activation, "name": method.name, **(options or {})})]
