"""The container of a GGUF file: metadata by key, and where each tensor lies.

Little-endian: magic "GGUF", version, tensor count, key/value count; keys with typed values; tensor infos (name, sizes with the
*fastest first*, type, offset); then the data, aligned (32 unless `general.alignment` says otherwise).
Source: ggml's docs/gguf.md, versions 2 and 3.

The `gguf` package's GGUFReader reads the same, and is the oracle of the tests. This reader exists because that one makes an
array object of every string of the vocabulary (2.4 s of a 4 s load), and dies on a truncated file with an error from numpy.
"""

import dataclasses
import math
import struct
from pathlib import Path
from typing import Any, BinaryIO

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies.

    Attributes:
        shape: slowest axis first, the reverse of the file's order.
        type: number of the ggml type.
        offset: of its first byte in the file.
    """

    shape: tuple[int, ...]
    type: int
    offset: int

    @property
    def elements(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class GGUFFile:
    """Metadata and tensor infos of the file at `path`, which has `size` bytes."""

    path: Path
    size: int
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]


def read_header(path: str | Path) -> GGUFFile:
    """Everything before the tensor data.

    Raises:
        ValueError: not a GGUF file, an unknown version or value type, doubled names, or a file that ends within the header.
    """
    path = Path(path)
    with open(path, "rb", buffering=1 << 20) as file:
        cursor = _Cursor(file, path, path.stat().st_size)
        magic = cursor.take(4, "the magic number")
        if magic != b"GGUF":
            raise ValueError(f"{path} is not a GGUF file: it begins with {magic!r}, not b'GGUF'")
        version = cursor.scalar("<I", "the version")
        if version not in _VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            why = " (a big-endian file)" if swapped in _VERSIONS else ""
            raise ValueError(f"{path}: GGUF version {version}{why} is not supported; supported are 2 and 3, little-endian")
        tensor_count, key_count = cursor.scalar("<Q", "the tensor count"), cursor.scalar("<Q", "the key count")
        metadata = {}
        for i in range(key_count):
            key = cursor.string(f"key {i + 1} of {key_count}")
            metadata[key] = cursor.value(cursor.scalar("<I", f"the type of {key}"), key)
        infos = {}
        for i in range(tensor_count):
            name = cursor.string(f"the name of tensor {i + 1} of {tensor_count}")
            if name in infos:
                raise ValueError(f"{path}: two tensors are named {name!r}")
            rank = cursor.scalar("<I", name)
            sizes = [cursor.scalar("<Q", name) for _ in range(rank)]
            infos[name] = (tuple(reversed(sizes)), cursor.scalar("<I", name), cursor.scalar("<Q", name))
        alignment = metadata.get("general.alignment", 32)
        begin = -(-file.tell() // alignment) * alignment
    tensors = {name: TensorInfo(shape, kind, begin + offset) for name, (shape, kind, offset) in infos.items()}
    return GGUFFile(path, cursor.size, metadata, tensors)


class _Cursor:
    """Reads values one after another, and names what it was reading when the file ends."""

    def __init__(self, file: BinaryIO, path: Path, size: int):
        self.file, self.path, self.size = file, path, size

    def take(self, count: int, what: str) -> bytes:
        # Asked before reading: a damaged length must not become an allocation of exabytes.
        data = self.file.read(count) if count <= self.size else b""
        if len(data) != count:
            raise ValueError(f"{self.path} is truncated or damaged: it ends at byte {self.size}, within {what}")
        return data

    def scalar(self, form: str, what: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form), what))[0]

    def string(self, what: str) -> str:
        return self.take(self.scalar("<Q", what), what).decode("utf-8")

    def value(self, kind: int, what: str) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind], what)
        if kind == _STRING:
            return self.string(what)
        if kind != _ARRAY:
            raise ValueError(f"{self.path}: {what} has the unknown value type {kind}")
        kind, count = self.scalar("<I", what), self.scalar("<Q", what)
        if kind in _SCALARS:
            form = _SCALARS[kind]
            data = self.take(count * struct.calcsize(form), what)
            return [item for (item,) in struct.iter_unpack(form, data)]
        if count > self.size:
            raise ValueError(f"{self.path} is truncated or damaged: {what} announces {count} items")
        return [self.value(kind, what) for _ in range(count)]
