"""Sites: named places where a value passes and something may be hung.

    x = site(self, "mlp_out", x, residual=r, normed=h)

is the identity, and costs nothing, when nothing is attached. What is attached lies in the parameter tree under the site's name,
one entry per adapter: `params/blocks/mlp_out = {"tone": Bottleneck(...)}`. Entries act one after another, in the order of their names,
unless one entry stands in the place of all and composes them.

| site | where | value |
|---|---|---|
| embed_out | after the embedding | residual stream |
| attn_in, mlp_in | after the norm | input of the sublayer |
| attn_out, mlp_out | just before the residual add | output of the sublayer, after its post norm where it has one |
| block_out | after the block | residual stream |
| final_out | after the final norm | what the head reads |

`residual` is the residual stream that enters the sublayer, `normed` the same after the norm. In blocks whose norm stands behind the sum
(`peftjax.models.encoder`), these two are the same, and `after` is a function from the value at the site to the stream behind that norm.
`tokens` says which tokens these are. An entry takes what it reads of these and
leaves the rest (`**_`).
"""

from typing import NamedTuple

import jax
from flax import linen as nn

from peftjax.nn.kernels import Entry

# Which parameter beside (or, at the top, named) says how wide the value at a site is: its last axis is that width.
WIDTH_FROM = {
    "attn_in": "blocks/attn_norm/scale",
    "attn_out": "blocks/attn_norm/scale",
    "mlp_in": "blocks/mlp_norm/scale",
    "mlp_out": "blocks/mlp_norm/scale",
    "block_out": "blocks/mlp_norm/scale",
    "embed_out": "embed/embedding",
    "final_out": "final_norm/scale",
}


class Tokens(NamedTuple):
    """Of the tokens that pass a site: `positions` int [B, T] from 0 in each segment, and `segments` int [B, T], where 0 is padding."""

    positions: jax.Array
    segments: jax.Array


def site(module: nn.Module, name: str, x, **context):
    """Passes x [B, T, D] through whatever hangs at site `name` of `module`; returns the same shape and dtype."""
    if name not in WIDTH_FROM:
        raise ValueError(f"no site is called {name!r}; sites are {', '.join(WIDTH_FROM)}")
    if not module.has_variable("params", name):
        return x
    entries = module.get_variable("params", name)
    entries = {"": entries} if isinstance(entries, Entry) else entries
    key = module.make_rng("dropout") if module.has_rng("dropout") else None  # each entry folds its own name in
    for adapter in sorted(entries):
        y = entries[adapter](x, key=key, **context)
        if y.shape != x.shape or y.dtype != x.dtype:
            raise ValueError(f"{type(entries[adapter]).__name__} {adapter!r} at {name} turned {x.dtype}{x.shape} into "
                             f"{y.dtype}{y.shape}; an entry keeps shape and dtype")
        x = y
    return x
