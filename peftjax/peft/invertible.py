"""Invertible language adapters: a coupling behind the embedding that can be undone (2005.00052, 2020, after NICE, 1410.8516, 2014).

    before  embed_out = (absent: identity)
    after   embed_out = {"default": Coupling(f_down=[M, D/2], f_up=[M, D/2], ..., g_down, ..., g_up_bias)}

    y1 = x1 + F(x2),  y2 = x2 + G(y1)                x1, x2: the halves of x;  F, G: x -> act(x Dᵀ + d) U + u
    x2 = y2 - G(y1),   x1 = y1 - F(x2)                (`Coupling.inverse`)

The embedding side alone is part of the model, as in AdapterHub on a Llama: there the paper's inverse in front of the head does not act.
"""

import dataclasses

import jax
import jax.numpy as jnp

from peftjax.nn.kernels import Entry, node
from peftjax.nn.layers import ACTIVATIONS
from peftjax.nn.thin import expand, shrink
from peftjax.peft.hang import hang
from peftjax.peft.keys import Draw

INITS = ("identity", "bert")
FIELDS = tuple(f"{network}_{part}" for network in "fg" for part in ("down", "down_bias", "up", "up_bias"))


@node(arrays=FIELDS, static=("activation", "name"))
@dataclasses.dataclass(frozen=True)
class Coupling(Entry):
    """The entry, of networks F (from the second half to the first) and G. f_down [M, D - D//2], f_up [M, D//2], g_down [M, D//2],
    g_up [M, D - D//2]; biases of what they give."""

    f_down: jax.Array
    f_down_bias: jax.Array
    f_up: jax.Array
    f_up_bias: jax.Array
    g_down: jax.Array
    g_down_bias: jax.Array
    g_up: jax.Array
    g_up_bias: jax.Array
    activation: str
    name: str

    trainable = FIELDS
    matrices = ("f_down", "f_up", "g_down", "g_up")

    def __call__(self, x, **_):
        """x [..., D] -> [..., D]."""
        first, second = jnp.split(x, [self.f_up.shape[-1]], axis=-1)
        first = first + self._network("f", second)
        return jnp.concatenate([first, second + self._network("g", first)], axis=-1)

    def inverse(self, y: jax.Array) -> jax.Array:
        """What x gave y: [..., D] -> [..., D]."""
        first, second = jnp.split(y, [self.f_up.shape[-1]], axis=-1)
        second = second - self._network("g", first)
        return jnp.concatenate([first - self._network("f", second), second], axis=-1)

    def _network(self, which: str, h):
        down, down_bias, up, up_bias = (getattr(self, f"{which}_{part}") for part in ("down", "down_bias", "up", "up_bias"))
        z = shrink(h, down)
        z = expand(ACTIVATIONS[self.activation](z + jnp.broadcast_to(down_bias.astype(z.dtype), z.shape)), up)
        return z + jnp.broadcast_to(up_bias.astype(z.dtype), z.shape)


@dataclasses.dataclass(frozen=True)
class invertible:  # noqa: N801 (configs read `invertible()`)
    """An invertible adapter behind the embedding.

    Attributes:
        reduction_factor: M = (D/2) // factor.
        activation: a name in `peftjax.nn.layers.ACTIVATIONS`.
        init: "identity" is U(±1/sqrt(D/2)) down and zero up, so that the start is the base exactly; "bert" is normal(0.02) for both, as
            AdapterHub. Biases start at zero.
        name: of the adapter.
    """

    reduction_factor: float = 2
    activation: str = "relu"
    init: str = "identity"
    name: str = "default"

    def __post_init__(self):
        for field, allowed in {"activation": ACTIVATIONS, "init": INITS}.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"invertible {field} {getattr(self, field)!r} is none of {', '.join(allowed)}")
        if self.reduction_factor <= 0:
            raise ValueError(f"invertible reduction_factor {self.reduction_factor} is not positive")

    def attach(self, params: dict, key: jax.Array) -> dict:
        """A new tree with the entry at "embed_out".

        Raises:
            ValueError: a name that is taken.
        """
        return hang(params, key, ("embed_out",), None, self.name, self._entry)

    def _entry(self, width: int, draw: Draw) -> Coupling:
        halves, made = (width // 2, width - width // 2), {}
        for network, (wide_in, wide_out) in {"f": halves[::-1], "g": halves}.items():
            size = max(1, int(wide_in // self.reduction_factor))
            made[f"{network}_down"] = draw(f"{network}_down", self._random(size, wide_in))
            made[f"{network}_down_bias"] = draw.full(0, size)
            made[f"{network}_up"] = (
                draw.full(0, size, wide_out) if self.init == "identity" else draw(f"{network}_up", self._random(size, wide_out))
            )
            made[f"{network}_up_bias"] = draw.full(0, wide_out)
        return Coupling(**made, activation=self.activation, name=self.name)

    def _random(self, *shape: int):
        if self.init == "bert":
            return lambda key: 0.02 * jax.random.normal(key, shape)
        bound = shape[-1] ** -0.5
        return lambda key: jax.random.uniform(key, shape, minval=-bound, maxval=bound)
