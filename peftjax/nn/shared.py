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

from peftjax.nn.kernels import Entry, node
from peftjax.nn.tree import get, put

STORE = "shared"


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Shared:
    """In a field of a node: the value is that at `path` below `shared` in the tree."""

    path: str


@node(arrays=("value",), static=("name", "trains"))
@dataclasses.dataclass(frozen=True)
class SharedValue(Entry):
    """A value in the store. value: an array of any shape, without a layer axis; name: of the adapter; trains: whether it is trained."""

    value: Any
    name: str
    trains: bool = False

    matrices = ("value",)

    @property
    def trainable(self):
        return ("value",) if self.trains else ()


def hold(params: dict, path: str, value: Any, name: str, trains: bool = False) -> tuple[dict, Shared]:
    """(a new tree that holds `value` at `path` below the store, what stands for it in a node)."""
    return put(params, f"{STORE}/{path}", SharedValue(value, name, trains)), Shared(path)


def fill(tree: Any, store: dict) -> Any:
    """The tree with the values of `store`, a tree's `shared`, in the place of each `Shared`.

    Raises:
        KeyError: the store holds nothing at that path.
    """

    def value(leaf):
        if not isinstance(leaf, Shared):
            return leaf
        held = get(store, leaf.path)
        if held is None:
            raise KeyError(f"{STORE}/{leaf.path} is shared by layers of this tree, which does not hold it")
        return held.value

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
