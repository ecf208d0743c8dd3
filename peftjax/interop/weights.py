"""From a checkpoint's tensors to stacked parameter leaves: checked as a whole first, then streamed.

    sources: {"model.layers.0.self_attn.q_proj.weight": Source(shape=(H*K, D), read=...), ...}
    leaves:  ("blocks/attn/q/kernel", array [L, D, H*K]), one after another

A reader (`peftjax.interop.hf`, `peftjax.interop.gguf`) only says which tensors there are and how to read some rows of one. What
belongs where is in `peftjax.interop.families`. Rows are read in blocks straight into their place in a preallocated leaf, so memory
stays near one copy of the weights, and every complaint about names and shapes comes before anything is allocated.
"""

import dataclasses
import difflib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from peftjax.interop.families import Family, Stored, Weight
from peftjax.models.config import DecoderConfig
from peftjax.nn.kernels import is_kernel

_AT_ONCE = 1 << 19  # elements read at a time: 2 MB in float32 stays in the cache while it is transposed
_ALIGNMENT = 64  # XLA on CPU takes over a numpy buffer without a copy if it is aligned so
_LISTED = 40


class Packed(NamedTuple):
    """A tensor as its file keeps it. kind: name of its type there; read: some rows -> uint8 [rows, bytes of a row]."""

    kind: str
    read: Callable[[slice | np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Source:
    """A tensor of a checkpoint.

    Attributes:
        shape: as the Hugging Face format has it, slowest axis first: [out, in] for a linear layer.
        read: some rows (a slice or an index array along the first axis) -> array of any float dtype.
        problem: why it cannot be read (truncated, undecodable type), or None.
        packed: of a quantised type that can be taken over bit for bit, its rows without decoding; else None.
    """

    shape: tuple[int, ...]
    read: Callable[[slice | np.ndarray], np.ndarray]
    problem: str | None = None
    packed: Packed | None = None


def check(config: DecoderConfig, family: Family, form: str, sources: Mapping[str, Source], origin: str) -> None:
    """Compares the tensors that there are with those that there should be.

    Args:
        form: "hf" or "gguf", the column of names.
        origin: file or folder, for the message.

    Raises:
        ValueError: lists every missing, extra, misshapen and unreadable tensor.
    """
    wanted, homeless = {}, []
    for weight in family.present(config):
        if weight.stored(form) is None:
            homeless.append(weight.path)
            continue
        shape = weight.stored_sizes(form, config)
        for name in weight.names(form, config):
            wanted[name] = (shape, f"{wanted[name][1]}, {weight.path}" if name in wanted else weight.path)
    allowed = {name: wanted_shape for name, wanted_shape in _tolerated(config, family, form)}
    extra = [name for name in sources if name not in wanted and name not in allowed]
    missing = [name for name in wanted if name not in sources]
    lines = [f"missing   {name} {list(wanted[name][0])} for {wanted[name][1]}{_nearest(name, extra)}" for name in missing]
    lines += [f"extra     {name} {list(sources[name].shape)}{_nearest(name, missing)}" for name in extra]
    for name, source in sources.items():
        shape, path = wanted.get(name) or (allowed.get(name), "")
        if shape is not None and tuple(source.shape) != tuple(shape):
            lines.append(f"misshapen {name}: found {list(source.shape)}, {path or 'the config'} wants {list(shape)}")
        elif source.problem is not None:
            lines.append(f"unreadable {name}: {source.problem}")
    lines += [f"homeless  {path}: the format {form} has no place for it" for path in homeless]
    if lines:
        shown = "\n  ".join(lines[:_LISTED]) + (f"\n  and {len(lines) - _LISTED} more" if len(lines) > _LISTED else "")
        raise ValueError(f"{origin} does not hold the {family.name} weights that its configuration announces:\n  {shown}")


class Tensors(NamedTuple):
    """The tensors of one parameter, a `source` for each layer (one alone where it is not `stacked`), and where its values lie in them.

    path: of the parameter; shape: of one layer; rows, columns: which of a tensor are ours, in our order; stored: how the format keeps it.
    """

    path: str
    shape: tuple[int, ...]
    stacked: bool
    sources: list[Source]
    rows: range | np.ndarray
    columns: slice
    stored: Stored

    def leaf(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An array of this shape for each layer, not yet filled."""
        return aligned_empty((len(self.sources), *shape) if self.stacked else shape, dtype)

    def layers(self, leaf: np.ndarray) -> Iterator[tuple[np.ndarray, Source]]:
        """Each layer's part of such an array, with the tensor it comes from."""
        return zip(leaf if self.stacked else [leaf], self.sources, strict=True)

    def chunks(self, elements: int) -> Iterator[tuple[slice, slice | np.ndarray]]:
        """(places, rows): our rows in portions of about so many elements, and which rows of a tensor they come from."""
        step = max(1, elements // max(1, int(np.prod(self.sources[0].shape[1:]))))
        for start in range(0, len(self.rows), step):
            chunk = self.rows[start : start + step]
            yield slice(start, start + len(chunk)), slice(chunk.start, chunk.stop) if isinstance(chunk, range) else chunk


Reader = Callable[[Tensors, Executor], Any]


def leaves(
    config: DecoderConfig, family: Family, form: str, sources: Mapping[str, Source], dtype: Any = np.float32, threads: int = 2,
    readers: Mapping[str, Reader] = MappingProxyType({}),
) -> Iterator[tuple[str, Any]]:
    """Parameters by path, each complete; the tensors must have passed `check`.

    An array is never written again after it is handed out, so that a device may take over its memory.

    Args:
        dtype: of the arrays.
        readers: by path, what is not to become an array of this dtype: called with the tensors and the pool of threads, it gives a node.
    """
    with ThreadPoolExecutor(threads) as pool:
        for weight in family.present(config):
            tensors = tensors_of(weight, form, config, sources)
            reader = readers.get(weight.path)
            yield weight.path, read_dense(tensors, dtype, pool) if reader is None else reader(tensors, pool)


def tensors_of(weight: Weight, form: str, config: DecoderConfig, sources: Mapping[str, Source]) -> Tensors:
    """Where the values of a parameter lie."""
    stored = weight.stored(form)
    found = [sources[name] for name in weight.names(form, config)]
    return Tensors(weight.path, weight.sizes(config), weight.stacked, found, *_which(weight, stored, config), stored)


def read_dense(tensors: Tensors, dtype: Any, pool: Executor) -> np.ndarray:
    """A parameter as an array of `dtype`."""
    leaf, jobs = tensors.leaf(tensors.shape, dtype), []
    for target, source in tensors.layers(leaf):
        target = target.T if tensors.stored.transpose else target
        for places, rows in tensors.chunks(_AT_ONCE):
            jobs.append(pool.submit(_fill, target[places], source, rows, tensors.columns, tensors.stored.offset))
    for job in jobs:
        job.result()
    return leaf


def check_copies(family: Family, sources: Mapping[str, Source], params: Mapping[str, Any], origin: str) -> None:
    """A tied checkpoint may repeat a tensor under another name; it must then be the same.

    Args:
        params: leaves by path; those that are repeated suffice.
    """
    for name, path in family.copies:
        if name in sources and path in params:
            leaf = params[path]
            if is_kernel(leaf):  # the dense weight is not kept: its tensor is read once more
                leaf = sources[next(weight.hf.name for weight in family.weights if weight.path == path)].read(slice(None))
            leaf = np.asarray(leaf)
            if not np.array_equal(np.asarray(sources[name].read(slice(None))).astype(leaf.dtype), leaf):
                raise ValueError(
                    f"{origin} says that embeddings are tied, yet {name} differs from {path}; set tie_word_embeddings to false"
                )


def rotary_order(heads: int, head_size: int) -> np.ndarray:
    """Which GGUF row each row in half-split rotary order comes from: [heads * head_size] ints.

    llama.cpp keeps the two members of a rotary pair side by side: within a head of size K its row 2j is our row j, and its row
    2j + 1 is our row j + K/2.
    """
    rows = np.arange(heads * head_size).reshape(heads, head_size // 2, 2)
    return rows.swapaxes(1, 2).reshape(-1)


def aligned_empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An uninitialised array whose memory a JAX CPU device can take over without a copy."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def _which(weight: Weight, stored: Stored, config: Any) -> tuple[range | np.ndarray, slice]:
    """Which rows of a tensor are ours, in our order, and which of its columns."""
    sizes = weight.sizes(config)
    start, stop, _ = stored.bounds(config) or (0, sizes[-1], 0)
    if len(sizes) > 1 and not stored.transpose:  # the output axis is that of columns
        return range(sizes[0]), slice(start, stop)
    if stored.rotary is not None:
        return start + rotary_order(getattr(config, stored.rotary), config.head_size), slice(None)
    return range(start, stop), slice(None)


def _fill(target: np.ndarray, source: Source, rows: slice | np.ndarray, columns: slice, offset: float) -> None:
    """Writes some rows of one tensor into their place."""
    values = source.read(rows)
    if columns != slice(None):
        values = values[..., columns]
    target[...] = values - values.dtype.type(offset) if offset else values


def _tolerated(config: DecoderConfig, family: Family, form: str) -> Iterator[tuple[str, tuple[int, ...] | None]]:
    """Names that may be there without being read, with the shape they must have (None: any)."""
    if form != "hf":
        return
    for template in family.ignored:
        for layer in range(config.layers):
            yield template.format(layer=layer), None
    paths = {weight.path: weight for weight in family.weights}
    present = {weight.hf.name for weight in family.present(config) if weight.hf}
    for name, path in family.copies:
        if name not in present:
            yield name, paths[path].sizes(config)


def _nearest(name: str, candidates: list[str]) -> str:
    # Over hundreds of names the search takes seconds and helps nobody: then the whole naming differs.
    near = difflib.get_close_matches(name, candidates, n=1, cutoff=0.7) if len(candidates) <= 100 else []
    return f"; nearest: {near[0]}" if near else ""
