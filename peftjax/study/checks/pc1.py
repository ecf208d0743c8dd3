"""PC1: merging is exact, and what is switched off leaves the base bit for bit (LoRA, 2106.09685; DoRA, 2402.09353; PiSSA, 2404.02948).

For each base and each method: attached as it starts, then with every trainable moved by noise, as if it were trained; logits beside the
base, merged, and detached again; greedy texts of both forms. The noise is halved until the adapter moves no logit by more than `effect`:
rounding grows with what the layers carry, so the bound is for an adapter of a stated size. Control: both forms once more with numbers and
sums in float64, where a difference that is rounding of float32 vanishes.
"""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from peftjax.data.sources import load_records
from peftjax.interop.base import Base, load_base
from peftjax.interop.fingerprint import fingerprint
from peftjax.models.decoder import Decoder
from peftjax.models.generate import generate_ids
from peftjax.nn.tree import flatten, unflatten_like
from peftjax.peft import attach, combine, detach, merge, partition
from peftjax.peft.spec import from_data
from peftjax.study.checks.finding import FAILS, HOLDS, Claim, Finding, Plot, Table
from peftjax.train.inputs import pick

LOGITS = 1e-4  # what merged and unmerged logits may differ by, in float32
EXACT = 1e-10  # and in float64
ROWS = 8  # prompts of a forward pass


def default_config() -> ConfigDict:
    """All fields: names of `bases` and their URIs, `methods` by name as data, those that must `refuse` to merge, the `noise` of the moved
    state and what it may move a logit by (`effect`), and how many `prompts` of how many tokens are read, of which the first `wide` (at most
    ROWS) in float64 too, and go on for `max_new` tokens."""
    return ConfigDict({
        "check": "pc1", "bases": {}, "methods": {}, "refuse": {}, "noise": 0.02, "effect": 1.0, "wide": 8,
        "prompts": 64, "length": 16, "max_new": 8,
    })


def pieces(config: ConfigDict, folder: Path, say: Callable[[str], None]) -> dict[str, Callable[[], dict]]:
    """One piece a base and method."""
    load = functools.cache(lambda uri: load_base(uri))
    found: dict[str, Callable[[], dict]] = {}
    for base, uri in config.bases.items():
        for name, method in config.methods.items():
            found[f"{base}/{name}"] = functools.partial(_of_method, config, load, uri, from_data(method.to_dict()))
        for name, method in config.refuse.items():
            found[f"{base}/{name}, refused"] = functools.partial(_refused, load, uri, from_data(method.to_dict()))
    return found


def moved(params: dict, noise: float, key: jax.Array) -> dict:
    """The tree with normal noise of this deviation on every trainable value."""
    trainable, frozen = partition(params)
    flat = flatten(trainable)
    keys = jax.random.split(key, len(flat))
    flat = {path: leaf + noise * jax.random.normal(k, leaf.shape, leaf.dtype) for (path, leaf), k in zip(flat.items(), keys, strict=True)}
    return combine(unflatten_like(trainable, flat), frozen)


def _of_method(config: ConfigDict, load: Callable[[str], Base], uri: str, method: Any) -> dict[str, Any]:
    base = load(uri)
    model, prompts = Decoder(base.config), _prompts(base, config.prompts, config.length)
    forward = jax.jit(lambda params, ids: model.apply({"params": params}, ids))
    logits = lambda params: [np.asarray(forward(params, prompts[i:i + ROWS])) for i in range(0, len(prompts), ROWS)]  # noqa: E731
    plain = logits(base.params)
    started = attach(base.params, [method], jax.random.key(0))
    at_start = _largest(plain, logits(started))
    noise = config.noise
    while _largest(plain, beside := logits(changed := moved(started, noise, jax.random.key(1)))) > config.effect:
        noise /= 2
    whole = merge(changed)
    folded = logits(whole)
    off = logits(detach(changed))
    texts = [generate_ids(model, params, prompts.tolist(), base.tokenizer.eos_id, max_new=config.max_new, batch_size=len(prompts),
                          vocab=base.tokenizer.vocab_size) for params in (changed, whole)]
    return {
        "start": at_start, "noise": noise, "effect": _largest(plain, beside), "merged": _largest(beside, folded),
        "same texts": sum(a == b for a, b in zip(*texts, strict=True)), "texts": len(prompts),
        "detached": _largest(plain, off), "restored": fingerprint(base.params) == base.fingerprint,
        **in_float64(base, changed, prompts[:min(config.wide, ROWS)], beside[0]),
    }


def in_float64(base: Base, changed: dict, prompts: np.ndarray, narrow: np.ndarray) -> dict[str, float]:
    """{"merged in float64": largest difference of merged and unmerged logits, "rounding": of the unmerged ones from `narrow`, which are the
    same in float32}."""
    with jax.enable_x64(True):
        tree = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, changed)
        model = Decoder(base.config, dtype=jnp.float64)
        forward = jax.jit(lambda params, ids: model.apply({"params": params}, ids))
        beside = np.asarray(forward(tree, prompts))
        folded = np.asarray(forward(merge(tree), prompts))
    return {"merged in float64": _largest([beside], [folded]), "rounding": _largest([beside], [narrow[:len(prompts)]])}


def _refused(load: Callable[[str], Base], uri: str, method: Any) -> dict[str, Any]:
    try:
        merge(attach(load(uri).params, [method], jax.random.key(0)))
    except TypeError as error:
        return {"refused": str(error)}
    return {"refused": None}


def _prompts(base: Base, count: int, length: int) -> np.ndarray:
    """int32 [count, length], the beginnings of texts that are long enough."""
    records, _ = load_records("general")
    rows = [ids[:length] for record in pick(records, 0) if len(ids := base.tokenizer.encode(record.response)) >= length]
    return np.asarray(rows[:count], np.int32)


def _largest(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    """The largest difference; infinity where one is not a number."""
    found = max(float(np.max(np.abs(x - y))) for x, y in zip(a, b, strict=True))
    return found if math.isfinite(found) else math.inf


def judge(measured: dict[str, dict]) -> Finding:
    """The verdicts from the pieces' data."""
    merged = {name: piece for name, piece in measured.items() if "merged" in piece}
    refused = {name: piece["refused"] for name, piece in measured.items() if "refused" in piece}
    claims = []
    worst = max(merged, key=lambda name: merged[name]["merged"])
    claims.append(_claim("merged = unmerged logits, float32", f"max |difference| <= {LOGITS:g}",
                         f"{merged[worst]['merged']:.1e} at most ({worst})", merged[worst]["merged"] <= LOGITS))
    wide = max(merged, key=lambda name: merged[name]["merged in float64"])
    claims.append(_claim("control: merged = unmerged logits, float64", f"max |difference| <= {EXACT:g}",
                         f"{merged[wide]['merged in float64']:.1e} at most ({wide})", merged[wide]["merged in float64"] <= EXACT))
    other = {name: piece for name, piece in merged.items() if piece["same texts"] < piece["texts"]}
    texts = sum(piece["texts"] for piece in merged.values())
    claims.append(_claim("greedy texts are the same", "all", f"{sum(p['same texts'] for p in merged.values())} of {texts}"
                         + (f"; others in {', '.join(other)}" if other else ""), not other))
    start = max(merged, key=lambda name: merged[name]["start"])
    claims.append(_claim("a method that starts as the base starts as it", f"max |difference| <= {LOGITS:g}",
                         f"{merged[start]['start']:.1e} at most ({start}); exactly 0 in "
                         f"{sum(p['start'] == 0 for p in merged.values())} of {len(merged)}", merged[start]["start"] <= LOGITS))
    claims.append(_claim("detached = base, bit for bit", "0", f"{max(p['detached'] for p in merged.values()):g}",
                         all(p["detached"] == 0 for p in merged.values())))
    claims.append(_claim("the base that was merged into is still there, bit for bit", "same fingerprint",
                         f"{sum(p['restored'] for p in merged.values())} of {len(merged)}", all(p["restored"] for p in merged.values())))
    if refused:
        said = f"{sum(map(bool, refused.values()))} of {len(refused)}"
        claims.append(_claim("control: what has no dense form refuses to merge", "all", said, all(refused.values())))
    rows = [(name, f"{p['noise']:g}", f"{p['effect']:.2f}", f"{p['start']:.1e}", f"{p['merged']:.1e}", f"{p['merged in float64']:.1e}",
             f"{p['rounding']:.1e}", f"{p['same texts']}/{p['texts']}") for name, p in merged.items()]
    number = range(1, len(merged) + 1)
    return Finding(
        f"{len(merged)} pairs of base and method, {next(iter(merged.values()))['texts']} prompts each, every trained value moved by noise.",
        tuple(claims),
        (Table("Largest differences of logits", (
            "base and method", "noise", "the adapter's effect", "at its start", "merged", "merged, float64", "float32 against float64",
            "texts",
        ), rows),),
        Plot("Merged against unmerged", "pair of base and method, in the table's order", "largest difference of a logit", {
            "what the adapter changes": (list(number), [p["effect"] for p in merged.values()]),
            "merged against unmerged": (list(number), [p["merged"] for p in merged.values()]),
            "bound": (list(number), [LOGITS] * len(merged)),
        }, log_y=True, joined=False),
    )


def _claim(what: str, predicted: str, measured: str, holds: bool) -> Claim:
    return Claim(what, predicted, measured, HOLDS if holds else FAILS)
