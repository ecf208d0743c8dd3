"""A quantised base and the LoRA that makes up for it, made together before any run: LoftQ and QPiSSA in several rounds.

    to/             the base, held as the last round quantised it (`peftjax.interop.held`)
    to/adapter/     the LoRA, in our own form, for that base and no other

    python scripts/train.py --config configs/train_on.py --config.base.uri=to --config.adapter.path=to/adapter ...
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.files import replacing_folder
from peftjax.hints import did_you_mean
from peftjax.interop.base import Base
from peftjax.interop.exchange.adapter import extract
from peftjax.interop.exchange.native import write_native
from peftjax.interop.fingerprint import fingerprint
from peftjax.interop.held import FILE, is_held, write_held
from peftjax.interop.json_file import read_json
from peftjax.nn.kernels import dense
from peftjax.nn.quant import Quantised
from peftjax.nn.tree import get, walk
from peftjax.peft.attach import attach, detach
from peftjax.peft.initialise import loftq, qpissa, require_loss
from peftjax.peft.inits import parse
from peftjax.peft.lora import lora
from peftjax.train.lapack import one_thread

STARTS = {"loftq": loftq, "qpissa": qpissa}
ADAPTER = "adapter"


def write_start(
    to: str | Path, base: Base, whole: Base, method: lora, start: str = "loftq", rounds: int = 5
) -> dict[str, tuple[float, float]]:
    """Writes both folders, whole or not at all.

    Args:
        base: quantised.
        whole: the same, dense.
        method: an ordinary LoRA; those of its targets that are quantised get the start.
        start: one of STARTS.
        rounds: as of `peftjax.peft.initialise.loftq`.

    Returns:
        By path of a quantised target, ‖W - Q‖ / ‖W‖ as the base was held, and ‖W - Q - s aᵀb‖ / ‖W‖ as written.

    Raises:
        ValueError: a start that is none, no quantised target, or weights that are held without loss.
        FileExistsError: something else than such a base stands at `to`.
    """
    if start not in STARTS:
        raise ValueError(f"no start is called {start!r}{did_you_mean(start, STARTS)}; there are {', '.join(STARTS)}")
    to = Path(to)
    if to.exists() and not (is_held(to) or (to.is_dir() and not any(to.iterdir()))):
        raise FileExistsError(f"{to} exists and is no base of peftjax; name another folder, or move it away")
    params = attach(base.params, [method], jax.random.key(0))
    if start == "loftq":
        require_loss(params, whole.params, method.name)
    with one_thread(base.params):
        params = jax.block_until_ready(STARTS[start](params, whole.params, method.name, rounds))
    lost = {
        path: (_lost(value, get(whole.params, path)), _lost(get(params, path), get(whole.params, path)))
        for path, value in walk(base.params) if isinstance(value, Quantised) and get(params, path) is not value
    }
    made = detach(params)
    held = dataclasses.replace(base, uri=str(to), params=made, fingerprint=fingerprint(made))
    adapter = extract(params, [method], method.name, base=held.fingerprint, tokenizer=base.tokenizer.fingerprint,
                      lineage={"start": start, "rounds": rounds, "base": base.uri})
    with replacing_folder(to) as partial:
        write_held(partial, base.config, made, base.tokenizer, dtype=base.dtype, quantise=base.quantise,
                   origin={"base": base.uri, "start": start, "rounds": rounds})
        write_native(partial / ADAPTER, adapter, held)
    return lost


def start_of(methods: Sequence[Any], lineage: Mapping[str, Any], base: Base) -> str | None:
    """The start, one of STARTS, that ties an adapter to quantised weights: its own init, or that with which the adapter or the base it was
    trained on was written; None for any other adapter."""
    for method in methods:
        start = parse(method.init) if isinstance(method, lora) else None
        if start is not None and start.kind in STARTS:
            return start.kind
    asked = lineage.get("start")
    return asked if isinstance(asked, str) and asked in STARTS else written_with(base)


def written_with(base: Base) -> str | None:
    """The start, one of STARTS, together with whose LoRA a base was written: what QPiSSA leaves is no model without it."""
    asked = read_json(Path(base.uri) / FILE)["origin"].get("start") if is_held(Path(base.uri)) else None
    return asked if isinstance(asked, str) and asked in STARTS else None


@jax.jit
def _norms(kernel, weight):
    """(‖W - kernel‖, ‖W‖), squared."""
    return jnp.sum(jnp.square(weight - dense(kernel))), jnp.sum(jnp.square(weight))


def _lost(kernel, weight) -> float:
    one, whole = _norms(kernel, weight)
    return float(one / whole) ** 0.5
