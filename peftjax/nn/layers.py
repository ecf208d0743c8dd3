"""Linear, Embed, RMSNorm and Head: Linen layers that read their weights as kernels.

Linen checks a stored parameter leaf by leaf against its initial value, which a node cannot pass; so `read` takes what is stored
and checks the logical shape itself. Kernels are [in, out].
"""

import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from peftjax.nn.kernels import PRODUCT, Kernel, attend, dense, dot, lookup
from peftjax.nn.thin import shrink
from peftjax.nn.wide import wide

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "tanh": jnp.tanh,
    "linear": lambda x: x,
}


def read(module: nn.Module, name: str, init, shape: tuple[int, ...]):
    """The parameter `name`: what is stored, array or node, else `init(key, shape, float32)`.

    Raises:
        ValueError: the stored logical shape is not `shape`.
    """
    if not module.has_variable("params", name):
        return module.param(name, init, shape, jnp.float32)
    value = module.get_variable("params", name)
    if tuple(value.shape) != tuple(shape):
        where = "/".join((*module.scope.path, name))
        raise ValueError(f"{where} has shape {tuple(value.shape)}; the model asks for {tuple(shape)}")
    return value


def optional(module: nn.Module, name: str):
    """The parameter `name` where the tree holds one, else None: what a method may add (a bias, an untied head)."""
    return module.get_variable("params", name) if module.has_variable("params", name) else None


def dropout_key(module: nn.Module):
    """A key of this module's own at training time, None otherwise."""
    return module.make_rng("dropout") if module.has_rng("dropout") else None


def add_bias(y, bias, kernel):
    """y [..., out], the product with `kernel`, plus bias [out], in y's dtype; y itself where there is none."""
    if bias is None:
        return y
    bias = kernel.changed_bias(dense(bias)) if isinstance(kernel, Kernel) else dense(bias)
    return y + jnp.broadcast_to(bias.astype(y.dtype), y.shape)


class Linear(nn.Module):
    """x [..., in] -> x W + bias [..., features]. A bias is read where the tree holds one, created with `use_bias`.

    `thin` is what the kernel made of x by its `thin_input`, where that was computed beside others' (`linears`).
    """

    features: int
    use_bias: bool = False

    @nn.compact
    def __call__(self, x, thin=None):
        kernel = read(self, "kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.features))
        y = dot(x, kernel, dropout_key(self)) if thin is None else kernel.dot(x, dropout_key(self), thin=thin)
        if self.use_bias:
            bias = read(self, "bias", nn.initializers.zeros, (self.features,))
        else:
            bias = optional(self, "bias")
        y = add_bias(y, bias, kernel)
        return y if isinstance(kernel, Kernel) and kernel.keeps_product else checkpoint_name(y, PRODUCT)


def linears(module: nn.Module, x, layers: Mapping[str, Linear]) -> list:
    """What several Linear layers of `module`, by name, make of one x [..., in], in their order.

    Kernels that begin by shrinking x to a few columns (`Kernel.thin_input`) do so in one product: x is read once instead of many times,
    forward and for the gradients.
    """
    training, thin = module.has_rng("dropout"), {}
    for name in layers:
        kernel = module.get_variable("params", name, {}).get("kernel") if module.has_variable("params", name) else None
        rows = kernel.thin_input(training) if isinstance(kernel, Kernel) else None
        if rows is not None:
            thin[name] = rows
    if len(thin) > 1:
        shrunk = shrink(x, jnp.concatenate([rows.astype(x.dtype) for rows in thin.values()]))
        ends = list(itertools.accumulate(rows.shape[0] for rows in thin.values()))
        thin = dict(zip(thin, jnp.split(shrunk, ends[:-1], axis=-1), strict=True))
    else:
        thin = {}
    return [layer(x, thin.get(name)) for name, layer in layers.items()]


class Embed(nn.Module):
    """ids [...] -> rows [..., D] of `embedding` [V, D]; `table` hands the kernel to a tied head."""

    vocab_size: int
    width: int
    dtype: Any = jnp.float32

    def setup(self):
        self.embedding = read(self, "embedding", nn.initializers.normal(0.02), (self.vocab_size, self.width))

    def __call__(self, ids):
        return lookup(ids, self.embedding, self.dtype, dropout_key(self))

    def table(self):
        """The embedding kernel itself."""
        return self.embedding


class RMSNorm(nn.Module):
    """x / rms(x) * (scale + offset), computed in float32, returned in x's dtype (1910.07467, 2019). `offset` is 1 in Gemma."""

    eps: float
    offset: float = 0.0

    @nn.compact
    def __call__(self, x):
        scale = dense(read(self, "scale", nn.initializers.constant(1.0 - self.offset), (x.shape[-1],)))
        return rms_norm(x, scale.astype(wide(scale.dtype)) + self.offset if self.offset else scale, self.eps)


def rms_norm(x, scale, eps: float):
    """RMS norm over the last axis: x [..., D], scale [D] -> x's dtype."""
    y = x.astype(wide(x.dtype))
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    return (y * jnp.broadcast_to(scale.astype(y.dtype), y.shape)).astype(x.dtype)


class LayerNorm(nn.Module):
    """(x - mean) / std * scale + bias, computed in float32, returned in x's dtype (1607.06450, 2016)."""

    eps: float

    @nn.compact
    def __call__(self, x):
        scale = dense(read(self, "scale", nn.initializers.ones, (x.shape[-1],)))
        bias = dense(read(self, "bias", nn.initializers.zeros, (x.shape[-1],)))
        return layer_norm(x, scale, bias, self.eps)


def layer_norm(x, scale, bias, eps: float):
    """Layer norm over the last axis: x [..., D], scale and bias [D] -> x's dtype."""
    y = x.astype(wide(x.dtype))
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    y = y * jnp.broadcast_to(scale.astype(y.dtype), y.shape)
    return (y + jnp.broadcast_to(bias.astype(y.dtype), y.shape)).astype(x.dtype)


class Head(nn.Module):
    """Hidden states [..., D] -> logits [..., V]: by `kernel` [D, V] where the tree holds one, else by the tied embedding.
    A bias is added where the tree holds one."""

    vocab_size: int
    tied: bool

    @nn.compact
    def __call__(self, x, embedding):
        if self.tied:
            kernel = optional(self, "kernel")
        else:
            kernel = read(self, "kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.vocab_size))
        key = dropout_key(self)
        y = attend(x, embedding, key) if kernel is None else dot(x, kernel, key)
        return add_bias(y, optional(self, "bias"), kernel)
