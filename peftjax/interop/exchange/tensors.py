"""The declarative part of an exchange: which of our arrays is which of their tensors, in which orientation.

    Tensor("b", "lora_B.weight", ("out", "R"), flip=True)

reads as: field `b` of our node, [R, out], is the transpose of their `<module>.lora_B.weight`, [out, R]. A table of such rows is read in
both directions, by the importer and by the exporter.

Where Hugging Face fuses modules that are separate here (q, k and v in one), an axis "out" of theirs is the parts of ours one behind
another.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from peftjax.interop.weights import Source


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One row of a table.

    Attributes:
        field: of our node.
        suffix: of their key, behind the module and a dot.
        axes: of theirs, as letters: R rank, in, out, outs (some numbers for each of out, in its order), V vocabulary, D width,
            M bottleneck, N tokens, 1; others are sizes that only have to agree.
        flip: ours has them in reverse.
        optional: need not be there.
        line: ours is this one of what their first axis counts, and has no such axis.
        order: ours has their axes (without those of 1) in this order, where that is not the same or the reverse.
    """

    field: str
    suffix: str
    axes: tuple[str, ...]
    flip: bool = False
    optional: bool = False
    line: int | None = None
    order: tuple[int, ...] | None = None

    @property
    def cut(self) -> int | None:
        """Their axis along which the parts of a fused module lie one behind another; None where they share all of it."""
        return next((number for number, axis in enumerate(self.axes) if axis in ("out", "outs")), None)

    def ours(self, array: np.ndarray, part: tuple[int, int] | None = None, whole: int | None = None) -> np.ndarray:
        """Their tensor as ours; of a fused module with `whole` outputs, our part of it."""
        if self.line is not None:
            array = array[self.line]
        if part is not None and self.cut is not None:
            size = array.shape[self.cut]
            start, stop = (end * size // (whole or size) for end in part)
            array = np.take(array, np.arange(start, stop), axis=self.cut)
        array = np.squeeze(array, tuple(number for number, axis in enumerate(self.axes) if axis == "1"))
        return np.asarray(np.transpose(array, self._order(array.ndim)), order="C")

    def theirs(self, array: np.ndarray) -> np.ndarray:
        """Our array as theirs; where `line` is given, that one line."""
        array = np.transpose(array, np.argsort(self._order(np.ndim(array))))
        return np.asarray(np.expand_dims(array, tuple(number for number, axis in enumerate(self.axes) if axis == "1")), order="C")

    def _order(self, axes: int) -> tuple[int, ...]:
        return self.order or (tuple(reversed(range(axes))) if self.flip else tuple(range(axes)))

    def shape(self, sizes: Mapping[str, int]) -> tuple[int | None, ...]:
        """The shape that theirs must have; None where `sizes` does not know an axis."""
        return tuple(1 if axis == "1" else sizes.get(axis) for axis in self.axes)


@dataclasses.dataclass(frozen=True)
class Field:
    """A config field of theirs and the field of our method that says the same.

    Attributes:
        default: of theirs, where the file is silent.
        names: their values against ours, where these are called differently.
    """

    theirs: str
    ours: str
    default: Any
    names: Mapping[str, str] | None = None

    def read(self, config: Mapping[str, Any]) -> Any:
        """Our value; None where theirs has no name here."""
        value = config.get(self.theirs)
        value = self.default if value is None else value
        return value if self.names is None else self.names.get(value)

    def write(self, value: Any) -> Any:
        """Their value; None where ours has no name there."""
        return value if self.names is None else next((theirs for theirs, ours in self.names.items() if ours == value), None)


def split_key(key: str, suffixes: Sequence[str]) -> tuple[str, str] | None:
    """(module, suffix) of a key that ends in one of the suffixes, the longest that fits; None where none does."""
    for suffix in sorted(suffixes, key=len, reverse=True):
        if key == suffix or key.endswith(f".{suffix}"):
            return key.removesuffix(suffix).removesuffix("."), suffix
    return None


def read_float32(name: str, source: Source, origin: str) -> tuple[np.ndarray, str]:
    """(values in float32, name of the stored dtype) of one tensor.

    Raises:
        ValueError: truncated, or of a type that is not supported.
    """
    array = read_array(name, source, origin)
    return array.astype(np.float32), array.dtype.name


def read_array(name: str, source: Source, origin: str) -> np.ndarray:
    """One tensor as it is stored. Errors as of `read_float32`."""
    if source.problem is not None:
        raise ValueError(f"{origin}: {name} cannot be read: {source.problem}")
    return np.asarray(source.read(slice(None)) if source.shape else source.read(Ellipsis))


def fuse(parts: Sequence[tuple[tuple[int, int], Mapping[str, np.ndarray]]], whole: int) -> dict[str, np.ndarray]:
    """LoRA factors of the parts of a fused module as those of the whole: a [R, in], b [R, out], scale.

    Where all parts are there and share `a`, as after an import, this is the original. Otherwise the factors stand in blocks, and the ranks
    add up; the product is the same.

    Args:
        parts: ((start, stop) along the whole output, {"a", "b", "scale"} and perhaps "bias"), in the order of the output.
        whole: size of the whole output.
    """
    scale = next((part["scale"] for _, part in parts if part["scale"] != 0), np.float32(1.0))  # not that of a part switched off
    first = parts[0][1]["a"]
    scaled = [(span, part["a"], part["b"] * np.float32(part["scale"] / scale)) for span, part in parts]
    fused = {"scale": scale}
    if any("bias" in part for _, part in parts):
        fused["bias"] = np.zeros(whole, np.float32)
        for (start, stop), part in parts:
            fused["bias"][start:stop] = part["bias"] * np.float32(part["scale"] / scale)
    complete = sum(stop - start for (start, stop), _ in parts) == whole
    if (complete or len(parts) == 1) and all(np.array_equal(a, first) for _, a, _ in scaled):
        b = np.zeros((first.shape[0], whole), np.float32)
        for (start, stop), _, part in scaled:
            b[:, start:stop] = part
        return fused | {"a": first, "b": b}
    b, row = np.zeros((sum(a.shape[0] for _, a, _ in scaled), whole), np.float32), 0
    for (start, stop), a, part in scaled:
        b[row : row + a.shape[0], start:stop] = part
        row += a.shape[0]
    return fused | {"a": np.concatenate([a for _, a, _ in scaled]), "b": b}


def trimmed(arrays: Mapping[str, np.ndarray], ranked: Sequence[str] = ("a", "b")) -> dict[str, np.ndarray]:
    """Factors without the zero rows that pad a layer of lower rank to its stack: they would count in alpha / R.

    Args:
        ranked: the fields of such rows, of LoRA by default.
    """
    rows = [arrays[field].reshape(arrays[field].shape[0], -1).any(axis=-1) for field in ranked if field in arrays]
    used = np.flatnonzero(np.logical_or.reduce(rows))
    rank = int(used[-1]) + 1 if used.size else 1
    return dict(arrays) | {field: arrays[field][:rank] for field in ranked if field in arrays}


def nbytes(arrays: Mapping[str, Any]) -> int:
    """Bytes of all arrays."""
    return sum(array.nbytes for array in arrays.values())
