"""Tensor files of an adapter directory: safetensors; pickles are refused."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from peftjax.files import replacing
from peftjax.interop.safetensors_file import open_safetensors
from peftjax.interop.weights import Source


def open_tensors(folder: Path, name: str, pickle: str, whole_numbers: bool = False) -> dict[str, Source]:
    """The tensors of a safetensors file by name, with `whole_numbers` those of integers too.

    Raises:
        FileNotFoundError: not there.
        ValueError: only a pickle is there, or the file is damaged.
    """
    if (folder / name).is_file():
        return open_safetensors(folder / name, whole_numbers)
    if (folder / pickle).is_file():
        raise ValueError(
            f"{folder / pickle} is a pickle, which can run any code when it is opened, and is not read. Convert it where you trust it: "
            f"safetensors.torch.save_file({{k: v.clone() for k, v in torch.load({pickle!r}, weights_only=True).items()}}, {name!r})"
        )
    found = sorted(p.name for p in folder.iterdir())[:10]
    raise FileNotFoundError(f"{folder} has no {name} (found: {', '.join(found) or 'nothing'})")


def write_tensors(file: Path, arrays: Mapping[str, np.ndarray], dtype: str, metadata: Mapping[str, str] | None = None) -> None:
    """Writes float arrays in `dtype` (others as they are) as safetensors, whole or not at all."""
    import ml_dtypes
    from safetensors.numpy import save_file

    kind = {"bfloat16": ml_dtypes.bfloat16}.get(dtype) or np.dtype(dtype)
    ready = {
        name: np.asarray(array, kind if np.issubdtype(array.dtype, np.floating) else None, order="C")
        for name, array in sorted(arrays.items())
    }
    with replacing(file) as partial:
        save_file(ready, str(partial), metadata={"format": "pt", **(metadata or {})})
        _sort_metadata(partial)


def _sort_metadata(file: Path) -> None:
    """safetensors writes metadata in another order each time; here the same content is the same bytes."""
    with open(file, "r+b") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        opened.seek(8)
        opened.write(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size))
