"""LoRA's relatives as the plain LoRA that they are as a function, for formats, banks and servers that know no other.

    before  ShiftedLoRA(a, b, start_a, start_b)      AdaLoRA(a, e, b)       LoRAFA(a, b)
    after   LoRA([a; start_a], [b; -start_b])        LoRA(a, e b)           LoRA(a, b)

The scale stays what it is: where a format writes it as alpha / rank, alpha doubles with the rank.
"""

import dataclasses
from typing import Any

from peftjax.nn.kernels import Kernel
from peftjax.nn.tree import put, walk
from peftjax.peft.adalora import AdaLoRA
from peftjax.peft.lora import LoRA, LoRAFA
from peftjax.peft.shifted import ShiftedLoRA


def as_plain(params: dict) -> dict:
    """A new tree that computes the same, in which every such node is a plain LoRA."""
    for path, value in list(walk(params)):
        if isinstance(value, Kernel):
            params = put(params, path, _plain(value))
    return params


def _plain(value: Any) -> Any:
    base = getattr(value, "base", None)
    if isinstance(base, Kernel):
        value = dataclasses.replace(value, base=_plain(base))
    if isinstance(value, ShiftedLoRA | AdaLoRA):
        return LoRA(value.base, *value.rows(), value.scale, value.dropout, value.name)
    if isinstance(value, LoRAFA):
        return LoRA(value.base, value.a, value.b, value.scale, value.dropout, value.name, value.bias)
    return value
