"""PC11, exact part: what a quantised weight loses, and how much of it a LoRA of a rank can start with.

    W - Q                    quantised alone                            relative Frobenius norm over all kernels
    W - (Q + s AᵀB)          LoftQ (2310.08659, 2023): AᵀB nearest to W - Q; the base stays Q
    W - (Q' + s AᵀB)         QPiSSA (2404.02948, 2024): AᵀB nearest to W, and Q' is the rest, quantised

both in one round, and the packed bytes of NF4 with double quantisation (QLoRA, 2305.14314, 2023): 4 bits and .127 bits of constants a
weight.
"""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from peftjax.interop.base import Base, load_base
from peftjax.nn.kernels import dense
from peftjax.nn.quant import Quantised, Scheme, quantise
from peftjax.nn.tree import get, put, walk
from peftjax.peft import attach, loftq, lora, qpissa
from peftjax.peft.select import select
from peftjax.study.checks.finding import FAILS, HOLDS, Claim, Finding, Plot, Table, within

BITS = 4.127  # of NF4 with double quantisation, block 64
SCHEMES = {"NF4": Scheme("nf4"), "NF4, block 32": Scheme("nf4", block=32), "int4 symmetric, block 64": Scheme("affine4", 64, True),
           "int4 affine, block 32": Scheme("affine4", 32)}


def default_config() -> ConfigDict:
    """All fields: names of `bases` and their URIs, targets of the LoRAs, their rank, and names of SCHEMES."""
    return ConfigDict({"check": "pc11", "bases": {}, "targets": ("all-linear",), "rank": 16, "schemes": tuple(SCHEMES)})


def pieces(config: ConfigDict, folder: Path, say: Callable[[str], None]) -> dict[str, Callable[[], dict]]:
    """One piece a base and scheme."""
    load = functools.cache(lambda uri: load_base(uri))
    return {
        f"{base}/{scheme}": functools.partial(_of_scheme, load, uri, config.targets, config.rank, SCHEMES[scheme])
        for base, uri in config.bases.items() for scheme in config.schemes
    }


def _of_scheme(load: Callable[[str], Base], uri: str, targets: Any, rank: int, scheme: Scheme) -> dict[str, Any]:
    base = load(uri)
    paths = [target.path for target in select(base.params, targets)]
    params = base.params
    for path in paths:
        params = put(params, path, quantise(get(base.params, path), scheme))
    weights = sum(get(base.params, path).size for path in paths)
    held = sum(leaf.nbytes for path, value in walk(params) if isinstance(value, Quantised) for leaf in jax.tree.leaves(value))
    attached = attach(params, [lora(rank=rank, targets=targets)], jax.random.key(0))
    return {
        "bits": 8 * held / weights, "kernels": len(paths), "rank": rank,
        "quantised": _error(params, base.params, paths), "LoftQ": _error(loftq(attached, base.params, rounds=1), base.params, paths),
        "QPiSSA": _error(qpissa(attached, base.params, rounds=1), base.params, paths),
    }


def _error(params: dict, dense_params: dict, paths: list[str]) -> float:
    """Relative Frobenius norm of the difference, over all kernels at these paths."""
    left = sum(float(jnp.sum(jnp.square(dense(get(params, path)) - get(dense_params, path)))) for path in paths)
    return math.sqrt(left / sum(float(jnp.sum(jnp.square(get(dense_params, path)))) for path in paths))


def judge(measured: dict[str, dict]) -> Finding:
    """The verdicts from the pieces' data."""
    claims = []
    for name, piece in measured.items():
        if name.endswith("/NF4"):
            claims.append(Claim(f"bits of a packed weight, {name}", f"{BITS} within 1 %", f"{piece['bits']:.3f}",
                                within(piece["bits"], 0.99 * BITS, 1.01 * BITS)))
    for start in ("LoftQ", "QPiSSA"):
        lossy = {name: piece for name, piece in measured.items() if piece["quantised"] > 1e-3}  # others have nothing to make up for
        gains = {name: 1 - piece[start] / piece["quantised"] for name, piece in lossy.items()}
        least = min(gains, key=lambda name: gains[name])
        claims.append(Claim(f"{start} starts nearer to W than the quantised weight", "in every pair of base and scheme",
                            f"{sum(gain > 0 for gain in gains.values())} of {len(gains)}; error less by {100 * min(gains.values()):.1f} to "
                            f"{100 * max(gains.values()):.1f} % (least: {least})", HOLDS if gains[least] > 0 else FAILS))
    own = {name: piece["quantised"] for name, piece in measured.items() if piece["quantised"] <= 1e-3}
    rows = [(name, f"{p['bits']:.3f}", f"{p['quantised']:.4f}", f"{p['LoftQ']:.4f}", f"{p['QPiSSA']:.4f}") for name, p in measured.items()]
    rank, number = next(iter(measured.values()))["rank"], range(1, len(measured) + 1)
    return Finding(
        f"Rank {rank}." + (f" Lossless on its own grid, as that base was stored in 4 bits: {', '.join(own)}." if own else ""),
        tuple(claims),
        (Table("Relative error of the weights", ("base and scheme", "bits", "quantised", "with LoftQ", "with QPiSSA"), rows),),
        Plot("What is lost of a weight", "pair of base and scheme, in the table's order", "relative Frobenius norm", {
            what: (list(number), [p[what] for p in measured.values()]) for what in ("quantised", "LoftQ", "QPiSSA")
        }, joined=False),
    )
