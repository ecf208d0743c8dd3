"""The identity of a base: one sha256 over its parameters, so that an adapter can refuse a base it was not made for.

    sha256 of the lines "<path> <shape> <dtype> <sha256 of the bytes>", sorted by path

It depends on values, shapes, dtypes and paths, and on nothing else: not on the file format, the device or the sharding.
"""

import concurrent.futures
import hashlib
from typing import Any

import jax
import numpy as np

from peftjax.nn.tree import flatten


def fingerprint(params: Any, threads: int = 2) -> str:
    """sha256 (hex) of a tree of arrays. Leaves are hashed side by side, as hashlib runs outside the interpreter's lock.

    Raises:
        ValueError: a leaf that this process does not hold completely.
    """
    leaves = flatten(params)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        lines = list(pool.map(_line, leaves, leaves.values()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _line(path: str, leaf: Any) -> str:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        raise ValueError(f"{path} is spread over processes; take the fingerprint before sharding")
    array = np.ascontiguousarray(leaf)
    digest = hashlib.sha256(array.reshape(-1).view(np.uint8)).hexdigest()
    return f"{path} {','.join(map(str, np.shape(leaf)))} {array.dtype.name} {digest}\n"
