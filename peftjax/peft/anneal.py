"""Activation annealing: a bottleneck whose activation fades to the identity, after which it is a matrix and merges.

    act(z)  ->  (1 - t) act(z) + t z                       t from 0 to 1: a frozen leaf, `bottleneck(..., anneal=True)`

At t = 1 a bottleneck that reads the sublayer's output u = h W + b is linear in it, and so part of the weight before the site:

    u + s ((u Dᵀ + d) U + e)  =  h W' + b',      W' = W M,   b' = b M + s (d U + e),   M = I + s Dᵀ U

    before  blocks/attn/o/kernel = W,  blocks/attn_out = {"tone": Bottleneck(reads="output", annealed=1)}
    after   blocks/attn/o/kernel = Behind(base=W, down=D, up=U, ...)                    `behind_kernels`, which `merge` calls

The other choices of what is read cannot merge: "residual" and "sum" read the residual stream, which no one weight gives, and "normed" what
a norm, not linear, makes of it. (Annealed activations appear in zadapter, a small JAX package.)
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.nn.kernels import Entry, node
from peftjax.nn.thin import expand, shrink
from peftjax.nn.tree import get, put, walk
from peftjax.peft.bottleneck import Bottleneck
from peftjax.peft.composed import ComposedEntry
from peftjax.peft.transform import Transform

# The weight whose product is the value at a site, and the norm that may stand between.
BEFORE = {"attn_out": ("attn/o/kernel", "attn_post_norm/scale"), "mlp_out": ("mlp/down/kernel", "mlp_post_norm/scale")}


def anneal(params: dict, t: float | jax.Array, names: Iterable[str] | None = None) -> dict:
    """A new tree, whole or the frozen half of a partition, in which the activations of the named adapters (default: of all that were
    attached with `anneal=True`) are `t` linear, from 0 to 1. `t` may be traced: nothing is compiled again when it changes.

    Raises:
        ValueError: no such adapter.
    """
    chosen, found = None if names is None else set(names), set()

    def annealed(value):
        if isinstance(value, ComposedEntry):
            return dataclasses.replace(value, parts={name: annealed(part) for name, part in value.parts.items()})
        if isinstance(value, Bottleneck) and value.annealed is not None and (chosen is None or value.name in chosen):
            found.add(value.name)
            return dataclasses.replace(value, annealed=jnp.full_like(value.annealed, t))
        return value

    for path, value in list(walk(params)):
        if isinstance(value, Entry):
            params = put(params, path, annealed(value))
    if not found or (chosen is not None and found != chosen):
        asked = "" if chosen is None else f" of {', '.join(sorted(chosen - found))}"
        raise ValueError(f"nothing{asked} to anneal: no bottleneck{asked} was attached with anneal=True")
    return params


@node(arrays=("base", "down", "down_bias", "up", "up_bias", "scale"), static=("name",))
@dataclasses.dataclass(frozen=True)
class Behind(Transform):
    """A linear bottleneck behind a weight. base: kernel [in, out]; the others as of `Bottleneck`, with D = out."""

    base: Any
    down: jax.Array
    down_bias: jax.Array
    up: jax.Array
    up_bias: jax.Array
    scale: jax.Array
    name: str

    trainable = ("down", "down_bias", "up", "up_bias")
    matrices = ("down", "up")
    whole = True

    def after(self, y):
        return y + expand(shrink(y, self.down), self.up) * jnp.broadcast_to(self.scale.astype(y.dtype), y.shape)

    def around(self, x, product, key=None):
        y = super().around(x, product, key)
        return y + jnp.broadcast_to(self._constant().astype(y.dtype), y.shape)

    def merged_bias(self):
        below = super().merged_bias()
        own = self._constant() if len(self.shape) == 2 else jax.lax.map(type(self)._constant, self)
        return own if below is None else below + own

    def _constant(self):
        """s (d U + e) [out]."""
        return jnp.broadcast_to(self.scale, self.up_bias.shape) * (self.down_bias @ self.up + self.up_bias)


def behind_kernels(params: dict) -> tuple[dict, dict[str, str]]:
    """(a new tree in which every bottleneck that can be is part of the kernel before it, why the others cannot: path -> reason).

    Entries act in the order of their names, so that one which stays keeps those after it.
    """
    stuck: dict[str, str] = {}
    for path, value in list(walk(params)):
        if not isinstance(value, Bottleneck):
            continue
        place, _, name = path.rpartition("/")
        stack, _, site = place.rpartition("/")
        reason = _obstacle(params, stack, site, value)
        earlier = [other for other in get(params, place) if other < name]
        if reason is None and earlier:
            reason = f"{', '.join(earlier)} stays between it and the weight"
        if reason is not None:
            stuck[path] = reason
            continue
        kernel = f"{stack}/{BEFORE[site][0]}"
        fields = {field: getattr(value, field) for field in ("down", "down_bias", "up", "up_bias", "scale", "name")}
        params = put(put(params, path, None), kernel, Behind(base=get(params, kernel), **fields))
    return params, stuck


def _obstacle(params: dict, stack: str, site: str, value: Bottleneck) -> str | None:
    """What keeps a bottleneck from being part of a weight, or None."""
    if value.activation != "linear":
        if value.annealed is None:
            return f"its activation is {value.activation}: a network is no matrix; attach it with anneal=True and anneal it to 1"
        if isinstance(value.annealed, jax.core.Tracer):
            return "how far it is annealed is not known while tracing"
        if not bool(jnp.all(value.annealed == 1)):
            return f"its {value.activation} is annealed to {float(jnp.min(value.annealed)):g}, not to 1"
    if value.norm_before is not None or value.norm_after is not None:
        return "it has a norm, which is not linear"
    if value.gate is not None:
        return "it has a gate, which depends on its input"
    if site not in BEFORE:
        return f"no weight's product is what passes at {site}; at {' and '.join(BEFORE)} it would be"
    if value.reads != "output":
        return f'it reads {value.reads!r}, which is not the product of the weight before it; reads="output" is'
    if get(params, f"{stack}/{BEFORE[site][0]}") is None:
        return f"this base has no {stack}/{BEFORE[site][0]}"
    if get(params, f"{stack}/{BEFORE[site][1]}") is not None:
        return "a norm stands between it and the weight"
    return None
