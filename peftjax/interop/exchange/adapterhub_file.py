"""The tensors of an AdapterHub file by pool, place and suffix, taken one after another; what nobody took is extra.

    stored = Stored(folder, "model", places, "task", {"model.layers.0.output_adapters.adapters.task.adapter_up.weight": ...})
    stored.take("adapters", "model.layers.0.output_adapters", rows, {"M": 4, "D": 32})      -> {"down": ..., "up": ...}
    stored.refuse()

Keys of old files and of bare models are read as those of today.
"""

import collections
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import numpy as np

from peftjax.interop.exchange.adapter import LISTED
from peftjax.interop.exchange.tensors import Tensor, read_float32
from peftjax.interop.weights import Source

SHARED = "shared_parameters"
POOLS = ("adapters", "loras", "refts", "invertible_adapters", "prefix_tunings", "prefix_gates", "prompt_tunings",
         "adapter_fusion_layer", SHARED)
_LEGACY = re.compile(r"\.(?:attention|layer)_text_(?:task|lang)_adapters\.")
_KEY = re.compile(rf"(?P<place>.+?)\.(?P<pool>{'|'.join(POOLS)})\.(?P<name>[^.]+)\.(?P<suffix>.+)")


class Stored:
    """The tensors of one file, and what is wrong with them."""

    def __init__(self, folder: Path, trunk: str, places: Collection[str], name: str | None, sources: Mapping[str, Source]):
        """trunk: the module that holds all; places: that the base has; name: of the adapter, None for any.

        Raises:
            ValueError: a tensor that cannot be read.
        """
        self.folder, self.places, self.name = folder, places, name
        self.problems: list[str] = []
        self.dtypes: collections.Counter[str] = collections.Counter()
        self._tensors: dict[tuple[str, str], dict[str, np.ndarray]] = collections.defaultdict(dict)
        self._keys: dict[tuple[str, str, str], str] = {}
        for key, source in sources.items():
            array, dtype = read_float32(key, source, str(folder))
            name_of = _LEGACY.sub(".adapters.", key)
            match = _KEY.fullmatch(name_of if name_of.startswith(f"{trunk}.") else f"{trunk}.{name_of}")
            if match is None or name not in (None, match["name"]):
                self.problems.append(f"extra     {key} {list(array.shape)}: this base and this adapter have no such place")
                continue
            self.dtypes[dtype] += 1
            self._tensors[match["pool"], match["place"]][match["suffix"]] = array
            self._keys[match["pool"], match["place"], match["suffix"]] = key

    def holds(self, pool: str, place: str) -> bool:
        """Whether something is left at a place."""
        return bool(self._tensors.get((pool, place)))

    def key(self, pool: str, place: str, suffix: str) -> str:
        """How the file calls a tensor, or would."""
        return self._keys.get((pool, place, suffix), f"{place}.{pool}.{self.name}.{suffix}")

    def take(
        self, pool: str, place: str, rows: Iterable[Tensor], sizes: Mapping[str, int], parts: int = 1
    ) -> list[dict[str, np.ndarray]] | None:
        """Our arrays of each part of a place, by field; None after a complaint.

        Args:
            parts: how many lie one behind another along the first axis of every tensor.
        """
        tensors, rows = self._tensors.get((pool, place), {}), list(rows)
        present = {row.field for row in rows if row.suffix in tensors}  # a tensor that is there under two names may be held once
        missing = {row.field: row.suffix for row in reversed(rows) if row.field not in present and not row.optional}
        if missing:
            self.problems += [f"missing   {self.key(pool, place, suffix)}" for suffix in missing.values()]
            return None
        taken = {row: tensors.pop(row.suffix) for row in rows if row.suffix in tensors}
        if not all([self._fits(self.key(pool, place, row.suffix), row, array, sizes, parts) for row, array in taken.items()]):
            return None
        found: list[dict[str, np.ndarray]] = [{} for _ in range(parts)]
        for row, array in taken.items():
            for own, part in zip(found, np.split(array, parts), strict=True):
                ours = row.ours(part)
                if not np.array_equal(own.setdefault(row.field, ours), ours):
                    self.problems.append(f"other     {self.key(pool, place, row.suffix)}: differs from its second copy")
        return found

    def _fits(self, key: str, row: Tensor, array: np.ndarray, sizes: Mapping[str, int], parts: int) -> bool:
        wanted = list(row.shape(sizes))
        wanted[0] = wanted[0] if wanted[0] is None else wanted[0] * parts
        fits = len(wanted) == array.ndim and all(want in (None, size) for want, size in zip(wanted, array.shape, strict=True))
        if not fits:
            letters = [f"{axis}={size}" if size is not None and axis != "1" else axis for axis, size in zip(row.axes, wanted, strict=True)]
            self.problems.append(f"misshapen {key}: {list(array.shape)}, this base and this config want [{', '.join(letters)}]")
        return fits

    def refuse(self) -> None:
        """Raises with every complaint, and whatever nobody took."""
        for (pool, place), tensors in self._tensors.items():
            why = "nothing in the config asks for it" if place in self.places else "this base and this adapter have no such place"
            self.problems += [f"extra     {self.key(pool, place, suffix)}: {why}" for suffix in tensors]
        if self.problems:
            more = f"\n  and {len(self.problems) - LISTED} more" if len(self.problems) > LISTED else ""
            raise ValueError(f"{self.folder} does not fit this base:\n  " + "\n  ".join(sorted(self.problems)[:LISTED]) + more)
