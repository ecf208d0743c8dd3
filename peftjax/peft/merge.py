"""Merging: adapters folded into the weights they stand beside. The input tree is never touched."""

from collections.abc import Iterable

import jax

from peftjax.nn.kernels import Entry, Kernel, Tied, dense
from peftjax.nn.tree import get, put, walk
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
        if isinstance(value, Kernel) and (names_in(value) or isinstance(value, Tied)):  # a head left alone by an adapted embedding
            try:
                params = put(params, path, value.merge())
            except TypeError as error:
                raise TypeError(f"{path}: {error}") from error
            params = _with_bias(params, f"{path.rpartition('/')[0]}/bias", value.merged_bias())
    return params


def _with_bias(params: dict, path: str, bias: jax.Array | None) -> dict:
    """The tree with `bias` added to what stands at `path`, or standing there itself."""
    if bias is None:
        return params
    there = get(params, path)
    return put(params, path, bias if there is None else (dense(there) + bias).astype(there.dtype))
