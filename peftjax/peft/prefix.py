"""Keys and values before a sequence: prefix tuning (2101.00190, 2021; flat as in 2110.07602, 2021), with gates as in UniPELT (2110.07577).

    before  blocks/attn/kv = (absent)
    after   blocks/attn/kv = {"default": Prefix(k=[L, P, GK], v=[L, P, GK])}                         prefix()
            blocks/attn/kv = {"default": PrefixEncoder(up=[L, M, 2 GK], embedding=Shared(...), ...)} prefix(hidden=512)
            shared/default/prefix/{embedding [P, D], down [M, D], down_bias [M]}

    attention over [K_P ; K] and [V_P ; V];        with an encoder (K_P, V_P) = tanh(embedding Dᵀ + d) U + u in each layer

Keys are not rotated. Through a layer's window all of them are seen, or with `slides` those that would be if they were tokens (HF PEFT), so
that a text of more tokens than the window loses them.

With gates a token multiplies its scores of the keys, and what it takes from the values, by sigmoid(h g + b), h being
what the attention layer reads: each token by its own ("token"), or by the mean over its segment ("mean", for encoders; AdapterHub's mean
counts padding too, see `peftjax.peft.bottleneck`).

| ours              | HF PEFT                                                 | AdapterHub                                    |
|---|---|---|
| offset, slides    | True: positions of tokens start at P                    | False: at 0                                   |
| k[l], v[l]        | prompt_embeddings as [P, L, 2, GK]: [:, l, 0], [:, l, 1] | flat: control_trans, in the same way         |
| embedding         | what is computed alone is stored                        | wte.weight [P, D]                             |
| down, down_bias   |                                                         | control_trans.0.{weight [M, D], bias [M]}     |
| up[l], up_bias[l] |                                                         | control_trans.2.{weight as [L, 2 GK, M], bias}: weight[l]ᵀ |
| gate, gate_bias   |                                                         | prefix_gates.{weight [1 or 2, D], bias}       |
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.nn.context import KEYS_VALUES, KeysValues
from peftjax.nn.kernels import Entry, node
from peftjax.nn.layers import ACTIVATIONS
from peftjax.nn.shared import hold
from peftjax.nn.thin import shrink
from peftjax.nn.tree import get, put, walk
from peftjax.peft.bottleneck import mean_within
from peftjax.peft.bounds import require_rate
from peftjax.peft.dropout import drop
from peftjax.peft.keys import Draw, kaiming
from peftjax.peft.select import on_layers, parameters

INITS = ("random", "zeros")
GATINGS = ("token", "mean")


class _Before(Entry):
    """What both entries do with the keys and values that they hold or make."""

    def keys_values(self, h, tokens, key=None):
        """See `peftjax.nn.context`: the same for all rows, but for gates and dropout."""
        flat = self.folded()
        kv = {"k": flat.k, "v": flat.v}
        if self.dropout is not None and key is not None:
            kv = {x: drop(jnp.broadcast_to(y, (h.shape[0], *y.shape)), self.dropout, key, f"{self.name}/{x}") for x, y in kv.items()}
        if self.slides:
            kv["places"] = jnp.arange(-self.size, 0)
        if self.gate is None:
            return KeysValues(**kv)
        gate = jax.nn.sigmoid(shrink(h, self.gate) + self.gate_bias.astype(h.dtype)[None, None])
        gates = [gate[:, :, at] if self.gating == "token" else mean_within(gate[:, :, at], tokens.segments) for at in (0, -1)]
        key_gate, value_gate = (jnp.broadcast_to(one[..., None], (*h.shape[:2], self.size)) for one in gates)
        return KeysValues(**kv, key_gate=key_gate, value_gate=value_gate)

    def shift(self, batch):
        """See `peftjax.nn.context`."""
        return self.size if self.offset else 0


@node(arrays=("k", "v", "gate", "gate_bias", "dropout"), static=("offset", "slides", "gating", "size", "name"))
@dataclasses.dataclass(frozen=True)
class Prefix(_Before):
    """The entry. k, v: [P, G K]; gate: [1 or 2, D] and gate_bias [1 or 2], the first for keys and the last for values, or None; dropout:
    rate [] or None; all with a leading L outside the scanned body. offset: positions of tokens start at P; slides: a window counts them as
    tokens; gating: one of GATINGS; size: P."""

    k: jax.Array
    v: jax.Array
    gate: jax.Array | None
    gate_bias: jax.Array | None
    dropout: jax.Array | None
    offset: bool
    slides: bool
    gating: str
    size: int
    name: str

    trainable = ("k", "v", "gate", "gate_bias")
    matrices = ("k", "v", "gate")

    def folded(self) -> "Prefix":
        """Itself."""
        return self


@node(
    arrays=("embedding", "down", "down_bias", "up", "up_bias", "gate", "gate_bias", "dropout"),
    static=("activation", "offset", "slides", "gating", "size", "name"),
)
@dataclasses.dataclass(frozen=True)
class PrefixEncoder(_Before):
    """The entry whose keys and values a network makes. up: [M, 2 G K], keys before values; up_bias: [2 G K]; both with a leading L outside
    the scanned body. embedding [P, D], down [M, D] and down_bias [M] are shared by the layers. The others as of `Prefix`."""

    embedding: Any
    down: Any
    down_bias: Any
    up: jax.Array
    up_bias: jax.Array
    gate: jax.Array | None
    gate_bias: jax.Array | None
    dropout: jax.Array | None
    activation: str
    offset: bool
    slides: bool
    gating: str
    size: int
    name: str

    trainable = ("up", "up_bias", "gate", "gate_bias")
    matrices = ("up", "gate")

    def folded(self) -> Prefix:
        """The keys and values themselves, of one layer or of all."""
        h = ACTIVATIONS[self.activation](self.embedding @ self.down.T + self.down_bias[None])
        kv = jnp.einsum("PM,...MN->...PN", h, self.up) + self.up_bias[..., None, :]
        k, v = jnp.split(kv, 2, axis=-1)
        return Prefix(k, v, self.gate, self.gate_bias, self.dropout, self.offset, self.slides, self.gating, self.size, self.name)


@dataclasses.dataclass(frozen=True)
class prefix:  # noqa: N801 (configs read `prefix(length=30)`)
    """Trained keys and values before every sequence. The start is not the base, even with zeros: each slot takes its share of attention.

    Attributes:
        length: P.
        hidden: M, width of the network that makes them (AdapterHub: 512); None trains them as they are.
        init: "random" is normal(1), or PyTorch's layers on a normal(1) embedding; "zeros" makes all keys and values zero.
        activation: of the network, a name in `peftjax.nn.layers.ACTIVATIONS`.
        offset: positions of tokens start at P, as if the prefix were tokens (HF PEFT); False: at 0 (AdapterHub).
        slides: a window reaches back to the prefix as if it were tokens (HF PEFT); False: it is seen by every token.
        gates: 0, or 1 gate in each layer, or 2: one for keys and one for values. They start from a half.
        gating: "token" or "mean", see the module.
        dropout: rate on keys and values, at training time.
        layers: layers to adapt, default all.
        name: of the adapter.
    """

    length: int = 10
    hidden: int | None = None
    init: str = "random"
    activation: str = "tanh"
    offset: bool = True
    slides: bool = False
    gates: int = 0
    gating: str = "token"
    dropout: float = 0.0
    layers: Sequence[int] | None = None
    name: str = "default"

    def __post_init__(self):
        if self.length < 1 or (self.hidden is not None and self.hidden < 1):
            raise ValueError(f"prefix length {self.length} and hidden {self.hidden} must be positive")
        for field, allowed in {"init": INITS, "activation": ACTIVATIONS, "gates": (0, 1, 2), "gating": GATINGS}.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"prefix {field} {getattr(self, field)!r} is none of {', '.join(map(str, allowed))}")
        require_rate("prefix", self.dropout)

    @property
    def ahead(self) -> int:
        """Positions that are taken before the first token of a row."""
        return self.length if self.offset else 0

    def attach(self, params: dict, key: jax.Array) -> dict:
        """A new tree with keys and values in every attention layer.

        Raises:
            ValueError: a layer that does not exist, too few learned positions, or a name that is taken.
        """
        positions = get(params, "pos_embed/embedding")
        if self.offset and positions is not None and self.length >= positions.shape[0]:
            raise ValueError(f"prefix length {self.length} leaves none of the {positions.shape[0]} positions that this base has; use "
                             "offset=False")
        width, shared = get(params, "embed/embedding").shape[-1], {}
        keys = [target for target in parameters(params, ("kernel",)) if target.logical == "blocks/attn/k/kernel"]
        for target in on_layers(keys, self.layers):
            path = f"{target.path.partition('/')[0]}/attn/{KEYS_VALUES}/{self.name}"
            if get(params, path) is not None:
                raise ValueError(f"{path} is taken; give one of the two adapters another name")
            if self.hidden is not None and not shared:
                params, shared = self._hold(params, key, width)
            draw = Draw(key, f"blocks/attn/{KEYS_VALUES}/{self.name}", target.layers)
            params = put(params, path, self._entry(target.value.shape[-1], width, draw, shared))
        return params

    def folded(self) -> "prefix":
        """What `peftjax.peft.folded` leaves."""
        return dataclasses.replace(self, hidden=None)

    def _hold(self, params: dict, key: jax.Array, width: int) -> tuple[dict, dict]:
        """(the tree, what stands for the values) with what layers share of the network."""
        place, shared = f"{self.name}/prefix", {}
        draw = Draw(key, place, None)
        inits = {
            "embedding": lambda rng: jax.random.normal(rng, (self.length, width)),
            "down": kaiming(width, self.hidden, width), "down_bias": kaiming(width, self.hidden),
        }
        for field, init in inits.items():
            role = "vector" if field == "down_bias" else "matrix"
            params, shared[field] = hold(params, f"{place}/{field}", draw(field, init), self.name, trains=True, role=role)
        return params, shared

    def _entry(self, size: int, width: int, draw: Draw, shared: dict) -> Prefix | PrefixEncoder:
        own: dict[str, Any] = {"dropout": draw.rate(self.dropout), "offset": self.offset, "slides": self.slides}
        own |= {"gating": self.gating, "size": self.length, "name": self.name}
        own["gate"] = draw("gate", lambda key: 0.02 * jax.random.normal(key, (self.gates, width))) if self.gates else None
        own["gate_bias"] = draw.full(0, self.gates) if self.gates else None
        zeros = self.init == "zeros"
        if self.hidden is None:
            shape = (self.length, size)
            values = {x: draw.full(0, *shape) if zeros else draw(x, lambda key: jax.random.normal(key, shape)) for x in ("k", "v")}
            return Prefix(**values, **own)
        shapes = {"up": (self.hidden, 2 * size), "up_bias": (2 * size,)}
        values = {x: draw.full(0, *shape) if zeros else draw(x, kaiming(self.hidden, *shape)) for x, shape in shapes.items()}
        return PrefixEncoder(**values, **shared, **own, activation=self.activation)


def with_keys_values(params: dict, k: jax.Array, v: jax.Array, name: str = "default") -> dict:
    """The tree with given keys and values, [L, P, G K], in the flat prefix `name`: those of a text, say, out of a cache.

    Raises:
        ValueError: there is no such prefix, or it is of another size.
    """
    found = {path: entry for path, entry in walk(params) if isinstance(entry, Prefix) and entry.name == name}
    if not found:
        raise ValueError(f"the tree holds no flat prefix called {name!r}")
    for path, entry in found.items():
        if not entry.k.shape == k.shape == v.shape:
            raise ValueError(f"{path} holds keys and values {entry.k.shape}; keys {k.shape} and values {v.shape} are given")
        params = put(params, path, dataclasses.replace(entry, k=k.astype(entry.k.dtype), v=v.astype(entry.v.dtype)))
    return params
