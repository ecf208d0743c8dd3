"""Training a piece of the base itself: full fine-tuning, BitFit (2106.10199, 2021), norms (2312.11420, 2023), the head.

    before  blocks/mlp_norm/scale = w [L, D]
    after   blocks/mlp_norm/scale = Trained(base=w, value=w')           w' starts as a copy of w, or at zero where nothing stood

The frozen original stays in the tree, so that these baselines are adapters like the others: they are detached, chosen by name and stored
apart, at the price of one frozen copy of what they train.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.nn.kernels import Kernel, Tied, attend, dense, dot, lookup, node
from peftjax.nn.quant import Quantised
from peftjax.nn.tree import put, walk
from peftjax.peft.select import KERNELS, Target, as_patterns, on_layers, parameters, select, sibling, with_head


@node(arrays=("base", "value"), static=("name",))
@dataclasses.dataclass(frozen=True)
class Trained(Kernel):
    """The node. base: what stood here, or None where nothing did; value: the trained weight in its place, of the same logical shape."""

    base: Any
    value: jax.Array
    name: str

    trainable = ("value",)
    matrices = ("value",)  # of a kernel; norms and biases are vectors whatever holds them

    @property
    def shape(self):
        return self.value.shape

    @property
    def dtype(self):
        return self.value.dtype if self.base is None else self.base.dtype

    def dot(self, x, key=None):
        return dot(x, self.value)

    def lookup(self, ids, dtype, key=None):
        return lookup(ids, self.value, dtype)

    def attend(self, x, key=None):
        return attend(x, self.value)

    def off(self):
        there = jnp.zeros_like(self.value) if self.base is None else dense(self.base).astype(self.value.dtype)
        return dataclasses.replace(self, value=there)

    def merge(self):
        return self.value.astype(self.dtype)


def _train(params: dict, targets: list[Target], name: str, what: str) -> dict:
    if not targets:
        raise ValueError(f"{what} matches nothing in this base: it holds {', '.join(path for path, _ in walk(params))}")
    for target in targets:
        if isinstance(target.value, Quantised):
            raise ValueError(
                f"{what} would train {target.path}, which is held as {type(target.value).__name__}: a quantised weight has no gradient. "
                "Adapt it (lora, bottleneck), name other targets, or load it dense"
            )
        if isinstance(target.value, Kernel) and not isinstance(target.value, Tied):
            raise ValueError(
                f"{what} would train {target.path} under {type(target.value).__name__}; attach it first, or name other targets"
            )
        # A copy, not an alias: the optimiser's step donates the trained value, and the frozen one must outlive it.
        value = jnp.array(dense(target.value), jnp.float32, copy=True)
        params = put(params, target.path, Trained(target.value, value, name))
    return params


@dataclasses.dataclass(frozen=True)
class full:  # noqa: N801
    """Full fine-tuning of every parameter, or of the modules that `targets` name (HF PEFT's modules_to_save), or on chosen `layers`.

        y = x W' + b'

    On a base with tied weights the target "lm_head" is a head trained apart from the embedding; with the target "embed_tokens" the head
    follows, unless `ensure_weight_tying` is False: then it stays what the base's was, as HF PEFT does unless asked.
    """

    targets: str | Sequence[str] | None = None
    ensure_weight_tying: bool = True
    layers: Sequence[int] | None = None
    name: str = "default"

    def attach(self, params: dict, key: jax.Array) -> dict:
        """A new tree in which these base parameters are trained; `key` is not used.

        Raises:
            ValueError: a target or a layer that names nothing, or a parameter that an adapter already wraps.
        """
        names = (*KERNELS, "scale", "bias")
        if self.targets is None:
            return _train(params, on_layers(parameters(params, names), self.layers), self.name, "full()")
        if {"lm_head", "head"} & set(as_patterns(self.targets)):
            params = with_head(params)
        chosen = select(params, self.targets, self.layers, names)
        if not self.ensure_weight_tying and any(t.logical == "embed/embedding" for t in chosen):
            params = with_head(params, apart=self.name)
        return _train(params, chosen, self.name, "full()")


@dataclasses.dataclass(frozen=True)
class norm_only:  # noqa: N801
    """The scales (and biases) of the norms.

        y = x / rms(x) ⊙ w' + b'

    w' starts as the base's scale, b' as its bias where it has one.
    """

    layers: Sequence[int] | None = None
    name: str = "default"

    def attach(self, params: dict, key: jax.Array) -> dict:
        """A new tree in which the norms are trained; `key` is not used."""
        norms = [t for t in parameters(params, ("scale", "bias")) if sibling(params, t.path, "kernel") is None]
        return _train(params, on_layers(norms, self.layers), self.name, "norm_only()")


@dataclasses.dataclass(frozen=True)
class bitfit:  # noqa: N801
    """The biases of linear layers, or with `targets="all"` every bias there is, those of norms too. Llama-like bases have none: `add=True`
    puts a zero bias on each target that lacks one.

        y = x W + b'
    """

    targets: str | Sequence[str] = "all-linear"
    add: bool = False
    layers: Sequence[int] | None = None
    name: str = "default"

    def attach(self, params: dict, key: jax.Array) -> dict:
        """A new tree in which the biases are trained; `key` is not used.

        Raises:
            ValueError: no target has a bias and none may be added.
        """
        if self.targets == "all":
            biases = [t for t in parameters(params, ("bias",)) if getattr(t.value, "name", None) != self.name]  # a head's own is trained
            return _train(params, on_layers(biases, self.layers), self.name, "bitfit()")
        found = []
        for target in select(params, self.targets, self.layers, names=("kernel",)):
            path, bias = f"{target.path.rpartition('/')[0]}/bias", sibling(params, target.path, "bias")
            if bias is not None:
                found.append(target._replace(path=path, value=bias))
            elif self.add:
                zeros = jnp.zeros(target.value.shape[:-2] + target.value.shape[-1:], jnp.float32)
                params = put(params, path, Trained(None, zeros, self.name))
        if not found and not self.add:
            raise ValueError("bitfit() matches nothing: this base has no biases; bitfit(add=True) puts a zero bias on each target")
        return _train(params, found, self.name, "bitfit()") if found else params


@dataclasses.dataclass(frozen=True)
class head_only:  # noqa: N801
    """The output head. On a base with tied weights the head is trained apart from the embedding, which stays as it is; on an encoder with a
    classifier of its own, what stands behind the last block is trained: pool and head.

        logits = h W'
    """

    name: str = "default"

    def attach(self, params: dict, key: jax.Array) -> dict:
        """A new tree in which the head is trained; `key` is not used."""
        params = with_head(params)
        found = [t for t in parameters(params, ("kernel", "bias")) if t.logical.partition("/")[0] in ("head", "pool")]
        return _train(params, found, self.name, "head_only()")
