"""What a checkpoint says it holds, and how that differs from what is asked of it.

    manifest({"step": jnp.int32(3)}) == {"step": {"shape": [], "dtype": "int32", "sha256": "8d04..."}}
    target_differences(manifest, {"stop": ShapeDtypeStruct((), int32)})
        == ["missing: stop (did you mean step?)", "extra: step: int32[]"]

Checked before anything is restored, because orbax loads partial or truncated arrays where shapes differ, and says
nothing (google/orbax issue 2972).
"""

import difflib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

NOT_COMPARED = ("versions", "info")  # of a specification: they tell where a checkpoint comes from, not what it fits


def manifest(arrays: Mapping[str, jax.Array]) -> dict[str, dict]:
    """Path -> {"shape", "dtype", "sha256"} of each array; sha256 is None where this process does not see all of it.

    Raises ValueError for a typed PRNG key, which has no dtype that a file could hold, and for 64-bit numbers that JAX
    would cut to 32 bits on restore.
    """
    found = {}
    for path, array in arrays.items():
        if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
            raise ValueError(f"{path} is a typed PRNG key; save jax.random.key_data(key) and wrap it again on restore")
        if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
            back = jax.dtypes.canonicalize_dtype(array.dtype)
            raise ValueError(f"{path} is {array.dtype}, which would come back as {back}")
        found[path] = {"shape": list(array.shape), "dtype": str(np.dtype(array.dtype)), "sha256": digest(array)}
    return found


def digest(array: jax.Array | np.ndarray) -> str | None:
    """sha256 of the array's bytes in row-major order, in hex; None where parts of it live on other processes only."""
    if not getattr(array, "is_fully_addressable", True) and not array.is_fully_replicated:
        return None
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8)).hexdigest()


def target_differences(stored: Mapping[str, dict], target: Mapping[str, jax.ShapeDtypeStruct]) -> list[str]:
    """One line for each missing, extra and misshapen array; empty when the stored arrays are just those asked for."""
    lines = []
    for path in sorted(target.keys() - stored.keys()):
        near = difflib.get_close_matches(path, stored, n=1)
        lines.append(f"missing: {path}" + (f" (did you mean {near[0]}?)" if near else ""))
    for path in sorted(stored.keys() - target.keys()):
        lines.append(f"extra: {path}: {_form(stored[path]['shape'], stored[path]['dtype'])}")
    for path in sorted(stored.keys() & target.keys()):
        ours = _form(target[path].shape, np.dtype(target[path].dtype))
        theirs = _form(stored[path]["shape"], stored[path]["dtype"])
        if ours != theirs:
            lines.append(f"misshapen: {path}: asked for {ours}, the checkpoint holds {theirs}")
    return lines


def content_differences(stored: Mapping[str, dict], arrays: Mapping[str, jax.Array]) -> list[str]:
    """One line for each restored array whose bytes are not those that were saved."""
    found = {path: digest(arrays[path]) for path, entry in stored.items() if entry["sha256"]}
    return [f"{path}: sha256 {digest_now[:12]}..., saved with {stored[path]['sha256'][:12]}..."
            for path, digest_now in found.items() if digest_now not in (None, stored[path]["sha256"])]


def specification_differences(ours: Mapping, theirs: Mapping) -> list[str]:
    """`methods.0.rank: ours 8, theirs 16`, one line for each leaf that differs; `NOT_COMPARED` are left out."""
    mine, other = (
        {path: json.dumps(leaf) for path, leaf in _leaves(specification) if path.split(".")[0] not in NOT_COMPARED}
        for specification in (ours, theirs)
    )
    return [f"{path}: ours {mine.get(path, 'absent')}, theirs {other.get(path, 'absent')}"
            for path in sorted(mine.keys() | other.keys()) if mine.get(path) != other.get(path)]


def file_list(folder: Path) -> dict[str, list]:
    """Relative path -> [bytes, sha256 in hex] of every file below `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _describe(path) for path in files}


def file_differences(folder: Path, stored: Mapping[str, list]) -> list[str]:
    """One line for each file that is missing, cut short or changed since `file_list` was taken."""
    lines = []
    for name, (size, sha256) in stored.items():
        path = folder / name
        if not path.is_file():
            lines.append(f"{name}: missing")
        elif path.stat().st_size != size:
            lines.append(f"{name}: {path.stat().st_size} bytes, saved with {size}")
        elif _describe(path)[1] != sha256:
            lines.append(f"{name}: other bytes than were saved")
    return lines


def _describe(path: Path) -> list:
    """[bytes, sha256 in hex] of one file."""
    with path.open("rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]


def _form(shape, dtype) -> str:
    """`float32[8,3]`."""
    return f"{dtype}[{','.join(map(str, shape))}]"


def _leaves(value, path: str = ""):
    """(dotted path, leaf) pairs of a JSON value; an empty object or array is a leaf."""
    if isinstance(value, dict | list) and value:
        for step, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(child, f"{path}.{step}" if path else str(step))
    else:
        yield path, value
