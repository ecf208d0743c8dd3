"""Values that all layers of a stack share: held once in the tree, and handed to each layer as they are.

    before  blocks/attn/q/kernel = VeRA(base=[L, in, out], a=[L, R, in], ...)              L copies
    after   blocks/attn/q/kernel = VeRA(base=[L, in, out], a=Shared("vera/a"), ...)        no leaf
            shared/vera/a        = SharedValue(value=[R, in])                              one

A stack of layers is scanned over leaves with a layer axis; what is shared has none. It reaches the body as a constant of the loop, which is
never copied, and whose gradients the loop adds up (`peftjax.models.stack`).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.nn.kernels import Entry, node
from peftjax.nn.tree import get, put

STORE = "shared"


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Shared:
    """In a field of a node: the value is that at `path` below `shared` in the tree. spread: the node knows nothing of sharing, and outside
    the scanned body wants a value for each layer."""

    path: str
    spread: bool = False


@node(arrays=("value",), static=("name", "trains", "role"))
@dataclasses.dataclass(frozen=True)
class SharedValue(Entry):
    """A value in the store. value: an array of any shape, without a layer axis; name: of the adapter; trains: whether it is trained; role:
    of the optimiser's (`peftjax.peft.roles`)."""

    value: Any
    name: str
    trains: bool = False
    role: str = "matrix"

    @property
    def matrices(self):
        return ("value",) if self.role == "matrix" else ()

    @property
    def fast(self):
        return ("value",) if self.role == "fast" else ()

    @property
    def trainable(self):
        return ("value",) if self.trains else ()


def hold(
    params: dict, path: str, value: Any, name: str, trains: bool = False, role: str = "matrix", spread: bool = False
) -> tuple[dict, Shared]:
    """(a new tree that holds `value` at `path` below the store, what stands for it in a node).

    Raises:
        ValueError: something is held there already.
    """
    if get(params, f"{STORE}/{path}") is not None:
        raise ValueError(f"{STORE}/{path} is taken; give one of the two adapters another name")
    return put(params, f"{STORE}/{path}", SharedValue(value, name, trains, role)), Shared(path, spread)


def fill(tree: Any, store: dict, layers: int | None = None) -> Any:
    """The tree with the values of `store`, a tree's `shared`, in the place of each `Shared`. layers: of the nodes in it, outside the
    scanned body.

    Raises:
        KeyError: the store holds nothing at that path.
    """

    def value(leaf):
        if not isinstance(leaf, Shared):
            return leaf
        held = get(store, leaf.path)
        if held is None:
            raise KeyError(f"{STORE}/{leaf.path} is shared by layers of this tree, which does not hold it")
        return jnp.broadcast_to(held.value, (layers, *held.value.shape)) if leaf.spread and layers is not None else held.value

    return jax.tree.map(value, tree, is_leaf=is_shared)


def is_shared(value: Any) -> bool:
    """True for what stands for a shared value."""
    return isinstance(value, Shared)


def unshared(params: dict) -> dict:
    """The tree without a store: its nodes hold the values themselves, still without a layer axis."""
    if STORE not in params:
        return params
    rest = {name: value for name, value in params.items() if name != STORE}
    return fill(rest, params[STORE])
