"""DoRA: a low-rank update after which every column of the weight is set to a trained length (2402.09353, 2024).

    before  blocks/attn/q/kernel = W [L, in, out]
    after   blocks/attn/q/kernel = DoRA(base=W, a=[L, R, in], b=[L, R, out], scale=[L], magnitude=[L, out], squares=[L, out])

    y = (x W + s (x Aᵀ) B) · m / n,      n_o = ‖W_o + s Aᵀ B_o‖, a constant in the backward pass (section 4.3 of the paper)

m starts as the lengths of W's columns, so that the start is the base exactly; a column is what makes one output, so lengths are over `in`.
The lengths n are found without forming the changed weight:

    n_o² = ‖W_o‖² + 2 s B_o · (A W)_o + s² B_oᵀ (A Aᵀ) B_o

where ‖W_o‖² is the frozen leaf `squares`, and A W costs what R more tokens would. In float32 the sum resolves n down to about 1e-3 of ‖W_o‖
and is held above that; an update that leaves less of a column than this cancels it, which a thin one can do only to a column that lies
among A's rows. An all-zero column has no direction, starts with m = 0 and stays zero.

`lora(dora=True)` attaches it. While nothing is trained, `settle` keeps m / n instead of finding it at every call.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from peftjax.nn.kernels import PRODUCT, Kernel, Wrapping, attend, dense, dot, lookup, node
from peftjax.nn.tree import put, walk
from peftjax.nn.wide import wide
from peftjax.peft import low_rank
from peftjax.peft.composed import Composed
from peftjax.peft.dropout import drop


@node(arrays=("base", "a", "b", "magnitude", "scale", "dropout", "squares", "settled"), static=("name",))
@dataclasses.dataclass(frozen=True)
class DoRA(Wrapping):
    """The node. base: weight [in, out], dense, quantised or tied, of no other adapter; a: [R, in]; b: [R, out]; magnitude m: [out]; scale:
    []; dropout: rate [] or None; squares: ‖W_o‖² [out]; settled: m / n [out], or None to find it; all with a leading L outside the scanned
    body. On an embedding [V, D] `in` is V and `out` is D."""

    base: Any
    a: jax.Array
    b: jax.Array
    magnitude: jax.Array
    scale: jax.Array
    dropout: jax.Array | None
    squares: jax.Array
    name: str
    settled: jax.Array | None = None

    trainable = ("a", "b", "magnitude")
    matrices = ("a", "b")
    fast = ("b",)
    ranked = ("a", "b")
    keeps_product = True

    def thin_input(self, training):
        return None if training and self.dropout is not None else self.a

    def around(self, x, product, key=None, thin=None):
        """As in HF PEFT, what dropout takes from x still passes through the base, and m and n act on the rest."""
        h = drop(x, self.dropout, key, self.name)
        y = _scaled(product(h) + low_rank.times(h, self.a, self.b, self.scale, thin), self.lengths())
        return y if h is x else y + product(x - h)

    def lookup(self, ids, dtype, key=None):
        row = lookup(ids, self.base, dtype, key) + low_rank.lookup(ids, self.a, self.b, self.scale, dtype)
        return _scaled(row, self.lengths())

    def attend(self, x, key=None):
        x = _scaled(x, self.lengths())
        return attend(x, self.base, key) + low_rank.back(x, self.a, self.b, self.scale)

    def off(self):
        settled = None if self.settled is None else jnp.where(self.squares > 0, 1.0, 0.0)
        return dataclasses.replace(self, magnitude=jnp.sqrt(self.squares), scale=jnp.zeros_like(self.scale), settled=settled)

    def merge(self):
        if self.a.ndim > 2:
            return jax.lax.map(DoRA.merge, self)
        base = dense(self.base)
        changed = base.astype(wide(base.dtype)) + low_rank.whole(self.a, self.b, self.scale)
        return _scaled(changed, self.lengths()).astype(base.dtype)

    def lengths(self) -> jax.Array:
        """m / n [out], float32: what each column is multiplied by. Gradients reach m alone."""
        if self.settled is not None:
            return self.settled
        a, b, scale = jax.lax.stop_gradient((self.a, self.b, self.scale))
        with jax.default_matmul_precision("highest"):
            along, gram = jax.lax.stop_gradient(_thin_product(a, self.base)), dot(a, a.T)
            change = scale * jnp.sum(b * (2 * along + scale * dot(gram, b)), axis=0)
        info = jnp.finfo(jnp.float32)
        resolved = jnp.maximum(info.eps * self.squares, info.tiny)
        # The guard by a maximum keeps the quotient a quotient: as m · rsqrt(n²) the start would not be 1 to the last bit.
        return self.magnitude / jnp.maximum(jnp.sqrt(jnp.maximum(self.squares + change, resolved)), info.tiny)


def on_weight(base: Any, a: jax.Array, b: jax.Array, scale: jax.Array, dropout: jax.Array | None, name: str) -> DoRA:
    """The node around a weight, with m at the lengths of its columns. Shapes as in `DoRA`, with a leading L or without."""
    squares = column_squares(base)
    return DoRA(base, a, b, jnp.sqrt(squares), scale, dropout, squares, name)


@jax.jit
def column_squares(kernel: Any) -> jax.Array:
    """‖W_o‖² of a kernel [..., in, out] -> [..., out] float32; of a stack one layer after the other, so that one at a time is dense."""
    if len(kernel.shape) > 2:
        return jax.lax.map(column_squares, kernel)
    return jnp.sum(jnp.square(dense(kernel).astype(wide(kernel.dtype))), axis=0)


def settle(params: dict) -> dict:
    """A new tree whose DoRAs keep their m / n, for evaluation and generation, where a token would cost another pass over the weight. Its
    magnitudes can no longer be trained: nothing reads them."""
    for path, value in list(walk(params)):
        if isinstance(value, Kernel):
            params = put(params, path, _settled(value))
    return params


def _settled(value: Any) -> Any:
    if isinstance(value, DoRA):
        unknown = dataclasses.replace(value, settled=None)
        return dataclasses.replace(value, settled=_lengths(unknown))
    if isinstance(value, Composed):  # where a DoRA stands on the weight itself, whatever is beside it
        return dataclasses.replace(value, parts={name: _settled_on(part, value.base) for name, part in value.parts.items()})
    base = getattr(value, "base", None)
    return dataclasses.replace(value, base=_settled(base)) if isinstance(base, Kernel) else value


def _settled_on(part: Any, base: Any) -> Any:
    """A part of a composition, which is around nothing, with the lengths that it has around `base`."""
    if isinstance(part, DoRA):
        return dataclasses.replace(_settled(dataclasses.replace(part, base=base)), base=None)
    return part if part.base is None else dataclasses.replace(part, base=_settled_on(part.base, base))


@jax.jit
def _lengths(kernel: DoRA) -> jax.Array:
    return jax.lax.map(_lengths, kernel) if kernel.a.ndim > 2 else kernel.lengths()


def _thin_product(a: jax.Array, base: Any) -> jax.Array:
    """A W [R, out] in float32. For a dense weight of fewer bits A is split into two parts of its dtype: no float32 copy of the weight."""
    if isinstance(base, Kernel) or base.dtype == a.dtype:
        return dot(a, base)
    high = a.astype(base.dtype)
    parts = jnp.concatenate([high, (a - high.astype(a.dtype)).astype(base.dtype)])
    both = jax.lax.dot_general(parts, base, (((1,), (0,)), ((), ())), preferred_element_type=a.dtype)
    return both[: a.shape[0]] + both[a.shape[0] :]


@jax.custom_vjp
def _scaled(x: jax.Array, factor: jax.Array) -> jax.Array:
    """x [..., out] times factor [out], in x's dtype. The backward pass keeps the product, which is often kept anyway, and not x: the
    gradient of a factor that is zero is taken to be zero."""
    return (x.astype(wide(x.dtype)) * jnp.broadcast_to(factor, x.shape)).astype(x.dtype)


def _scaled_forward(x, factor):
    y = checkpoint_name(_scaled(x, factor), PRODUCT)
    return y, (y, factor)


def _scaled_backward(kept, dy):
    y, factor = kept
    products = jnp.sum((dy.astype(wide(dy.dtype)) * y.astype(wide(y.dtype))).reshape(-1, y.shape[-1]), axis=0)
    return _scaled(dy, factor), jnp.where(factor == 0, 0.0, products / jnp.where(factor == 0, 1.0, factor))


_scaled.defvjp(_scaled_forward, _scaled_backward)
