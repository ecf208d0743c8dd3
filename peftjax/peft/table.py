"""The start-up table: what is in the tree, and what of it is trained."""

from typing import Any

from peftjax.nn.kernels import Entry, Kernel
from peftjax.nn.quant import Quantised
from peftjax.nn.tree import flatten, walk
from peftjax.peft.composed import Composed, ComposedEntry
from peftjax.peft.partition import size

HEADINGS = ("path", "shape", "dtype", "node", "", "bytes")


def table(params: dict, trainable: dict) -> str:
    """One line a leaf (path, shape, dtype, node that holds it, trainable or frozen, bytes) and the totals."""
    trained = set(flatten(trainable))
    holders = {path: value for path, value in walk(params) if isinstance(value, Kernel | Entry)}
    rows = [HEADINGS]
    for path, leaf in flatten(params).items():
        node = next((_holder(value, path, at) for at, value in holders.items() if path == at or path.startswith(at + "/")), "")
        state = "trainable" if path in trained else "frozen"
        shape = "x".join(map(str, leaf.shape)) or "scalar"
        rows.append((path, shape, str(leaf.dtype), node, state, f"{leaf.size * leaf.dtype.itemsize:,}"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADINGS))]
    lines = [
        "  ".join(cell.rjust(w) if i == 5 else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], "-" * len(lines[0]), totals(params, trainable)])


def _holder(value: Kernel | Entry, path: str, at: str) -> str:
    """The name of the node at `at` that a leaf belongs to: the quantised weight under all adapters, or the outermost adapter."""
    if isinstance(value, Composed | ComposedEntry):
        rest = path.removeprefix(f"{at}/").split("/")
        value = value.parts[rest[0]] if len(rest) > 1 and rest[0] in value.parts else value
    weight = value
    while isinstance(getattr(weight, "base", None), Kernel):
        weight = weight.base
    owns = isinstance(weight, Quantised) and path in {f"{at}/{field}" for field in weight.array_fields}
    return type(weight if owns else value).__name__


def totals(params: dict, trainable: Any) -> str:
    """`4,884,480 of 139,400,000 parameters are trainable (3.50 %), 19.5 MB of 557.6 MB`."""
    count, size_bytes = size(trainable)
    everything, all_bytes = size(params)
    return (
        f"{count:,} of {everything:,} parameters are trainable ({100 * count / everything:.2f} %), "
        f"{size_bytes / 1e6:,.1f} MB of {all_bytes / 1e6:,.1f} MB"
    )
