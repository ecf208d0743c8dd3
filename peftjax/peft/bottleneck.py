"""Bottleneck adapters: a small network beside a sublayer (Houlsby 1902.00751, 2019; Pfeiffer 2005.00247, 2020; parallel 2110.04366, 2021).

    before  blocks/mlp_out = (absent: identity)
    after   blocks/mlp_out = {"default": Bottleneck(down=[L, M, D], down_bias=[L, M], up=[L, M, D], up_bias=[L, D], scale=[L])}

    y = u + norm_after(scale · (act(norm_before(r) Dᵀ + d) U + u0))        R: residual stream that enters the sublayer
                                                                           u: output of the sublayer, at the site
| preset          | sites             | r (`reads`)           | result, added to R    | scale         |
|---|---|---|---|---|
| houlsby         | attn_out, mlp_out | "output": u           | u + f(u)              | 1             |
| pfeiffer        | mlp_out           | "sum": R + u          | u + f(R + u)          | 1             |
| parallel        | mlp_out           | "residual": R         | u + 4 f(R)            | 4             |
| scaled_parallel | mlp_out           | "residual": R         | u + s f(R)            | learned       |
| adapter_plus    | mlp_out           | "sum": R + u          | u + s f(R + u)        | s [D] learned |

The results are those of AdapterHub on a pre-norm Llama. In a post-norm block, x = norm(R + u), R is the input of the sublayer and the sum
is read behind the norm, as AdapterHub does on BERT and RoBERTa: norm(R + u + f(u)), norm(R + u + f(norm(R + u))), norm(R + u + s f(R)).
"normed" is the fourth choice of r, the residual stream after the sublayer's norm, as He et al. write the parallel adapter. Both matrices
are stored [M, D], so that their gradients transpose only the thin operand.

A gate multiplies the network's output, before `norm_after`, by sigmoid(r w + b) of each token ("token"), or by the mean of these over the
tokens of a segment ("mean", 2110.07577, 2021). AdapterHub's mean is over the whole row, padding included, and depends on how a batch is
padded; ours does not. With "mean" a token's gate depends on later tokens too, and in decoding on those of one call alone: it is for
encoders.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from peftjax.nn.kernels import Entry, node
from peftjax.nn.layers import ACTIVATIONS, layer_norm
from peftjax.nn.sites import WIDTH_FROM
from peftjax.nn.thin import expand, shrink
from peftjax.peft.bounds import require_rate
from peftjax.peft.dropout import drop, drop_rows
from peftjax.peft.hang import hang
from peftjax.peft.keys import Draw

READS = ("output", "sum", "residual", "normed")
INITS = ("identity", "bert", "houlsby")
NORMS = ("none", "before", "after", "both")
SCALES = ("learned", "channel")
GATES = ("none", "token", "mean")


@node(
    arrays=(
        "down", "down_bias", "up", "up_bias", "scale", "norm_before", "norm_before_bias", "norm_after", "norm_after_bias", "dropout",
        "stochastic_depth", "gate", "gate_bias", "annealed",
    ),
    static=("activation", "reads", "learned_scale", "name", "gating"),
)  # fmt: skip
@dataclasses.dataclass(frozen=True)
class Bottleneck(Entry):
    """The entry. down, up: [M, D]; down_bias [M]; up_bias [D]; scale [] or [D]; norms: LayerNorm scale and bias [D] or None; dropout,
    stochastic_depth: rates [] or None; gate [D] and gate_bias [], or None; annealed: [] from 0 to 1, how linear the network is, or None
    (`peftjax.peft.anneal`); all with a leading L outside the scanned body."""

    down: jax.Array
    down_bias: jax.Array
    up: jax.Array
    up_bias: jax.Array
    scale: jax.Array
    norm_before: jax.Array | None
    norm_before_bias: jax.Array | None
    norm_after: jax.Array | None
    norm_after_bias: jax.Array | None
    dropout: jax.Array | None
    activation: str
    reads: str
    learned_scale: bool
    name: str
    stochastic_depth: jax.Array | None = None
    gate: jax.Array | None = None
    gate_bias: jax.Array | None = None
    annealed: jax.Array | None = None
    gating: str = "none"

    matrices = ("down", "up")
    kept = ("annealed",)

    @property
    def trainable(self):
        norms = ("norm_before", "norm_before_bias", "norm_after", "norm_after_bias")
        weights = ("down", "down_bias", "up", "up_bias", *norms, "gate", "gate_bias")
        return (*weights, "scale") if self.learned_scale else weights

    def __call__(self, x, key=None, residual=None, normed=None, after=None, tokens=None, **_):
        """x [B, T, D], the output at the site, -> x + f(what this adapter reads)."""
        h = what_is_read(self.reads, x, residual, normed, after)
        change = drop(self._network(h, key), self.dropout, key, self.name)
        if self.gate is not None:
            change = change * self._gates(h, tokens).astype(change.dtype)
        return x + _norm(change, self.norm_after, self.norm_after_bias)

    def off(self):
        zero = {field: jnp.zeros_like(getattr(self, field)) for field in ("scale", "norm_after", "norm_after_bias")
                if getattr(self, field) is not None}
        return dataclasses.replace(self, **zero)

    def _network(self, h, key):
        dtype = h.dtype
        h = _norm(h, self.norm_before, self.norm_before_bias)
        h = shrink(h, self.down)
        h = self._activated(h + jnp.broadcast_to(self.down_bias.astype(dtype), h.shape))
        h = expand(h, self.up)
        h = drop_rows(h + jnp.broadcast_to(self.up_bias.astype(dtype), h.shape), self.stochastic_depth, key, self.name)
        return h * jnp.broadcast_to(self.scale.astype(h.dtype), h.shape)

    def _activated(self, z):
        curved = ACTIVATIONS[self.activation](z)
        if self.annealed is None:
            return curved
        straight = self.annealed.astype(z.dtype)
        return (1 - straight) * curved + straight * z

    def _gates(self, h, tokens):
        """[B, T, D], the same over D."""
        gates = jax.nn.sigmoid(h.astype(jnp.float32) @ self.gate + self.gate_bias)
        if self.gating == "mean":
            gates = mean_within(gates, jnp.ones(gates.shape, int) if tokens is None else tokens.segments)
        return jnp.broadcast_to(gates[..., None], h.shape)


def mean_within(values: jax.Array, segments: jax.Array) -> jax.Array:
    """The mean over the tokens of the same segment and row: values [B, T] and segments int [B, T] -> [B, T]."""
    same = segments[:, :, None] == segments[:, None, :]
    total = jnp.sum(jnp.where(same, jnp.broadcast_to(values[:, None, :], same.shape), 0), axis=-1)
    return total / jnp.sum(same, axis=-1)


def what_is_read(reads: str, x, residual, normed, after):
    """What goes into the network at a site whose output is x (see `peftjax.nn.sites`): a row of the module's table."""
    if reads == "sum":
        return residual + x if after is None else after(x)
    return {"output": x, "residual": residual, "normed": normed}[reads]


def _norm(x, scale, bias):
    """LayerNorm, or x itself where there is no scale."""
    return x if scale is None else layer_norm(x, scale, bias, 1e-5)


@dataclasses.dataclass(frozen=True)
class bottleneck:  # noqa: N801 (configs read `bottleneck(size=64)`)
    """Bottleneck adapters at chosen sites; see the presets `houlsby`, `pfeiffer`, `parallel`, `scaled_parallel`, `adapter_plus`.

    Attributes:
        size: M. None takes it from `reduction_factor`.
        reduction_factor: M = max(1, D // factor).
        sites: of the blocks, or "embed_out" / "final_out".
        reads: what goes into the network, a row of the module's table.
        activation: a name in `peftjax.nn.layers.ACTIVATIONS`.
        scale: a number, or "learned" (one number, from 1), or "channel" (one a channel, from 1).
        norm: LayerNorm "before" the network, "after" it, "both", or "none".
        init: "identity" is U(±1/sqrt(D)) down and zero up, so that the start is the base exactly (AdapterHub's "mam_adapter"); "bert" is
            normal(0.02) for both, "houlsby" normal(0.01) truncated at two deviations: near the base, not on it. Biases start at zero.
        dropout: rate on the output of the network, at training time.
        stochastic_depth: rate at which the network is left out for whole rows of a batch, at training time.
        gate: "none", "token" or "mean", see the module; from a half, its weights from normal(0.02).
        anneal: makes room for a weight by which the activation fades to the identity (`peftjax.peft.anneal`): True, or parts of a run,
            (0.2, 0.8), between which it does so as the run goes on (`peftjax.train.annealing`).
        layers: layers to adapt, default all.
        name: of the adapter.
    """

    size: int | None = None
    reduction_factor: float = 16
    sites: Sequence[str] = ("mlp_out",)
    reads: str = "sum"
    activation: str = "relu"
    scale: float | str = 1.0
    norm: str = "none"
    init: str = "identity"
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    gate: str = "none"
    anneal: bool | tuple[float, float] = False
    layers: Sequence[int] | None = None
    name: str = "default"

    def __post_init__(self):
        choices = {"reads": READS, "activation": ACTIVATIONS, "norm": NORMS, "init": INITS, "gate": GATES}
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"bottleneck {field} {getattr(self, field)!r} is none of {', '.join(allowed)}")
        if isinstance(self.scale, str) and self.scale not in SCALES:
            raise ValueError(f"bottleneck scale {self.scale!r} is neither a number nor one of {', '.join(SCALES)}")
        for site in self.sites:
            if site not in WIDTH_FROM:
                raise ValueError(f"no site is called {site!r}; sites are {', '.join(WIDTH_FROM)}")
            if self.reads != "output" and site not in ("attn_out", "mlp_out"):
                raise ValueError(f"reads={self.reads!r} needs a sublayer around it: sites attn_out or mlp_out, not {site}")
        if not self.sites:
            raise ValueError("bottleneck needs at least one site")
        if self.size is not None and self.size < 1 or self.reduction_factor <= 0:
            raise ValueError(f"bottleneck size {self.size} and reduction_factor {self.reduction_factor} must be positive")
        if not isinstance(self.anneal, bool):
            span = tuple(self.anneal)
            if len(span) != 2 or not 0 <= span[0] < span[1] <= 1:
                raise ValueError(f"bottleneck anneal {self.anneal!r} is no bool and not two rising parts of a run, as in (0.2, 0.8)")
            object.__setattr__(self, "anneal", span)
        for field in ("dropout", "stochastic_depth"):
            require_rate("bottleneck", getattr(self, field), field)

    def attach(self, params: dict, key: jax.Array) -> dict:
        """A new tree with an entry at every site.

        Raises:
            ValueError: a site that this base has not, a layer that does not exist, a name that is taken.
        """
        return hang(params, key, self.sites, self.layers, self.name, self._entry)

    def _entry(self, width: int, draw: Draw) -> Bottleneck:
        size = self.size if self.size is not None else max(1, int(width // self.reduction_factor))
        shape = (size, width)

        def random(rng):
            if self.init == "bert":
                return 0.02 * jax.random.normal(rng, shape)
            if self.init == "houlsby":
                return 0.01 * jax.random.truncated_normal(rng, -2.0, 2.0, shape)
            return jax.random.uniform(rng, shape, minval=-(width**-0.5), maxval=width**-0.5)

        down = draw("down", random)
        up = draw.full(0, *shape) if self.init == "identity" else draw("up", random)
        if isinstance(self.scale, str):
            scale = draw.full(1, width) if self.scale == "channel" else draw.full(1)
        else:
            scale = draw.full(self.scale)
        before, after = self.norm in ("before", "both"), self.norm in ("after", "both")
        gated = self.gate != "none"
        return Bottleneck(
            down=down, down_bias=draw.full(0, size), up=up, up_bias=draw.full(0, width), scale=scale,
            norm_before=draw.full(1, width) if before else None, norm_before_bias=draw.full(0, width) if before else None,
            norm_after=draw.full(1, width) if after else None, norm_after_bias=draw.full(0, width) if after else None,
            dropout=draw.rate(self.dropout),
            activation=self.activation, reads=self.reads, learned_scale=isinstance(self.scale, str), name=self.name,
            stochastic_depth=draw.rate(self.stochastic_depth),
            gate=draw("gate", lambda rng: 0.02 * jax.random.normal(rng, (width,))) if gated else None,
            gate_bias=draw.full(0) if gated else None,
            annealed=draw.full(0) if self.anneal else None, gating=self.gate,
        )


def houlsby(**options) -> bottleneck:
    """After attention and after the MLP, reading each output; swish (1902.00751, 2019)."""
    return bottleneck(**{"sites": ("attn_out", "mlp_out"), "reads": "output", "activation": "swish", **options})


def pfeiffer(**options) -> bottleneck:
    """After the MLP, reading the residual stream behind it; relu (2005.00247, 2020)."""
    return bottleneck(**{"sites": ("mlp_out",), "reads": "sum", "activation": "relu", **options})


def parallel(**options) -> bottleneck:
    """Beside the MLP, reading the residual stream before it; relu, scale 4 (2110.04366, 2021)."""
    return bottleneck(**{"sites": ("mlp_out",), "reads": "residual", "reduction_factor": 2, "scale": 4.0, **options})


def scaled_parallel(**options) -> bottleneck:
    """`parallel` with a learned scale (2110.04366, 2021)."""
    return parallel(**{"scale": "learned", **options})


def adapter_plus(**options) -> bottleneck:
    """After the MLP, reading the residual stream behind it, with a learned scale for each channel and stochastic depth; gelu
    (2406.06820, 2024). On an encoder it reads and adds to what comes behind the norm: sites=("block_out",), reads="output"."""
    preset = {"reduction_factor": 96, "activation": "gelu", "scale": "channel", "init": "houlsby", "stochastic_depth": 0.1}
    return bottleneck(**{**preset, **options})
