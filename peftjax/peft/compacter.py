"""Compacter: a bottleneck whose matrices are sums of Kronecker products (2106.04647, 2021).

    before  blocks/mlp_out = (absent: identity)
    after   blocks/mlp_out = {"default": Compacter(rule=Shared("default/rule"), down_left=[L, N, R, D/N], down_right=[L, N, R, M/N],
                                                   up_left=[L, N, R, M/N], up_right=[L, N, R, D/N], ...)}
            shared/default/rule = [N, N, N]                                          once for all layers and places

    y = u + s (act(r H_down + d) H_up + e),      H = Σ_k S_k ⊗ (A_kᵀ B_k),      S_k = rule[k] [N, N],  A_k, B_k of rank R

r and the presets' results are those of `peftjax.peft.bottleneck`: `compacter` is placed as `houlsby`, `compacter_plus_plus` as `pfeiffer`.
H is never formed: x goes through the left factors, the rule and the right factors. The rule starts near zero (normal, 1e-4), so that the
start is near the base, not on it. The factors are drawn uniformly after Glorot, as the paper does; AdapterHub draws them normally whatever
its config says.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.nn.kernels import Entry, node
from peftjax.nn.layers import ACTIVATIONS
from peftjax.nn.shared import Shared, hold
from peftjax.nn.sites import WIDTH_FROM
from peftjax.peft.bottleneck import READS, what_is_read
from peftjax.peft.bounds import require_rate
from peftjax.peft.dropout import drop
from peftjax.peft.hang import hang
from peftjax.peft.keys import Draw, key_at

RULE = 1e-4


@node(
    arrays=("rule", "down_left", "down_right", "down_bias", "up_left", "up_right", "up_bias", "scale", "dropout"),
    static=("activation", "reads", "name"),
)
@dataclasses.dataclass(frozen=True)
class Compacter(Entry):
    """The entry. rule: [N, N, N], shared by all layers; left and right factors: [N, R, width/N]; down_bias [M]; up_bias [D]; scale [];
    dropout: rate [] or None; all but the rule with a leading L outside the scanned body."""

    rule: Any
    down_left: jax.Array
    down_right: jax.Array
    down_bias: jax.Array
    up_left: jax.Array
    up_right: jax.Array
    up_bias: jax.Array
    scale: jax.Array
    dropout: jax.Array | None
    activation: str
    reads: str
    name: str

    trainable = ("down_left", "down_right", "down_bias", "up_left", "up_right", "up_bias")
    matrices = ("down_left", "down_right", "up_left", "up_right")

    def __call__(self, x, key=None, residual=None, normed=None, after=None, **_):
        """x [B, T, D], the output at the site, -> x + f(what this adapter reads)."""
        h = what_is_read(self.reads, x, residual, normed, after)
        h = times(h, self.rule, self.down_left, self.down_right)
        h = ACTIVATIONS[self.activation](h + jnp.broadcast_to(self.down_bias.astype(h.dtype), h.shape))
        h = times(h, self.rule, self.up_left, self.up_right)
        h = (h + jnp.broadcast_to(self.up_bias.astype(h.dtype), h.shape)) * self.scale.astype(h.dtype)
        return x + drop(h, self.dropout, key, self.name)

    def off(self):
        return dataclasses.replace(self, scale=jnp.zeros_like(self.scale))


def times(x: jax.Array, rule: jax.Array, left: jax.Array, right: jax.Array) -> jax.Array:
    """x [..., N I] times Σ_k rule[k] ⊗ (left[k]ᵀ right[k]), with left [N, R, I] and right [N, R, O] -> [..., N O], in x's dtype."""
    rule, left, right = (value.astype(x.dtype) for value in (rule, left, right))
    parts = x.reshape(*x.shape[:-1], rule.shape[-1], left.shape[-1])
    thin = jnp.einsum("...pi,kri->...pkr", parts, left)
    thin = jnp.einsum("...pkr,kpq->...qkr", thin, rule)
    return jnp.einsum("...qkr,kro->...qo", thin, right).reshape(*x.shape[:-1], -1)


@dataclasses.dataclass(frozen=True)
class compacter:  # noqa: N801 (configs read `compacter(reduction_factor=32)`)
    """Compacter adapters at chosen sites; see `compacter_plus_plus`.

    Attributes:
        size: M, a multiple of `phm_dim`. None takes it from `reduction_factor`.
        reduction_factor: M = max(1, D // factor).
        phm_dim: N, the number of Kronecker products; it divides D and M.
        rank: R, of the factors.
        learn_rule: train the rule; else it stays as it was drawn, or read.
        sites, reads, activation, dropout, layers, name: as of `peftjax.peft.bottleneck`.
    """

    size: int | None = None
    reduction_factor: float = 32
    phm_dim: int = 4
    rank: int = 1
    learn_rule: bool = True
    sites: Sequence[str] = ("attn_out", "mlp_out")
    reads: str = "output"
    activation: str = "gelu"
    dropout: float = 0.0
    layers: Sequence[int] | None = None
    name: str = "default"

    def __post_init__(self):
        for field, allowed in {"reads": READS, "activation": ACTIVATIONS}.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"compacter {field} {getattr(self, field)!r} is none of {', '.join(allowed)}")
        for site in self.sites:
            if site not in WIDTH_FROM:
                raise ValueError(f"no site is called {site!r}; sites are {', '.join(WIDTH_FROM)}")
            if not WIDTH_FROM[site].startswith("blocks/") or (self.reads != "output" and site not in ("attn_out", "mlp_out")):
                raise ValueError(f"compacter with reads={self.reads!r} has no place at {site}: it stands at attn_out or mlp_out")
        if not self.sites or self.phm_dim < 1 or self.rank < 1 or self.reduction_factor <= 0:
            raise ValueError(
                f"compacter needs a site, and phm_dim {self.phm_dim}, rank {self.rank}, reduction_factor {self.reduction_factor} positive"
            )
        require_rate("compacter", self.dropout)

    def attach(self, params: dict, key: jax.Array) -> dict:
        """A new tree with an entry at every site, and their rule.

        Raises:
            ValueError: a site that this base has not, a layer that does not exist, a name that is taken, widths that N does not divide.
        """
        path = f"{self.name}/rule"
        rule = RULE * jax.random.normal(key_at(key, path), (self.phm_dim,) * 3)
        params, rule = hold(params, path, rule, self.name, trains=self.learn_rule)
        return hang(params, key, self.sites, self.layers, self.name, lambda width, draw: self._entry(width, draw, rule))

    def _entry(self, width: int, draw: Draw, rule: Shared) -> Compacter:
        size, parts = self.size if self.size is not None else max(1, int(width // self.reduction_factor)), self.phm_dim
        if width % parts or size % parts:
            raise ValueError(f"compacter phm_dim {parts} does not divide the width {width} and the size {size}")

        def glorot(field: str, wide: int):
            shape = (parts, self.rank, wide // parts)
            bound = (6 / (self.rank + wide // parts)) ** 0.5
            return draw(field, lambda rng: jax.random.uniform(rng, shape, minval=-bound, maxval=bound))

        return Compacter(
            rule=rule, down_left=glorot("down_left", width), down_right=glorot("down_right", size), down_bias=draw.full(0, size),
            up_left=glorot("up_left", size), up_right=glorot("up_right", width), up_bias=draw.full(0, width),
            scale=draw.full(1), dropout=draw.rate(self.dropout), activation=self.activation, reads=self.reads, name=self.name,
        )  # fmt: skip


def compacter_plus_plus(**options) -> compacter:
    """After the MLP alone, reading the residual stream behind it (2106.04647, 2021)."""
    return compacter(**{"sites": ("mlp_out",), "reads": "sum", **options})
