"""LoRA's relatives as the plain LoRA that they are as a function, for formats, banks and servers that know no other.

    before  ShiftedLoRA(a, b, start_a, start_b)      AdaLoRA(a, e, b)       LoRAFA(a, b)
    after   LoRA([a; start_a], [b; -start_b])        LoRA(a, e b)           LoRA(a, b)

The scale stays what it is: where a format writes it as alpha / rank, alpha doubles with the rank (`plain_method`).
"""

import dataclasses
from typing import Any

from peftjax.nn.kernels import Kernel
from peftjax.nn.tree import put, walk
from peftjax.peft.adalora import AdaLoRA, adalora
from peftjax.peft.inits import parse
from peftjax.peft.lora import LoRA, LoRAFA, lora
from peftjax.peft.shifted import ShiftedLoRA

RELATIVES = (ShiftedLoRA, AdaLoRA, LoRAFA)


def as_plain(params: dict) -> dict:
    """A new tree that computes the same, in which every such node is a plain LoRA."""
    for path, value in list(walk(params)):
        if isinstance(value, Kernel):
            params = put(params, path, plain(value))
    return params


def plain(value: Any) -> Any:
    """A node, with what it wraps, in which every such node is a plain LoRA."""
    base = getattr(value, "base", None)
    if isinstance(base, Kernel):
        value = dataclasses.replace(value, base=plain(base))
    if isinstance(value, ShiftedLoRA | AdaLoRA):
        return LoRA(value.base, *value.rows(), value.scale, value.dropout, value.name)
    if isinstance(value, LoRAFA):
        return LoRA(value.base, value.a, value.b, value.scale, value.dropout, value.name, value.bias)
    return value


def plain_method(method: Any) -> Any:
    """The method that makes room for what `as_plain` leaves of this one's nodes; the method itself where that is no change."""
    if isinstance(method, adalora):
        alpha = (method.rank if method.alpha is None else method.alpha) * method.rank / (method.rank + 1e-5)
        return lora(method.rank, alpha, method.targets, method.dropout, layers=method.layers, name=method.name)
    if not isinstance(method, lora):
        return method
    start = parse(method.init)
    if start is None or not start.shifts:
        return dataclasses.replace(method, freeze_a=False)
    return dataclasses.replace(_twice(method), init="kaiming")


def _twice(method: lora) -> lora:
    """The same scales at twice the rank."""
    times = 2**0.5 if method.rslora else 2
    alphas = {key: times * alpha for key, alpha in method.alpha_pattern.items()}
    if method.alpha is None and method.rslora:  # alpha is the rank there, and grows by less than it
        alphas = alphas | {key: times * rank for key, rank in method.rank_pattern.items() if key not in alphas}
    alpha = method.alpha if method.alpha is not None else method.rank if method.rslora else None
    return dataclasses.replace(
        method, rank=2 * method.rank, alpha=None if alpha is None else times * alpha, alpha_pattern=alphas,
        rank_pattern={key: 2 * rank for key, rank in method.rank_pattern.items()},
    )
