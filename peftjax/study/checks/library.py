"""A library of adapters: trained, each on its rows, written as directories, and beside each a copy with the same numbers in random places.

    adapters/seed-0/language-de/           as trained
    adapters/seed-0/random/language-de/    each tensor of each layer shuffled: the same norms, the same values, nothing of what was learnt
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from peftjax.files import replacing_folder
from peftjax.interop.base import Base
from peftjax.interop.exchange.adapter import Adapter, Piece, extract
from peftjax.interop.exchange.native import write_native
from peftjax.study.checks import pairs
from peftjax.study.checks.trials import do
from peftjax.train.adapters import of_run


def train_library(config: ConfigDict, seeds: Sequence[int], folder: Path, base: Base, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Trains and writes what is left of the libraries of these seeds; for each adapter its name, seed, validation loss and size.

    Raises:
        ValueError: an adapter whose training diverged.
    """
    wanted = [(name, seed) for seed in seeds for name in pairs.library(config)]
    runs = [folder / "library" / f"{name}-seed{seed}" for name, seed in wanted]
    do([pairs.library_config(config, name, seed) for name, seed in wanted], runs, say)
    rows = []
    for (name, seed), run in zip(wanted, runs, strict=True):
        if not (run / "result.json").exists():
            raise ValueError(f"{run} has no result: its training diverged; lower config.library.rate, which is {config.library.rate}")
        to = adapters(folder, seed)
        ready = of_run(run)
        adapter = extract(ready.params, ready.methods, base=base.fingerprint, tokenizer=base.tokenizer.fingerprint, lineage=ready.lineage)
        for place, one in ((to / name, adapter), (to / "random" / name, scrambled(adapter, seed))):
            if not place.exists():
                with replacing_folder(place) as partial:
                    write_native(partial, one, base)
        rows.append({"name": name, "seed": seed, "size": sum(array.size for piece in adapter.pieces.values()
                                                             for array in piece.arrays.values())})
    return rows


def adapters(folder: Path, seed: int) -> Path:
    """Where the library of a seed lies."""
    return folder / "adapters" / f"seed-{seed}"


def scrambled(adapter: Adapter, seed: int) -> Adapter:
    """The adapter with the values of each tensor of each layer in random places."""
    rng = np.random.default_rng(seed)
    pieces = {}
    for path, piece in sorted(adapter.pieces.items()):
        arrays = {field: rng.permutation(array.ravel()).reshape(array.shape) for field, array in sorted(piece.arrays.items())}
        pieces[path] = Piece(piece.kind, arrays)
    return dataclasses.replace(adapter, pieces=pieces, lineage={"scrambled": dict(adapter.lineage)})
