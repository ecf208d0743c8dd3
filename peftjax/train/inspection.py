"""How much of its rank adapters use, and what they leave of the base's directions, as one table.

    | adapter | kernel | layers | rank | effective | stable | change / weight | intruders | same spectrum | random |

rank, effective and stable ranks are of ΔW (`peftjax.peft.spectrum`), change / weight is ‖ΔW‖ / ‖W‖ in the Frobenius norm, and intruders
count those of the tuned weight's strongest directions that the base has nowhere, beside two controls: a change of the same singular values
in random directions, and random directions alone (`peftjax.peft.intruders`). All are means over the layers of a kernel.
"""

import collections
from collections.abc import Mapping
from typing import Any

import numpy as np

from peftjax.nn.tree import numbered
from peftjax.peft.changes import changes
from peftjax.peft.intruders import find_intruders
from peftjax.peft.select import module_of
from peftjax.peft.spectrum import effective_rank, spectra, stable_rank
from peftjax.train.adapters import Ready
from peftjax.train.lapack import one_thread

RANKS = ("rank", "effective", "stable", "change / weight")
INTRUDERS = ("intruders", "same spectrum", "random")


def inspect(params: Any, name: str, *, intruders: bool = False, top: int = 10, threshold: float = 0.5) -> dict[str, dict[str, float]]:
    """Numbers of one adapter at each kernel, `blocks/attn/q`: its number of layers, and the means that the module's table has.

    Args:
        intruders: count them, which takes three dense spectra a weight; top, threshold: as of `find_intruders`.

    Raises:
        ValueError, TypeError: no such adapter, or one that changes no weights.
    """
    with one_thread(params):
        found, changed = spectra(params, name), changes(params, name)
        strange = find_intruders(params, name, top=top, threshold=threshold) if intruders else {}
    rows: dict[str, list[tuple[float, ...]]] = collections.defaultdict(list)
    for key, values in found.items():
        size = float(np.linalg.norm(changed[key].weight()))
        row = (len(values), effective_rank(values), stable_rank(values), float(np.linalg.norm(values)) / size if size else np.nan)
        rows[numbered(module_of(key))[0]].append(row + (strange[key].counts if intruders else ()))
    columns = (*RANKS, *(INTRUDERS if intruders else ()))
    return {
        kernel: {"layers": len(each)} | dict(zip(columns, map(float, np.mean(each, axis=0)), strict=True)) for kernel, each in rows.items()
    }


def as_table(found: Mapping[str, Ready], **options: Any) -> str:
    """The module's table of adapters by name, each the only one of its tree; `options` as of `inspect`."""
    lines = []
    for name, one in found.items():
        for kernel, numbers in inspect(one.params, one.names()[0], **options).items():
            shown = [f"{numbers['layers']:.0f}", *(f"{numbers[column]:.3g}" for column in (*RANKS, *INTRUDERS) if column in numbers)]
            lines.append((name, kernel, *shown))
    columns = ("layers", *RANKS, *(INTRUDERS if options.get("intruders") else ()))
    head = [("adapter", "kernel", *columns), ("---", "---", *["--:"] * len(columns))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (*head, *lines))
