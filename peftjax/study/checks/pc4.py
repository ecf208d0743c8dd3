"""PC4: rsLoRA's law of scales (2312.03732, 2023): with s = alpha / r gradients of B shrink with the rank, with alpha / sqrt(r) they do not.

At init B = 0 and the entries of A are independent, so that ||A x|| grows as sqrt(r), and

    ||dl/dB|| = s ||A x|| ||dl/dy||   ~   r^-1/2 for s = alpha / r,   r^0 for s = alpha / sqrt(r)

After one Adam step each entry of B has the learning rate's size, and what the model adds, ||s B A x||, grows as s r^p with p between 1/2
(updates that have nothing to do with A x) and 1 (updates along A x): exponents in [-1/2, 0], [0, 1/2] and, for a constant s, [1/2, 1].
"""

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict
from scipy import stats

from peftjax.data.sources import load_records
from peftjax.interop.base import Base, load_base
from peftjax.models.decoder import Decoder
from peftjax.nn.tree import flatten
from peftjax.peft import attach, combine, lora, partition
from peftjax.study.checks.finding import Claim, Finding, Plot, Table, within
from peftjax.train.inputs import pick

# s of a rank, at equal values for the middle rank 16.
SCALES = {"alpha/r": lambda rank: 16 / rank, "alpha/sqrt(r)": lambda rank: 4 / math.sqrt(rank), "constant": lambda rank: 1.0}
GRADIENT = {"alpha/r": -0.5, "alpha/sqrt(r)": 0.0}  # predicted exponents of the gradient, within 0.1
STEP = {"alpha/r": (-0.5, 0.0), "alpha/sqrt(r)": (0.0, 0.5), "constant": (0.5, 1.0)}
RATE = 1e-4  # of the one Adam step: small, so that what it adds is linear in it


def default_config() -> ConfigDict:
    """All fields: the base, ranks, seeds of A, and the text that gradients are of: rows of some tokens."""
    return ConfigDict({"check": "pc4", "base": "", "ranks": (1, 2, 4, 8, 16, 32, 64), "seeds": (0, 1, 2), "rows": 16, "length": 64})


def pieces(config: ConfigDict, folder: Path, say: Callable[[str], None]) -> dict[str, Callable[[], dict]]:
    """One piece a rank, for all scales and seeds: the scale is a factor of the compiled program's input."""
    load = functools.cache(lambda: load_base(config.base))
    return {f"rank {rank}": functools.partial(_of_rank, config, load, rank) for rank in config.ranks}


def _of_rank(config: ConfigDict, load: Callable[[], Base], rank: int) -> dict[str, Any]:
    base = load()
    model, ids = Decoder(base.config), _text(base, config.rows, config.length + 1)

    def hidden(trainable, frozen):
        return model.apply({"params": combine(trainable, frozen)}, ids[:, :-1], method="hidden")[0]

    def loss(trainable, frozen):
        logits = model.apply({"params": combine(trainable, frozen)}, ids[:, :-1])
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:]))

    @jax.jit
    def measure(trainable, frozen):
        grads = jax.grad(loss)(trainable, frozen)
        updates, _ = (adam := optax.adam(RATE, eps=1e-12)).update(grads, adam.init(trainable))
        added = hidden(optax.apply_updates(trainable, updates), frozen) - hidden(trainable, frozen)
        of_b = [leaf for path, leaf in flatten(grads).items() if path.endswith("/b")]
        return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in of_b)), jnp.sqrt(jnp.mean(jnp.square(added)))

    found: dict[str, dict[str, list[float]]] = {}
    for name, scale in SCALES.items():
        values = [
            measure(*partition(attach(base.params, [lora(rank=rank, alpha=scale(rank) * rank)], jax.random.key(seed))))
            for seed in config.seeds
        ]
        found[name] = {"gradient": [float(g) for g, _ in values], "added": [float(a) for _, a in values]}
    return {"rank": rank, "base": base.uri, "scales": found}


def _text(base: Base, rows: int, length: int) -> jax.Array:
    """int32 [rows, length] of general text."""
    records, _ = load_records("general")
    ids = [found[:length] for record in pick(records, 0) if len(found := base.tokenizer.encode(record.response)) >= length]
    return jnp.asarray(ids[:rows], jnp.int32)


def slope(ranks: Sequence[float], values: Sequence[Sequence[float]]) -> tuple[float, float]:
    """(exponent, half of its 95 % interval over the seeds) of values [ranks][seeds]: one fit of log value on log rank for each seed."""
    x = np.log(np.asarray(ranks, float))
    each = np.polyfit(x, np.log(np.asarray(values, float)), 1)[0]  # [seeds]
    half = float(stats.t.ppf(0.975, len(each) - 1) * each.std(ddof=1) / math.sqrt(len(each))) if len(each) > 1 else math.nan
    return float(each.mean()), half


def judge(measured: dict[str, dict]) -> Finding:
    """The verdicts from the pieces' data."""
    of_rank = sorted(measured.values(), key=lambda piece: piece["rank"])
    ranks = [piece["rank"] for piece in of_rank]
    claims, rows, series = [], [], {}
    for name in SCALES:
        lines = {what: [piece["scales"][name][what] for piece in of_rank] for what in ("gradient", "added")}
        (gradient, g_half), (added, a_half) = slope(ranks, lines["gradient"]), slope(ranks, lines["added"])
        if name in GRADIENT:
            wanted = GRADIENT[name]
            claims.append(Claim(f"norm of dl/dB at init, s = {name}", f"exponent {wanted:g} within 0.1", f"{gradient:+.3f} +- {g_half:.3f}",
                                within(gradient, wanted - 0.1, wanted + 0.1)))
        low, high = STEP[name]
        claims.append(Claim(f"what one Adam step adds to the hidden states, s = {name}", f"exponent in [{low:g}, {high:g}]",
                            f"{added:+.3f} +- {a_half:.3f}", within(added, low, high)))
        rows += [(name, rank, f"{np.mean(g):.3e}", f"{np.mean(a):.3e}") for rank, g, a in zip(ranks, *lines.values(), strict=True)]
        series[f"gradient, {name}"] = (ranks, [float(np.mean(g) / np.mean(lines["gradient"][0])) for g in lines["gradient"]])
        series[f"added, {name}"] = (ranks, [float(np.mean(a) / np.mean(lines["added"][0])) for a in lines["added"]])
    seeds = len(next(iter(of_rank[0]["scales"].values()))["gradient"])
    return Finding(
        f"Base {of_rank[0]['base']}, LoRA on all linear layers, ranks {ranks[0]} to {ranks[-1]}, {seeds} seeds of A, general text.",
        tuple(claims), (Table("Means over seeds", ("scale", "rank", "gradient of B", "added by one step"), rows),),
        Plot("Size against rank, over that of the lowest rank", "rank", "ratio", series, log_x=True, log_y=True),
    )
