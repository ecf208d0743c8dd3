"""AdapterFusion: attention over what several adapters do, for each token (2005.00247, 2021).

    before  blocks/mlp_out = {"en": Bottleneck, "de": Bottleneck}          blocks/attn/q/kernel = LoRA("de", base=LoRA("en", base=W))
    after   ... beside them "fusion": Fusion(query=[L, D, D], ...)         ... around them KernelFusion(query=[L, out, out], ...)

    y = x + V Σ_i p_i c_i,      p = softmax_i((Q q + b) · (K c_i) / T)

c_i is what child i changes: its output at a site, or of a kernel's product; q is what the last child reads, or the product without any. A
child that has nothing at a place changes nothing there. There is no 1/sqrt(D). AdapterHub adds a bias to the keys too: it is the same for
all children, so that the softmax does not see it, and nothing would train it. V is the same for all tokens and is applied to the mean, K
to the query, so that the cost does not grow with the children: 3 D² + D trained numbers at each place. V starts near the identity and is
held there by the penalty 0.01 ‖I - V‖² (`peftjax.peft.penalty`).

The children are trained first and attached beside the fusion, `partition(params, ["fusion"])` trains it alone, and
`compose(params, Fuse("en", "de", by="fusion"))` has it act.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.hints import did_you_mean
from peftjax.nn.context import KEYS_VALUES, PROMPT
from peftjax.nn.kernels import Entry, Kernel, Wrapping, node
from peftjax.nn.shared import SharedValue
from peftjax.nn.tree import place, put, walk
from peftjax.peft.attach import adapters, names_in
from peftjax.peft.dropout import drop
from peftjax.peft.hang import hang
from peftjax.peft.keys import Draw
from peftjax.peft.select import KERNELS

_OFF_DIAGONAL = 1e-6  # of the value matrix at the start, as AdapterHub


@dataclasses.dataclass(frozen=True)
class _Attention:
    """What both nodes do. query, key, value: [D, D], from the first axis to the second; value None leaves the mean as it is; query_bias:
    [D]; temperature T, strength of the penalty: []; dropout: rate on the scores, [] or None; all with a leading L outside the scanned body.
    """

    query: jax.Array
    query_bias: jax.Array
    key: jax.Array
    value: jax.Array | None
    temperature: jax.Array
    strength: jax.Array
    dropout: jax.Array | None
    name: str

    trainable = ("query", "query_bias", "key", "value")
    matrices = ("query", "key", "value")

    def mix(self, query: jax.Array, changes: Sequence[jax.Array], key: jax.Array | None = None) -> jax.Array:
        """query [..., D] and changes, N of [..., D] -> [..., D], in the dtype of the changes; the softmax is computed in float32."""
        dtype, changes = changes[0].dtype, jnp.stack(changes)
        asked = query @ self.query.astype(dtype) + jnp.broadcast_to(self.query_bias.astype(dtype), query.shape)
        asked = asked @ self.key.T.astype(dtype)
        scores = jnp.einsum("...D,N...D->N...", asked, changes, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(drop(scores, self.dropout, key, self.name) / self.temperature, axis=0).astype(dtype)
        mean = jnp.einsum("N...,N...D->...D", weights, changes)
        return mean if self.value is None else mean @ self.value.astype(dtype)

    def penalty(self) -> jax.Array:
        """How far V is from the identity, weighed; see `peftjax.peft.penalty`."""
        if self.value is None:
            return jnp.float32(0)
        far = jnp.square(self.value - jnp.broadcast_to(jnp.eye(self.value.shape[-1]), self.value.shape))
        return jnp.sum(self.strength * jnp.sum(far, axis=(-1, -2)))

    def _alone(self):
        return TypeError(f"fusion {self.name!r} weighs what other adapters do; compose(params, Fuse(..., by={self.name!r})) says which")


_FIELDS = ("query", "query_bias", "key", "value", "temperature", "strength", "dropout")


@node(arrays=_FIELDS, static=("name",))
@dataclasses.dataclass(frozen=True)
class Fusion(_Attention, Entry):
    """The entry, which acts as part of a composition only; D is the width of the site."""

    def __call__(self, x, **_):
        raise self._alone()


@node(arrays=("base", *_FIELDS), static=("name",))
@dataclasses.dataclass(frozen=True)
class KernelFusion(_Attention, Wrapping):
    """The node, which acts as part of a composition only. base: kernel [in, out]; D is `out`."""

    base: Any

    def around(self, x, product, key=None):
        raise self._alone()

    def merge(self):
        raise self._alone()


@dataclasses.dataclass(frozen=True)
class fusion:  # noqa: N801 (configs read `fusion(of=("en", "de"))`)
    """Attention over adapters that are attached before it, wherever one of them has something.

    Attributes:
        of: their names.
        value: train V; without, what comes out is a mean of what they do ("static").
        penalty: strength of what holds V near the identity.
        temperature: T.
        dropout: rate on the scores, at training time.
        name: of this adapter.
    """

    of: Sequence[str] = ()
    value: bool = True
    penalty: float = 0.01
    temperature: float = 1.0
    dropout: float = 0.0
    name: str = "fusion"

    def __post_init__(self):
        if len(set(self.of)) < 2:
            raise ValueError(f"fusion is of two adapters or more, of=('a', 'b'); found {tuple(self.of)}")
        if self.temperature <= 0 or not 0 <= self.dropout < 1:
            raise ValueError(f"fusion temperature {self.temperature} must be positive and dropout {self.dropout} in [0, 1)")

    def attach(self, params: dict, key: jax.Array) -> dict:
        """A new tree with a fusion beside the children.

        Raises:
            ValueError: a child that is not attached, or that stands where there is nothing to weigh: on an embedding, a vector, or before
                a sequence.
        """
        known, sites = adapters(params), {}
        for name in self.of:
            if name not in known:
                raise ValueError(f"fusion {self.name!r} is of {name!r}{did_you_mean(name, known)}, which is not attached before it; the "
                                 f"tree holds {', '.join(known) or 'none'}")
        for path, value in list(walk(params)):
            if isinstance(value, SharedValue) or not names_in(value) & set(self.of):
                continue
            of_kernel, site = isinstance(value, Kernel), path.rpartition("/")[0]
            if (path.rpartition("/")[2] not in KERNELS[:1]) if of_kernel else site.rpartition("/")[2] in (KEYS_VALUES, PROMPT):
                raise ValueError(f"fusion {self.name!r} is of {type(value).__name__} at {path}, where no outputs are weighed; it is for "
                                 "linear kernels and sites")
            logical, layers = place(path if of_kernel else site, jax.tree.leaves(value)[0].shape[0])
            if of_kernel:
                make = Draw(key, f"{logical}/{self.name}", layers)
                params = put(params, path, KernelFusion(*self._arrays(value.shape[-1], make), self.name, base=value))
            else:
                sites.setdefault(logical.removeprefix("blocks/"), set()).update(layers or ())
        for site, layers in sites.items():
            on = sorted(layers) if layers else None
            params = hang(params, key, (site,), on, self.name, lambda width, draw: Fusion(*self._arrays(width, draw), self.name))
        return params

    def _arrays(self, width: int, draw: Draw) -> tuple:
        def near(field):
            return draw(field, lambda key: 0.02 * jax.random.normal(key, (width, width)))

        identity = jnp.full((width, width), _OFF_DIAGONAL).at[jnp.diag_indices(width)].set(1.0)
        value = draw("value", lambda _: identity) if self.value else None
        numbers = draw.full(self.temperature), draw.full(self.penalty), draw.rate(self.dropout)
        return near("query"), draw.full(0, width), near("key"), value, *numbers
