"""Kernels: what stands where a weight is read, and the few ways to read one.

A model multiplies by a kernel through `dot`, looks rows up through `lookup`, takes logits through `attend` and reads small
vectors (norm scales, biases) through `dense`. A kernel is a plain array, or a *node*: a registered dataclass derived from
`Kernel` that does these things its own way. Nodes nest, and each names its own trainable fields:

    before  kernel = W                                        dot(x) = x W
    after   kernel = LoRA(base=W, a=A, b=B, scale=s)          dot(x) = x W + s (x Aᵀ) B

Nothing turns a node into a dense array silently: `jnp.asarray(node)` fails, `merge()` is the way to ask.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.tree_util import GetAttrKey

PRODUCT = "product"  # the name, for checkpoint policies, of what a Linear layer gives


class Kernel:
    """A node in the place of a weight with logical shape [in, out] ([L, in, out] outside the scanned body).

    Subclasses are frozen dataclasses decorated with `node`; fields named in `trainable` are trained, all others are frozen. Of these,
    `matrices` are subject to weight decay, and `fast` to the higher rate of LoRA+.
    """

    trainable: ClassVar[tuple[str, ...]] = ()
    matrices: ClassVar[tuple[str, ...]] = ()
    fast: ClassVar[tuple[str, ...]] = ()
    ranked: ClassVar[tuple[str, ...]] = ()  # fields whose rows past a layer's own rank are zero in a stack of several ranks
    adds: ClassVar[bool] = False  # whether `dot` adds to the product with what is wrapped something that does not depend on it
    keeps_product: ClassVar[bool] = False  # whether `dot` itself names what the backward pass should find again (`PRODUCT`)

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape, as of the dense weight."""
        raise TypeError(f"{type(self).__name__} does not say its shape")

    @property
    def dtype(self):
        """Dtype of the weight underneath."""
        raise TypeError(f"{type(self).__name__} does not say its dtype")

    def dot(self, x, key=None):
        """x [..., in] -> [..., out], in x's dtype. `key` is a dropout key at training time, None otherwise."""
        raise TypeError(f"{type(self).__name__} cannot be multiplied by; a matrix product was asked for")

    def thin_input(self, training: bool):
        """The matrix [R, in] by which `dot` shrinks its input as it is, where it does; then `dot` takes `thin`, the product x [..., R],
        when it was computed beside those of other kernels."""
        return None

    def lookup(self, ids, dtype, key=None):
        """ids [...] -> rows [..., out] in `dtype` (an embedding)."""
        raise TypeError(f"{type(self).__name__} cannot stand in an embedding")

    def attend(self, x, key=None):
        """x [..., out] -> [..., in]: the product with the transposed kernel (a head tied to an embedding)."""
        raise TypeError(f"{type(self).__name__} cannot stand in a tied head")

    def merge(self):
        """The dense weight this node stands for; raises TypeError with the reason where there is none."""
        raise TypeError(f"{type(self).__name__} cannot be merged into a dense weight")

    def merged_bias(self):
        """What `dot` adds whatever x is, [out], and merging has to put into the bias beside the weight; None where there is nothing."""
        return None

    def changed_bias(self, bias: jax.Array) -> jax.Array:
        """What becomes of the bias [out] ([L, out] outside the scanned body) that stands beside this kernel, itself unless a node changes
        the whole output of its layer."""
        return bias

    def off(self):
        """This node with values, of the same shapes, at which it changes nothing; raises TypeError where there are none."""
        raise TypeError(f"{type(self).__name__} has no values at which it changes nothing")


class Wrapping(Kernel):
    """A kernel around another one, its field `base`, of the same logical shape and dtype.

    A subclass says in `around` what it makes of the product with what it wraps. That product is handed to it as a function, so that
    several kernels around one weight may have it computed once.
    """

    base: Any

    def around(self, x, product, key=None):
        """x [..., in] -> [..., out] in x's dtype. `product`, [..., in] -> [..., out], multiplies by `self.base`; `key` as of `dot`."""
        raise TypeError(f"{type(self).__name__} cannot be multiplied by; a matrix product was asked for")

    def dot(self, x, key=None, **thin):
        return self.around(x, lambda h: dot(h, self.base, key), key, **thin)

    def merged_bias(self):
        return self.base.merged_bias() if isinstance(self.base, Kernel) else None

    def changed_bias(self, bias):
        return self.base.changed_bias(bias) if isinstance(self.base, Kernel) else bias

    @property
    def shape(self):
        return self.base.shape

    @property
    def dtype(self):
        return self.base.dtype


class Entry:
    """What hangs at a site (see `peftjax.nn.sites`): a frozen dataclass decorated with `node`, called with the value.
    `trainable`, `matrices` and `fast` are as for `Kernel`."""

    trainable: ClassVar[tuple[str, ...]] = ()
    matrices: ClassVar[tuple[str, ...]] = ()
    fast: ClassVar[tuple[str, ...]] = ()

    def off(self):
        """As of `Kernel`."""
        raise TypeError(f"{type(self).__name__} has no values at which it changes nothing")


def node(arrays: tuple[str, ...], static: tuple[str, ...] = ()):
    """Class decorator: registers a frozen dataclass as a JAX tree node with named leaves.

    `arrays` are the fields with leaves or nested kernels; a field may be None, which holds no leaf. `static` fields must
    be hashable and equal over layers and members. A field called `base` adds nothing to the paths below it; the fields of
    a wrapping kernel are prefixed with the adapter's name (`tone/a`), so that paths do not depend on nesting.
    """

    def register(cls):
        fields = {field.name for field in dataclasses.fields(cls)}
        if fields != set(arrays) | set(static):
            raise TypeError(f"{cls.__name__}: fields {sorted(fields)} are not arrays {arrays} and static {static}")
        wraps = "base" in arrays and "name" in static

        def keyed(value):
            prefix = f"{value.name}/" if wraps else ""
            children = [(GetAttrKey("" if f == "base" else prefix + f), getattr(value, f)) for f in arrays]
            return children, tuple(getattr(value, f) for f in static)

        def plain(value):
            return [getattr(value, f) for f in arrays], tuple(getattr(value, f) for f in static)

        def build(aux, children):
            return cls(**dict(zip(arrays, children, strict=True)), **dict(zip(static, aux, strict=True)))

        jax.tree_util.register_pytree_with_keys(cls, keyed, build, plain)
        cls.array_fields = arrays
        return cls

    return register


@node(arrays=("base",), static=("apart",))
@dataclasses.dataclass(frozen=True)
class Tied(Kernel):
    """The transposed embedding in the place of a head: what a head adapter wraps on a base with tied weights.

    base: the embedding [V, D]; the logical shape is [D, V]. It shares the embedding's buffer. apart: names of the embedding's adapters
    that the head does not follow; while one of them is there, so is this.
    """

    base: Any
    apart: tuple[str, ...] = ()

    @property
    def shape(self):
        return self.base.shape[:-2] + self.base.shape[-2:][::-1]

    @property
    def dtype(self):
        return self.base.dtype

    def dot(self, x, key=None):
        return attend(x, self.base, key)

    def merge(self):
        return jnp.swapaxes(dense(self.base), -1, -2)


def dot(x: jax.Array, kernel: Any, key=None) -> jax.Array:
    """x [..., in] times kernel [in, out] -> [..., out], computed in x's dtype."""
    if isinstance(kernel, Kernel):
        return kernel.dot(x, key)
    return jax.lax.dot_general(x, kernel.astype(x.dtype), (((x.ndim - 1,), (0,)), ((), ())))


def lookup(ids: jax.Array, kernel: Any, dtype, key=None) -> jax.Array:
    """Rows of an embedding [V, D]: ids [...] -> [..., D] in `dtype`."""
    if isinstance(kernel, Kernel):
        return kernel.lookup(ids, dtype, key)
    return jnp.take(kernel, ids, axis=0).astype(dtype)


def attend(x: jax.Array, kernel: Any, key=None) -> jax.Array:
    """x [..., D] times the transpose of an embedding [V, D] -> [..., V]."""
    if isinstance(kernel, Kernel):
        return kernel.attend(x, key)
    return jax.lax.dot_general(x, kernel.astype(x.dtype), (((x.ndim - 1,), (1,)), ((), ())))


def dense(kernel: Any) -> jax.Array:
    """The dense array of a kernel: itself, or a node merged on purpose."""
    return kernel.merge() if isinstance(kernel, Kernel) else kernel


def is_kernel(value: Any) -> bool:
    """True for kernel nodes; the `is_leaf` of tree maps over whole kernels."""
    return isinstance(value, Kernel)
