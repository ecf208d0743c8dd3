"""Our own base directory: parameters as they are held, in their final layout, quantised or dense.

    peftjax_base.json            {"format", "version", "fingerprint", "dtype", "quantise", "nodes", "views", "origin"}
    peftjax_base.safetensors     blocks/attn/q/kernel/words [L, K/8, N], ..., final_norm/scale [D]: leaves by path
    config.json, tokenizer.json, ...

No other format holds NF4 or a merged weight on its own 4-bit grid bit for bit, so that this is the form of a quantised base that was
merged into. It serves as a converted copy as well: reading it is copying, nothing is decoded, transposed or quantised. What is read is
compared with the fingerprint, so that a damaged file is noticed. `load_base` of SmolLM2-135M on two cores, files in memory: NF4 with an
int8 embedding 1.4 s from GGUF and 0.6 s from here, dense 1.0 s from either, which is why no copy is made unasked.
"""

import dataclasses
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.files import replacing
from peftjax.interop.fingerprint import fingerprint
from peftjax.interop.hf import config_from_document, document_from_config
from peftjax.interop.json_file import read_json, write_json
from peftjax.interop.safetensors_file import open_safetensors
from peftjax.interop.weights import aligned_empty
from peftjax.nn.kernels import Kernel
from peftjax.nn.quant import NF4, Affine4, Float8, Int8, Quantised
from peftjax.nn.tree import flatten, put, walk

FILE, WEIGHTS = "peftjax_base.json", "peftjax_base.safetensors"
FORMAT, VERSION = "peftjax base", 1
NODES = {node.__name__: node for node in (Affine4, Float8, Int8, NF4)}
_BYTES = ("float8_e4m3fn",)  # dtypes that the safetensors package does not write; their bytes are


@dataclasses.dataclass(frozen=True, eq=False)
class Held:
    """What lies in a directory: configuration, parameters, their fingerprint and how they are held; see `peftjax.interop.base.Base`."""

    config: Any
    params: dict[str, Any]
    fingerprint: str
    quantise: list[list[Any]] | None


def is_held(path: Path) -> bool:
    """Whether a directory of ours is there."""
    return (path / FILE).is_file()


def write_held(
    folder: str | Path, config: Any, params: dict, tokenizer: Any, *, dtype: str, quantise: list | None = None,
    origin: Mapping[str, Any] = {},  # noqa: B006 (read only)
) -> None:
    """Writes parameters without adapters, in one stack, as they are held; the description last.

    Args:
        dtype: of what is dense.
        quantise: rules by which they were quantised, as data.
        origin: where they come from, as plain data.

    Raises:
        ValueError: adapters, or a configuration that a config.json cannot say.
    """
    foreign = [path for path, value in walk(params) if isinstance(value, Kernel) and not isinstance(value, Quantised)]
    if foreign:
        raise ValueError(f"{', '.join(foreign)} carry adapters; merge or detach them before the base is written")
    document = document_from_config(config, dtype)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).unlink(missing_ok=True)  # an older one would describe new weights until the new one is there
    tokenizer.write_directory(folder)
    leaves = {path: np.asarray(leaf) for path, leaf in flatten(params).items()}
    views = {path: leaf.dtype.name for path, leaf in leaves.items() if leaf.dtype.name in _BYTES}
    _write(folder / WEIGHTS, leaves | {path: np.ascontiguousarray(leaves[path]).view(np.uint8) for path in views})
    write_json(folder / "config.json", document)
    nodes = {path: _described(value) for path, value in walk(params) if isinstance(value, Quantised)}
    write_json(folder / FILE, {
        "format": FORMAT, "version": VERSION, "fingerprint": fingerprint(params), "dtype": dtype, "quantise": quantise, "nodes": nodes,
        "views": views, "origin": dict(origin),
    })


def read_held(folder: str | Path, dtype: str | None = None, threads: int = 2) -> Held:
    """Parameters of a directory, on the device.

    Args:
        dtype: of what is dense, and of what nodes merge into; default as it was written.

    Raises:
        ValueError: another format, a damaged file, or values that are not those that were written.
    """
    folder = Path(folder)
    about = read_json(folder / FILE)
    if about.get("format") != FORMAT or about.get("version") != VERSION:
        raise ValueError(f"{folder / FILE} is {about.get('format')!r}, version {about.get('version')!r}; this reads {FORMAT!r}, {VERSION}")
    sources = open_safetensors(folder / WEIGHTS, whole_numbers=True)
    unreadable = [f"{path}: {source.problem}" for path, source in sources.items() if source.problem]
    if unreadable:
        raise ValueError(f"{folder / WEIGHTS} is damaged: {'; '.join(unreadable[:5])}")

    def read(path: str) -> np.ndarray:
        array = sources[path].read(slice(None)) if sources[path].shape else sources[path].read(...)
        array = array.view(about["views"][path]) if path in about["views"] else array
        leaf = aligned_empty(array.shape, array.dtype)
        leaf[...] = array
        return leaf

    with ThreadPoolExecutor(threads) as pool:
        leaves = {path: jax.device_put(leaf) for path, leaf in zip(sources, pool.map(read, sources), strict=True)}
    params = _tree(leaves, about)
    found = fingerprint(params)
    if found != about["fingerprint"]:
        raise ValueError(f"{folder} does not hold what was written: fingerprint {found[:16]}..., written as {about['fingerprint'][:16]}...")
    config = config_from_document(read_json(folder / "config.json"), str(folder / "config.json"))
    if dtype not in (None, about["dtype"]):
        params = _cast(params, dtype)
        found = fingerprint(params)
    return Held(config, params, found, about["quantise"])


def _described(node: Quantised) -> dict[str, Any]:
    fields = [field for field in node.array_fields if getattr(node, field) is not None]
    return {"kind": type(node).__name__, "fields": fields, "rows": node.rows, "dtype": node.dtype.name}


def _tree(leaves: Mapping[str, Any], about: Mapping[str, Any]) -> dict:
    left, params = dict(leaves), {}
    for path, node in about["nodes"].items():
        arrays = {field: left.pop(f"{path}/{field}", None) for field in node["fields"]}
        params = put(params, path, NODES[node["kind"]](**arrays, rows=node["rows"], dtype=node["dtype"]))
    for path, leaf in left.items():
        params = put(params, path, leaf)
    return params


def _cast(params: dict, dtype: str) -> dict:
    for path, value in list(walk(params)):
        node = isinstance(value, Quantised)
        params = put(params, path, dataclasses.replace(value, dtype=jnp.dtype(dtype)) if node else value.astype(dtype))
    return params


def _write(file: Path, leaves: Mapping[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    with replacing(file) as partial:
        save_file({path: np.ascontiguousarray(leaf).reshape(leaf.shape) for path, leaf in leaves.items()}, str(partial))
