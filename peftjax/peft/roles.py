"""Roles of trainable leaves, as their nodes state them: which decay, which learn faster."""

import dataclasses
from typing import Any

import jax

from peftjax.nn.kernels import Entry, Kernel
from peftjax.nn.shared import is_shared
from peftjax.peft.select import KERNELS


def roles(params: dict) -> dict:
    """The structure of `params` with "matrix", "fast" or "vector" at every leaf.

    Fast is the output factor that LoRA+ (2402.12354, 2024) trains faster. Weight decay is for matrices and fast factors; biases, norms and
    scales are vectors.
    """
    return _roles(params, "")


def _roles(value: Any, name: str) -> Any:
    if isinstance(value, dict):
        return {child_name: _roles(child, child_name) for child_name, child in value.items()}
    if isinstance(value, Kernel | Entry):
        children = {}
        for field in value.array_fields:
            child = getattr(value, field)
            if field == "base":
                children[field] = _roles(child, name)
            elif isinstance(child, dict):  # of composed adapters
                children[field] = {part: _roles(value, name) for part, value in child.items()}
            else:
                children[field] = child if child is None or is_shared(child) else _role(value, field, name)
        return dataclasses.replace(value, **children)
    return jax.tree.map(lambda _: "matrix" if name in KERNELS else "vector", value)


def _role(owner: Any, field: str, name: str) -> str:
    if field in owner.fast:
        return "fast"
    in_place_of_vector = isinstance(owner, Kernel) and name not in KERNELS
    return "matrix" if field in owner.matrices and not in_place_of_vector else "vector"
