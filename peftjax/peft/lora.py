"""LoRA: a product of two thin matrices beside a frozen kernel (2106.09685, 2021).

    before  blocks/attn/q/kernel = W [L, in, out]
    after   blocks/attn/q/kernel = LoRA(base=W, a=[L, R, in], b=[L, R, out], scale=[L])

    y = x W + scale · ((x Aᵀ) B + bias),      scale = alpha / rank, or alpha / sqrt(rank) with rsLoRA (2312.03732, 2023)

Both factors are rank-major, so that their gradients transpose only the thin operand. `scale` is a leaf: it may differ between layers and
between members of a population without another compilation. `bias` [L, out] is there with `lora_bias` alone.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.hints import did_you_mean
from peftjax.nn.kernels import Kernel, attend, lookup, node
from peftjax.nn.tree import put
from peftjax.peft import low_rank
from peftjax.peft.bounds import require_positive, require_rate
from peftjax.peft.delta import LowRank, weight_under
from peftjax.peft.dora import DoRA, on_weight
from peftjax.peft.dropout import drop
from peftjax.peft.inits import SPELLED, Init, parse, stacked
from peftjax.peft.keys import Draw, key_at
from peftjax.peft.ranks import at_layers, leaf, own_rows
from peftjax.peft.select import Target, as_patterns, require_used, select, with_head
from peftjax.peft.shifted import ShiftedLoRA

INITS = ("kaiming", "gaussian", "orthogonal")


@node(arrays=("base", "a", "b", "bias", "scale", "dropout"), static=("name",))
@dataclasses.dataclass(frozen=True)
class LoRA(LowRank):
    """The node. base: kernel [in, out]; a: [R, in]; b: [R, out]; bias: [out] or None; scale: []; dropout: rate [] or None; all with a
    leading L outside the scanned body. On an embedding [V, D] `in` is V and `out` is D."""

    base: Any
    a: jax.Array
    b: jax.Array
    scale: jax.Array
    dropout: jax.Array | None
    name: str
    bias: jax.Array | None = None

    trainable = ("a", "b", "bias")
    matrices = ("a", "b")
    fast = ("b",)
    ranked = ("a", "b")

    def rows(self):
        return self.a, self.b

    def around(self, x, product, key=None, thin=None):
        y = super().around(x, product, key, thin)
        return y if self.bias is None else y + jnp.broadcast_to((self.scale * self.bias).astype(y.dtype), y.shape)

    def lookup(self, ids, dtype, key=None):
        return lookup(ids, self.base, dtype, key) + low_rank.lookup(ids, self.a, self.b, self.scale, dtype)

    def attend(self, x, key=None):
        return attend(x, self.base, key) + low_rank.back(x, self.a, self.b, self.scale)

    def merged_bias(self):
        below = super().merged_bias()
        if self.bias is None:
            return below
        own = self.scale[..., None] * self.bias
        return own if below is None else below + own


@node(arrays=("base", "a", "b", "bias", "scale", "dropout"), static=("name",))
@dataclasses.dataclass(frozen=True)
class LoRAFA(LoRA):
    """A LoRA whose A stays as it started (LoRA-FA, 2308.03303, 2023): x Aᵀ [..., R] is all that the gradient of B needs, and nothing of
    x's width is kept for the backward pass."""

    trainable = ("b", "bias")
    kept = ("a",)

    def thin_input(self, training):
        return None  # computed beside others' it would be kept as x is

    def around(self, x, product, key=None, thin=None):
        return super().around(x, product, key, low_rank.shrink_frozen(drop(x, self.dropout, key, self.name), self.a))


@dataclasses.dataclass(frozen=True)
class lora:  # noqa: N801 (configs read `lora(rank=8)`)
    """LoRA on chosen kernels.

    Attributes:
        rank: R.
        alpha: scale = alpha / rank. None is alpha = rank, a scale of 1 (of sqrt(rank) with rslora).
        targets: regular expressions over logical paths, or the field's names; see `peftjax.peft.select`.
        dropout: rate on the input of A, at training time; on embeddings there is none, whose input is an index.
        rslora: scale = alpha / sqrt(rank).
        dora: the columns of the changed weight get trained lengths (see `peftjax.peft.dora`). The node stands on the weight itself, under
            LoRAs of other names, whichever came first.
        lora_bias: a bias behind B, from zero and scaled like it, on linear kernels (as HF PEFT).
        ensure_weight_tying: on an embedding that the head is tied to, the head is adapted with it; False leaves the head what the base's
            was, as HF PEFT does unless asked.
        init: of A on linear kernels, where B is zero, so that the start is the base exactly: "kaiming" is U(-1/sqrt(in), 1/sqrt(in)),
            "gaussian" is normal with std 1/rank (both as HF PEFT). "orthogonal": A and B are interleaved rows of one random orthogonal
            [R, R] / 10 and random [in], [out] directions, both non-zero with A B = 0; R must be even. On embeddings A is zero and B normal
            with std 1, as HF PEFT, for "kaiming" and "gaussian". Others, on linear kernels, start from the weight or from data: see
            `peftjax.peft.inits`.
        freeze_a: A stays as it started (LoRA-FA); `config.optimizer.project_frozen_a` projects B's gradient for it.
        rank_pattern, alpha_pattern: exceptions by target or by layer (`{"down_proj": 32, "blocks/7/attn/q": 4}`); the first match counts.
        layers: layers to adapt, default all.
        name: of the adapter; methods of one name are one adapter.
    """

    rank: int = 8
    alpha: float | None = None
    targets: str | Sequence[str] = "all-linear"
    dropout: float = 0.0
    rslora: bool = False
    dora: bool = False
    lora_bias: bool = False
    ensure_weight_tying: bool = True
    init: str = "kaiming"
    freeze_a: bool = False
    rank_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = dataclasses.field(default_factory=dict)
    layers: Sequence[int] | None = None
    name: str = "default"

    def __post_init__(self):
        for rank in (self.rank, *self.rank_pattern.values()):
            require_positive("LoRA", rank=rank)
            if self.init == "orthogonal" and rank % 2:
                raise ValueError(f"LoRA init 'orthogonal' shares rows out in pairs; rank {rank} is odd")
        if self.init not in INITS and self._start is None:
            near = did_you_mean(self.init, (*INITS, *SPELLED))
            raise ValueError(f"LoRA init {self.init!r} is none of {', '.join((*INITS, *SPELLED))}{near}")
        if self._start is not None and (self.dora or self.lora_bias):
            raise ValueError(f"LoRA init {self.init!r} is for a LoRA without dora and lora_bias")
        if self.freeze_a and (self.dora or self._shifts):
            raise ValueError("freeze_a needs a B that starts at zero, of a plain LoRA; leave out dora and inits that change the base")
        require_rate("LoRA", self.dropout)
        if self.dora and self.lora_bias:
            raise ValueError("a bias behind B has no part in DoRA, which is a change of the weight alone; leave out dora or lora_bias")

    @property
    def _start(self) -> Init | None:
        return parse(self.init)

    @property
    def _shifts(self) -> bool:
        return self._start is not None and self._start.shifts

    def attach(self, params: dict, key: jax.Array) -> dict:
        """A new tree with a LoRA node, or a DoRA node, around every target.

        Raises:
            ValueError: a target, a pattern or a layer that names nothing; DoRA on a weight that another method than LoRA stands on.
        """
        if {"lm_head", "head"} & set(as_patterns(self.targets)):
            params = with_head(params)
        targets = select(params, self.targets, self.layers)
        if not self.ensure_weight_tying and any(t.logical == "embed/embedding" for t in targets):
            params = with_head(params, apart=self.name)
        require_used(self.rank_pattern, targets, "rank_pattern")
        require_used(self.alpha_pattern, targets, "alpha_pattern")
        for target in targets:
            params = put(params, target.path, self._node(target, key))
        return params

    def _node(self, target: Target, key: jax.Array) -> LoRA | DoRA:
        ranks, alphas = at_layers(self.rank_pattern, target, self.rank), at_layers(self.alpha_pattern, target, self.alpha)
        alphas = [rank if alpha is None else alpha for alpha, rank in zip(alphas, ranks, strict=True)]
        scales = [alpha / (rank**0.5 if self.rslora else rank) for alpha, rank in zip(alphas, ranks, strict=True)]
        rows, width = target.value.shape[-2:]
        value_of, top = Draw(key, f"{target.logical}/{self.name}", target.layers), max(ranks)
        if self.init == "orthogonal" and len(set(ranks)) > 1:
            raise ValueError(f"LoRA init 'orthogonal' needs one rank in a scanned stack; {target.path} has {sorted(set(ranks))}")
        is_embedding = target.path.endswith("/embedding")
        if self._start is not None and is_embedding:
            raise ValueError(f"LoRA init {self.init!r} is for linear kernels; {target.path} is an embedding")

        def draw(factor: str, init):
            return own_rows(value_of(factor, init), ranks)

        if self.init == "orthogonal":
            halves = _orthogonal(top, rows, width)
            a = draw("ab", lambda k: halves(k)[0])
            b = draw("ab", lambda k: halves(k)[1])
        else:
            thin = self._random(top, width if is_embedding else rows, is_embedding)
            zero = lambda _: jnp.zeros((top, rows if is_embedding else width))  # noqa: E731
            a, b = (draw("a", zero), draw("b", thin)) if is_embedding else (draw("a", thin), draw("b", zero))
        scale, dropout = leaf(scales, target), value_of.rate(self.dropout)
        if self._start is not None:
            return self._started(target, a, b, ranks, scale, dropout, key)
        if self.dora:
            return _beneath(target.value, lambda weight: on_weight(weight, a, b, scale, dropout, self.name), target.path)
        bias = jnp.zeros(b.shape[:-2] + b.shape[-1:]) if self.lora_bias and not is_embedding else None
        return (LoRAFA if self.freeze_a else LoRA)(target.value, a, b, scale, dropout, self.name, bias)

    def _started(self, target: Target, a, b, ranks: list[int], scale, dropout, key: jax.Array) -> LoRA | ShiftedLoRA:
        """The node of an init of `peftjax.peft.inits`; with a and b as they are where it needs statistics first."""
        start, layers = self._start, target.layers
        room = [(0, 0)] * (a.ndim - 2) + [(0, start.rows(max(ranks)) - max(ranks)), (0, 0)]
        a, b = jnp.pad(a, room), jnp.pad(b, room)
        if not start.shifts:
            return (LoRAFA if self.freeze_a else LoRA)(target.value, a, b, scale, dropout, self.name)
        if start.needs is None:
            a, b = stacked(start, weight_under(target.value), scale, ranks, key_at(key, f"{target.logical}/{self.name}/start"), layers)
        return ShiftedLoRA(target.value, a, b, jnp.array(a), jnp.array(b), scale, dropout, self.name)

    def _random(self, rank: int, width: int, is_embedding: bool):
        if is_embedding:
            return lambda key: jax.random.normal(key, (rank, width))
        if self.init == "gaussian":
            return lambda key: jax.random.normal(key, (rank, width)) / rank
        bound = width**-0.5
        return lambda key: jax.random.uniform(key, (rank, width), minval=-bound, maxval=bound)


def _beneath(value: Any, wrap: Callable[[Any], DoRA], path: str) -> Any:
    """What stands at a path with the weight under its LoRAs wrapped: beside a LoRA a DoRA means the same whichever was attached first."""
    if isinstance(value, LoRA):
        return dataclasses.replace(value, base=_beneath(value.base, wrap, path))
    if isinstance(value, Kernel) and hasattr(value, "name"):
        raise ValueError(
            f"DoRA cannot stand on {path}, where {type(value).__name__} {value.name!r} stands: the lengths would be those of a weight that "
            "is not read; merge or detach that first, or name other targets"
        )
    return wrap(value)


def _orthogonal(rank: int, rows: int, width: int):
    """key -> (a [rank, rows], b [rank, width]), both non-zero, with aᵀ b = 0: one random orthogonal Q [rank, rank] gives even rows to mix
    a's random directions and odd rows to mix b's, and rows of an orthogonal matrix are orthogonal along the rank axis."""

    def draw(key):
        for_q, for_a, for_b = jax.random.split(key, 3)
        q = jnp.linalg.qr(jax.random.normal(for_q, (rank, rank)))[0]
        a = jax.random.normal(for_a, (rank // 2, rows)) / rows**0.5
        b = jax.random.normal(for_b, (rank // 2, width)) / width**0.5
        return q[0::2].T @ a / 10, q[1::2].T @ b / 10

    return draw
