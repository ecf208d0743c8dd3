"""Merging: adapters folded into the weights they stand beside. The input tree is never touched."""

from collections.abc import Iterable

from peftjax.nn.kernels import Entry, Kernel, Tied
from peftjax.nn.tree import put, walk
from peftjax.peft.attach import activate, adapters, names_in


def merge(params: dict, names: Iterable[str] | None = None, strict: bool = True) -> dict:
    """A new tree in which the named adapters (default: all) are part of dense weights, and no other adapter remains.

    Args:
        params: the tree; it stays as it is, so keeping it is how to unmerge.
        names: adapters to merge.
        strict: with False, entries at sites that cannot be merged stay beside the merged weights; with True they are an error.

    Raises:
        TypeError: something of the named adapters has no dense form, with its path.
    """
    params = activate(params, adapters(params) if names is None else names)
    stuck = [path for path, value in walk(params) if isinstance(value, Entry)]
    if stuck and strict:
        raise TypeError(
            f"{', '.join(stuck)}: a network at a site has no dense weight to be merged into; merge(strict=False) keeps it beside"
        )
    for path, value in list(walk(params)):
        if isinstance(value, Kernel) and not isinstance(value, Tied) and names_in(value):
            try:
                params = put(params, path, value.merge())
            except TypeError as error:
                raise TypeError(f"{path}: {error}") from error
    return params
