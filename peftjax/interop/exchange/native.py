"""Our own adapter directory: `peftjax.safetensors` and `peftjax.json`.

    blocks/0/attn/q/kernel/a   [R, in]        a tensor's name is its piece's path and the field; shapes are ours, one layer each
    blocks/0/attn/q/kernel/b   [R, out]
    blocks/0/mlp_out/down      [M, D]

Every method that there is can be stored so, and nothing has to be derived: effective scales are tensors too.
"""

import collections
from pathlib import Path

import numpy as np

from peftjax.interop.base import Base
from peftjax.interop.exchange.adapter import Adapter, Piece
from peftjax.interop.exchange.folder import write_tensors
from peftjax.interop.exchange.manifest import FILE, manifest, read_manifest, write_manifest
from peftjax.interop.exchange.tensors import read_array
from peftjax.interop.safetensors_file import open_safetensors
from peftjax.peft.spec import from_data

WEIGHTS = "peftjax.safetensors"


def write_native(folder: str | Path, adapter: Adapter, base: Base) -> None:
    """Writes the directory, the manifest last."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {f"{path}/{field}": np.asarray(array) for path, piece in adapter.pieces.items() for field, array in piece.arrays.items()}
    content = manifest(adapter, base)
    metadata = {"base": content["base"]["fingerprint"], "tokenizer": content["tokenizer"]["fingerprint"]}
    write_tensors(folder / WEIGHTS, arrays, "float32", metadata)  # masters, whatever the dtype of an export
    write_manifest(folder, content, [WEIGHTS])


def read_native(folder: str | Path) -> Adapter:
    """The adapter of a directory; whether it fits a base is seen when it is inserted.

    Raises:
        FileNotFoundError, ValueError: no such directory, or one whose files are not those that its manifest lists.
    """
    folder = Path(folder)
    content = read_manifest(folder)
    if content is None:
        raise FileNotFoundError(f"{folder} has no {FILE}")
    arrays: dict[str, dict[str, np.ndarray]] = collections.defaultdict(dict)
    for name, source in open_safetensors(folder / WEIGHTS, whole_numbers=True).items():
        path, _, field = name.rpartition("/")
        if path not in content["pieces"]:
            raise ValueError(f"{folder}: {WEIGHTS} holds {name}, which is no piece of {FILE}")
        array = read_array(name, source, str(folder))
        arrays[path][field] = array if np.issubdtype(array.dtype, np.integer) else array.astype(np.float32)
    absent = [path for path in content["pieces"] if path not in arrays]
    if absent:
        raise ValueError(f"{folder}: {WEIGHTS} lacks {', '.join(absent[:5])}")
    return Adapter(
        tuple(from_data(method) for method in content["methods"]),
        {path: Piece(kind, arrays[path]) for path, kind in content["pieces"].items()},
        dtype=content["dtype"], base=content["base"]["fingerprint"], tokenizer=content["tokenizer"]["fingerprint"],
        lineage=content["lineage"],
    )
