"""Where entries are put: a place at a site for each stack of layers (`peftjax.nn.sites`).

    before  blocks/mlp_out = (absent: identity)
    after   blocks/mlp_out = {"default": <entry>}
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from peftjax.nn.sites import WIDTH_FROM
from peftjax.nn.tree import get, put
from peftjax.peft.keys import Draw
from peftjax.peft.select import on_layers, parameters


def hang(
    params: dict, key: jax.Array, sites: Sequence[str], layers: Sequence[int] | None, name: str, make: Callable[[int, Draw], Any]
) -> dict:
    """A new tree with the entry `make(width, draw)` at every one of `sites`, under the adapter's name.

    Raises:
        ValueError: a site that this base has not, a layer that does not exist, a name that is taken.
    """
    for site in sites:
        beside = [t for t in parameters(params, (WIDTH_FROM[site].rpartition("/")[2],)) if t.logical == WIDTH_FROM[site]]
        if not beside:
            raise ValueError(f"this base has no site {site}: it has no {WIDTH_FROM[site]}")
        for target in on_layers(beside, layers):
            stack = target.path.partition("/")[0] if target.layers else ""
            path = f"{stack}/{site}/{name}" if stack else f"{site}/{name}"
            if get(params, path) is not None:
                raise ValueError(f"{path} is taken; give one of the two adapters another name")
            draw = Draw(key, f"blocks/{site}/{name}" if stack else f"{site}/{name}", target.layers)
            params = put(params, path, make(target.value.shape[-1], draw))
    return params
