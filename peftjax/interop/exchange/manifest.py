"""What an adapter is and where it comes from: `peftjax.json`, in our own adapter directory and beside every export.

    {"format": "peftjax adapter", "version": 1,
     "methods": [{"method": "lora", "rank": 4, ...}],          what is attached to make room for it
     "pieces": {"blocks/0/attn/q/kernel": "LoRA", ...},        node by place
     "scales": {"blocks/0/attn/q/kernel": 2.0, ...},           effective scales, as the tensors have them
     "dtype": "float32", "parameters": 24576, "bytes": 98304,
     "random": {"prng": "threefry2x32", "partitionable": true, "constants": []},     generator of random constants, and who uses them
     "base": {"fingerprint", "uri", "dtype", "quantise", "config": {...}}, "tokenizer": {"fingerprint"},
     "lineage": {...},                                         run, config, data, earlier formats
     "files": {"peftjax.safetensors": {"bytes", "sha256"}}}

Neither HF PEFT nor AdapterHub has a place for the base's identity; a file of ours beside theirs keeps it, and is heeded when the directory
is read again.
"""

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from peftjax.interop.base import Base
from peftjax.interop.exchange.adapter import Adapter
from peftjax.interop.exchange.tensors import nbytes
from peftjax.interop.json_file import read_json, write_json
from peftjax.interop.quantise import describe
from peftjax.peft.spec import to_data

FILE = "peftjax.json"
FORMAT, VERSION = "peftjax adapter", 1


def manifest(adapter: Adapter, base: Base) -> dict[str, Any]:
    """The content of `peftjax.json`, without the list of files.

    The identity of the base is the one the adapter was made for, where that is known; else that of `base`, which it fits.
    """
    arrays = {f"{path}/{field}": array for path, piece in adapter.pieces.items() for field, array in piece.arrays.items()}
    trained = {key: array for key, array in arrays.items() if key.rpartition("/")[2] not in ("scale", "ids")}
    scales = {
        path: float(piece.arrays["scale"]) for path, piece in adapter.pieces.items()
        if "scale" in piece.arrays and piece.arrays["scale"].ndim == 0
    }
    return {
        "format": FORMAT, "version": VERSION,
        "methods": [to_data(method) for method in adapter.methods],
        "pieces": {path: piece.kind for path, piece in adapter.pieces.items()},
        "scales": scales, "dtype": adapter.dtype,
        "parameters": sum(math.prod(array.shape) for array in trained.values()), "bytes": nbytes(trained),
        "random": {
            "prng": str(jax.config.jax_default_prng_impl), "partitionable": bool(jax.config.jax_threefry_partitionable), "constants": [],
        },
        "base": {
            "fingerprint": adapter.base or base.fingerprint, "uri": base.uri, "dtype": base.dtype, "quantise": base.quantise,
            "config": dataclasses.asdict(base.config),
        },
        "tokenizer": {"fingerprint": adapter.tokenizer or base.tokenizer.fingerprint},
        "lineage": dict(adapter.lineage),
    }


def write_manifest(folder: Path, content: Mapping[str, Any], files: Sequence[str]) -> None:
    """Writes `peftjax.json` for these files of the folder, which are all there."""
    write_json(folder / FILE, dict(content) | {"files": {name: _described(folder / name) for name in files}})


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder, or None where there is none.

    Raises:
        ValueError: another format or version, or a file that is missing or changed since.
    """
    if not (folder / FILE).is_file():
        return None
    content = read_json(folder / FILE)
    if content.get("format") != FORMAT or content.get("version") != VERSION:
        raise ValueError(
            f"{folder / FILE} is {content.get('format')!r}, version {content.get('version')!r}; this reads {FORMAT!r}, version {VERSION}"
        )
    for name, wanted in content.get("files", {}).items():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} lacks {name}, which its {FILE} lists")
        found = _described(folder / name)
        if found != wanted:
            raise ValueError(
                f"{folder / name} is not the file that {FILE} lists: {found['bytes']} bytes, sha256 {found['sha256'][:12]}..., "
                f"listed {wanted['bytes']} bytes, {wanted['sha256'][:12]}..."
            )
    return content


def check_identity(content: Mapping[str, Any], base: Base, origin: str, other_base: bool = False) -> None:
    """Refuses another base or tokenizer than the adapter was made for, unless `other_base`.

    Raises:
        ValueError: with both fingerprints, and how to override.
    """
    if other_base:
        return
    wanted, tokenizer = content["base"], content["tokenizer"]["fingerprint"]
    lines = []
    if wanted["fingerprint"] != base.fingerprint:
        hint = f"; it was loaded in {base.dtype} here and in {wanted['dtype']} there" if wanted["dtype"] != base.dtype else ""
        here, there = describe(base.quantise), describe(wanted.get("quantise"))
        hint += f"; it is held {here} here and was held {there} there: say quantise={wanted.get('quantise')!r}" if here != there else ""
        made_for = f"{wanted['uri']} ({wanted['fingerprint'][:16]}...)"
        lines.append(f"base {base.uri} has fingerprint {base.fingerprint[:16]}..., made for {made_for}{hint}")
    if tokenizer != base.tokenizer.fingerprint:
        lines.append(f"the tokenizer has fingerprint {base.tokenizer.fingerprint[:16]}..., made for {tokenizer[:16]}...")
    if lines:
        raise ValueError(f"{origin} was made for another base: " + "; ".join(lines) + ". To use it all the same, say other_base")


def _described(file: Path) -> dict[str, Any]:
    with open(file, "rb") as opened:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(opened, "sha256").hexdigest()}
