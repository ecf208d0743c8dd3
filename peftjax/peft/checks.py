"""Guards that look at the traced program: what no site reads must not train in silence."""

from collections.abc import Callable
from typing import Any

import jax
from jax.interpreters import partial_eval

from peftjax.nn.tree import path_of


def unread(function: Callable, trainable: Any, *args: Any) -> list[str]:
    """Paths of the leaves of `trainable` that `function(trainable, *args)` does not depend on.

    Dead code is removed from the traced program, inside scanned bodies too, and the inputs that nothing needs are named. Nothing is
    computed: arguments may be abstract.
    """
    closed = jax.make_jaxpr(function)(trainable, *args)
    used = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))[1]
    paths = [path_of(keys) for keys, _ in jax.tree_util.tree_flatten_with_path(trainable)[0]]
    return [path for path, is_used in zip(paths, used, strict=False) if not is_used]


def require_read(function: Callable, trainable: Any, *args: Any) -> None:
    """Raises ValueError naming every trainable leaf that the function does not read."""
    paths = unread(function, trainable, *args)
    if paths:
        raise ValueError(f"trainable but read by nothing in the model: {', '.join(paths)}")
