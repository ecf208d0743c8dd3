"""A LoRA of more rank that computes the same: new rows of A are random and those of B zero, so that they can be trained on.

    before  LoRA(base=W, a=[L, 4, in], b=[L, 4, out], scale=[L])
    after   LoRA(base=W, a=[L, 16, in], b=[L, 16, out], scale=[L])         a, b and scale as they were, and rows behind

ΔW stays to the last bit; alpha grows with the rank, so that the scale stays. To cut the rank: `peftjax.peft.blend.to_lora`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.nn.kernels import Kernel
from peftjax.nn.tree import get, put
from peftjax.peft.attach import activate
from peftjax.peft.changes import changes, keys
from peftjax.peft.exactness import Error, Exactness
from peftjax.peft.factored import norm
from peftjax.peft.keys import kaiming, per_layer
from peftjax.peft.lora import LoRA, lora
from peftjax.peft.placed import Made
from peftjax.peft.rules import Rule, methods_of
from peftjax.peft.select import KERNELS, parameters


def grow(params: dict, name: str, rank: int, key: jax.Array) -> Made:
    """A tree in which every LoRA of the adapter has this rank on every layer, and computes what it did.

    Args:
        key: of the new rows, folded by path.

    Raises:
        ValueError: no such adapter, or a layer whose rank is higher already.
        TypeError: a node of it that is no LoRA.
    """
    sizes = {at: norm(changed.read().weight) for at, changed in changes(params, name).items()}
    rules, layers = {}, 0
    for target in parameters(activate(params, [name]), KERNELS):
        if not (isinstance(target.value, Kernel) and hasattr(target.value, "name")):
            continue
        if type(target.value) is not LoRA:  # a LoRA of another kind is another method
            raise TypeError(f"{target.path}: {name!r} is {type(target.value).__name__} here, and LoRA grows; to_lora() makes it one")
        grown = _grown(target.value, rank, target, key)
        params = put(params, target.path, _replaced(get(params, target.path), name, grown))
        layers = max(layers, target.layers.stop if target.layers else 0)
        for layer, at in keys(target.path, target.value.shape[0]):
            scale = float(grown.scale if layer is None else grown.scale[layer])
            rules[at] = Rule(lora, rank, scale, grown.bias is not None)
    certificate = Exactness({at: Error(0.0, sizes[at], rank) for at in rules})
    return Made(params, certificate, methods_of(rules, layers, name, apart="head/kernel" in sizes and "head/kernel" not in rules))


def _grown(node: LoRA, rank: int, target: Any, key: jax.Array) -> LoRA:
    a, b = np.asarray(node.a), np.asarray(node.b)
    used = a.any(axis=-1) | b.any(axis=-1)  # rows past the rank of a layer are zero in both
    if (most := int(used.sum(axis=-1).max())) > rank:
        raise ValueError(f"{target.path}: rank {rank} is less than the {most} there are; to_lora(params, {node.name!r}, {rank}) cuts it")
    first, new = ("b", "a") if target.path.endswith("/embedding") else ("a", "b")
    width = target.value.shape[-1 if first == "b" else -2]
    drawn = np.asarray(per_layer(kaiming(width, rank, width), key, f"{target.logical}/{node.name}/grown", target.layers))
    factors = {first: drawn, new: np.zeros((*drawn.shape[:-1], getattr(node, new).shape[-1]), np.float32)}
    for field, value in {"a": a, "b": b}.items():
        own = np.pad(value, [(0, 0)] * (value.ndim - 2) + [(0, max(0, rank - value.shape[-2])), (0, 0)])[..., :rank, :]
        there = np.pad(used, [(0, 0)] * (used.ndim - 1) + [(0, max(0, rank - used.shape[-1]))])[..., :rank]
        factors[field] = jnp.asarray(np.where(there[..., None], own, factors[field]))
    return dataclasses.replace(node, **factors)


def _replaced(value: Any, name: str, node: LoRA) -> Any:
    """What stands at a path with the node of that name replaced; what it wraps stays."""
    if value.name == name:
        return dataclasses.replace(node, base=value.base)
    return dataclasses.replace(value, base=_replaced(value.base, name, node))
