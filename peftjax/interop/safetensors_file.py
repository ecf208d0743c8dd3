"""A safetensors file: which tensors it holds, mapped into memory and read some rows at a time.

    8 bytes: length N of the header, little-endian;  N bytes: JSON {name: {"dtype", "shape", "data_offsets": [begin, end]}};  data

Written through the `safetensors` package; read here, as its numpy side knows neither bfloat16 nor which tensor a truncated file
cuts. Source: the format's description in the safetensors repository.
"""

import json
import math
from pathlib import Path

import ml_dtypes
import numpy as np

from peftjax.interop.weights import Source

DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
}
# No weights of other people's bases: there they would be a quantisation that is not understood.
WHOLE_NUMBERS = {"I32": np.int32, "U32": np.uint32, "I8": np.int8, "U8": np.uint8}


def open_safetensors(path: str | Path, whole_numbers: bool = False) -> dict[str, Source]:
    """The tensors of one file by name.

    Args:
        whole_numbers: tensors of WHOLE_NUMBERS can be read too.

    Raises:
        ValueError: the header is truncated or is not one. Truncated data are a `problem` of their tensor.
    """
    path = Path(path)
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or 8 + length > size:
            raise ValueError(f"{path} is truncated or no safetensors file: its header needs {8 + length} bytes, the file has {size}")
        header = file.read(length)
    try:
        entries = json.loads(header)
    except ValueError as error:
        raise ValueError(f"{path} is no safetensors file: its header is not JSON ({error})") from error
    entries.pop("__metadata__", None)
    data = np.memmap(path, np.uint8, mode="r")[8 + length :] if size > 8 + length else np.empty(0, np.uint8)
    known = DTYPES | (WHOLE_NUMBERS if whole_numbers else {})
    return {name: _source(entry, data, path, known) for name, entry in entries.items()}


def _source(entry: dict, data: np.ndarray, path: Path, known: dict) -> Source:
    shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
    dtype = known.get(entry["dtype"])
    problem = None
    if dtype is None:
        problem = f"{path.name}: dtype {entry['dtype']} is not supported; supported are {', '.join(known)}"
    elif end - begin != math.prod(shape) * np.dtype(dtype).itemsize:
        problem = f"{path.name}: {end - begin} bytes for {entry['dtype']} {list(shape)}"
    elif end > len(data):
        problem = f"{path.name} is truncated: it needs data bytes {begin} to {end}, there are {len(data)}"
    if problem is not None:
        return Source(shape, _unreadable, problem)
    array = data[begin:end].view(dtype).reshape(shape)
    return Source(shape, lambda rows: np.asarray(array[rows]))


def _unreadable(rows):
    raise ValueError("this tensor cannot be read; weights.check says why")
