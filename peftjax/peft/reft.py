"""ReFT: the hidden states of a few positions are edited in a subspace, behind each block (2404.03592, 2024).

    before  blocks/block_out = (absent: identity)
    after   blocks/block_out = {"default": ReFT(projection=[L, U, R, D], source=[L, U, R, D], source_bias=[L, U, R], scale=[L])}

| preset | edit of h                        | R                                                        | starts on the base      |
|---|---|---|---|
| loreft | h + s Rᵀ(act(W h + b) - R h)     | rows orthonormal: Gram-Schmidt of the rows of a free matrix | up to rounding: W = R |
| noreft | h + s Rᵀ(act(W h + b) - R h)     | free                                                     | exactly: W = R          |
| direft | h + s Rᵀ act(W h + b)            | free                                                     | exactly: W = 0          |

Edited are the first `prefix_positions` and the last `suffix_positions` tokens of each segment; with both there are two units of values,
U = 2, unless they are tied, and where both kinds of position meet the suffix's counts. The last ones are those of one call: in decoding
every new token is the last, so suffixes are for classifying. Dropout is on the edit. (AdapterHub's two units are always there, the second
one unread with no suffix; its dropout is on the whole of h; and it reloads a DiReFT as a NoReFT. With `init="random"`, its own, the start
is far from the base.)
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from peftjax.nn.kernels import Entry, node
from peftjax.nn.layers import ACTIVATIONS
from peftjax.nn.sites import Tokens
from peftjax.nn.thin import expand, shrink
from peftjax.peft.blocks import orthonormal
from peftjax.peft.bounds import require_rate
from peftjax.peft.dropout import drop
from peftjax.peft.hang import hang
from peftjax.peft.keys import Draw

INITS = ("identity", "random")


@node(
    arrays=("projection", "source", "source_bias", "scale", "dropout"),
    static=("orthogonal", "subtract_projection", "prefix_positions", "suffix_positions", "activation", "name"),
)
@dataclasses.dataclass(frozen=True)
class ReFT(Entry):
    """The entry. projection, source: [U, R, D]; source_bias: [U, R]; scale: []; dropout: rate [] or None; all with a leading L outside the
    scanned body."""

    projection: jax.Array
    source: jax.Array
    source_bias: jax.Array
    scale: jax.Array
    dropout: jax.Array | None
    orthogonal: bool
    subtract_projection: bool
    prefix_positions: int
    suffix_positions: int
    activation: str
    name: str

    trainable = ("projection", "source", "source_bias")
    matrices = ("projection", "source")

    def __call__(self, x, key=None, tokens: Tokens | None = None, **_):
        """x [B, T, D] -> the same with the tokens at the chosen positions edited. Without `tokens` a row is one segment."""
        first, last = _ends(x, tokens, self.prefix_positions, self.suffix_positions)
        if self.source.shape[0] == 1:
            edit = jnp.where((first | last)[..., None], self._edit(x, 0), 0)
        else:
            edit = jnp.where(last[..., None], self._edit(x, 1), jnp.where(first[..., None], self._edit(x, 0), 0))
        return x + drop(edit * self.scale.astype(x.dtype), self.dropout, key, self.name)

    def off(self):
        return dataclasses.replace(self, scale=jnp.zeros_like(self.scale))

    def _edit(self, h, unit: int):
        """[B, T, D]: what unit number `unit` adds to every token."""
        r = orthonormal(self.projection[unit]) if self.orthogonal else self.projection[unit]
        wanted = shrink(h, self.source[unit])
        wanted = ACTIVATIONS[self.activation](wanted + jnp.broadcast_to(self.source_bias[unit].astype(h.dtype), wanted.shape))
        return expand(wanted - shrink(h, r) if self.subtract_projection else wanted, r)


def _ends(x, tokens: Tokens | None, first: int, last: int) -> tuple[jax.Array, jax.Array]:
    """bool [B, T] each: whether a token is among the first, and the last, of its segment; padding is neither."""
    if tokens is None:
        positions = jnp.broadcast_to(jnp.arange(x.shape[1])[None], x.shape[:2])
        tokens = Tokens(positions, jnp.ones_like(positions))
    real, none = tokens.segments > 0, jnp.zeros(x.shape[:2], bool)
    if last:
        same = tokens.segments[:, :, None] == tokens.segments[:, None, :]
        later = jnp.arange(x.shape[1])[:, None] < jnp.arange(x.shape[1])[None, :]
        after = jnp.sum(same & later[None], axis=-1)
    return (real & (tokens.positions < first)) if first else none, (real & (after < last)) if last else none


@dataclasses.dataclass(frozen=True)
class reft:  # noqa: N801 (configs read `reft(rank=4)`)
    """ReFT behind blocks; see the presets `loreft`, `noreft`, `direft`.

        h' = h + s Rᵀ(act(W h + b) - R h)

    Attributes:
        rank: R.
        orthogonal: the projection's rows are kept orthonormal.
        subtract_projection: whether what is there in the subspace is replaced, or added to.
        prefix_positions, suffix_positions: how many tokens of each segment, from its beginning and from its end.
        tied: one unit for both ends.
        activation: of the wanted values, a name in `peftjax.nn.layers.ACTIVATIONS`.
        dropout: rate on the edit, at training time.
        init: "identity", as in the module's table, or "random", as AdapterHub: U(±1/sqrt(D)) for the source, its bias, a free projection.
        layers: layers to adapt, default all.
        name: of the adapter.
    """

    rank: int = 1
    orthogonal: bool = True
    subtract_projection: bool = True
    prefix_positions: int = 3
    suffix_positions: int = 0
    tied: bool = False
    activation: str = "linear"
    dropout: float = 0.05
    init: str = "identity"
    layers: Sequence[int] | None = None
    name: str = "default"

    def __post_init__(self):
        for field, allowed in {"activation": ACTIVATIONS, "init": INITS}.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"reft {field} {getattr(self, field)!r} is none of {', '.join(allowed)}")
        if self.rank < 1 or min(self.prefix_positions, self.suffix_positions) < 0 or not self.prefix_positions + self.suffix_positions:
            raise ValueError(
                f"reft needs a positive rank and positions to edit; found rank {self.rank}, prefix_positions {self.prefix_positions}, "
                f"suffix_positions {self.suffix_positions}"
            )
        if self.orthogonal and not self.subtract_projection:
            raise ValueError("reft without subtracting the projection is DiReFT, whose projection is free: orthogonal=False")
        if self.init == "identity" and self.subtract_projection and self.activation != "linear":
            raise ValueError(f"reft cannot start on the base with activation {self.activation!r}; init='random' starts off it")
        require_rate("reft", self.dropout)

    def attach(self, params: dict, key: jax.Array) -> dict:
        """A new tree with an entry behind every block.

        Raises:
            ValueError: a layer that does not exist, a name that is taken, or more orthonormal rows than the states are wide.
        """
        return hang(params, key, ("block_out",), self.layers, self.name, self._entry)

    def _entry(self, width: int, draw: Draw) -> ReFT:
        units = 2 if self.prefix_positions and self.suffix_positions and not self.tied else 1
        if self.orthogonal and self.rank > width:
            raise ValueError(f"reft: {self.rank} orthonormal rows in states of width {width}")

        def uniform(*shape: int):
            return lambda rng: jax.random.uniform(rng, shape, minval=-(width**-0.5), maxval=width**-0.5)

        def rows(rng):
            return jax.vmap(orthonormal)(jax.random.normal(rng, (units, self.rank, width)))

        projection = draw("projection", rows if self.orthogonal else uniform(units, self.rank, width))
        if self.init == "random":
            source, bias = draw("source", uniform(units, self.rank, width)), draw("source_bias", uniform(units, self.rank))
        else:
            source = jnp.array(projection, copy=True) if self.subtract_projection else jnp.zeros_like(projection)
            bias = draw.full(0, units, self.rank)
        return ReFT(
            projection, source, bias, draw.full(1), draw.rate(self.dropout), self.orthogonal, self.subtract_projection,
            self.prefix_positions, self.suffix_positions, self.activation, self.name,
        )  # fmt: skip


def loreft(**options) -> reft:
    """An orthonormal projection, whose values are replaced."""
    return reft(**options)


def noreft(**options) -> reft:
    """A free projection, whose values are replaced."""
    return reft(**{"orthogonal": False, **options})


def direft(**options) -> reft:
    """A free projection, whose values are added to."""
    return reft(**{"orthogonal": False, "subtract_projection": False, **options})
