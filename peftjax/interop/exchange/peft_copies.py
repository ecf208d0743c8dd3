"""What a PEFT directory holds twice, or holds of the base: written under a tied head's name too, and copies of base weights."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from peftjax.interop.exchange import peft_table as t
from peftjax.interop.exchange.modules import Modules
from peftjax.interop.exchange.peft_checks import ensures_tying, is_copy


@dataclasses.dataclass(frozen=True)
class Copies:
    """What copies are held against.

    Attributes:
        params: the base's tree, or None: copies are taken on trust and noted.
        other_base: copies of another base's weights are left out with a note, and are no error.
        notes, problems: where what is found is said.
    """

    config: Mapping[str, Any]
    modules: Modules
    params: Any
    other_base: bool
    notes: list[str]
    problems: list[str]

    def tied(self, arrays: Mapping[str, Mapping[str, np.ndarray]]) -> set[str]:
        """Modules that hold what others do. With ensure_weight_tying PEFT writes what it holds once under both names; the head's copy is
        checked and left out. So are token rows, whose tied head always follows.

        Args:
            arrays: by their module and suffix.
        """
        if getattr(self.modules.config, "tied", False) and "head" in self.modules.theirs:
            head, embed = (arrays.get(self.modules.theirs[ours].name, {}) for ours in ("head", "embed"))
            suffix = t.TOKENS.tensors[0].suffix
            if set(head) == {suffix} and np.array_equal(head[suffix], embed.get(suffix)):
                return {self.modules.theirs["head"].name}
        if not ensures_tying(self.config, self.modules):
            return set()
        head, embed = self.modules.theirs["head"].name, self.modules.theirs["embed"].name
        if head not in arrays or embed not in arrays:
            return set()
        if self.config.get("use_dora") and "lora_embedding_A" in arrays[embed]:
            self.problems.append(
                f"other     {t.PREFIX}{head}: with ensure_weight_tying and use_dora it shares {embed}'s factors, but has lengths and "
                "magnitudes of its own rows; no node here does this"
            )
        pairs = {"lora_A.weight": ("lora_embedding_B", True), "lora_B.weight": ("lora_embedding_A", True), "weight": ("weight", False)}
        for suffix, array in arrays[head].items():
            twin, flip = pairs.get(suffix, (suffix, False))
            other = arrays[embed].get(twin)
            if suffix != t.COPY_OF_BASE and (other is None or not np.array_equal(array, other.T if flip else other)):
                self.problems.append(f"other     {t.PREFIX}{head}.{suffix}: ensure_weight_tying is on, yet it is not {embed}'s")
        return {head}

    def of_base(self, name: str, suffix: str, array: np.ndarray) -> None:
        """A copy of a base weight, which the file need not hold: left out where it is the base's own."""
        if self.params is None:
            self.notes.append(f"{name}.{suffix}, a copy of the base's weight, was not compared with the base")
        elif is_copy(array, self.modules.ours[name][0], self.modules, self.params):
            self.notes.append(f"{name}.{suffix} is this base's own weight and was left out")
        elif self.other_base:
            self.notes.append(f"{name}.{suffix} is another base's weight and was left out")
        else:
            self.problems.append(f"other     {t.PREFIX}{name}.{suffix} differs from this base's weight: it is of another base")

    def of_table(self, name: str, array: np.ndarray) -> None:
        """An embedding or head saved whole without modules_to_save, as save_embedding_layers does: a copy, or of a changed vocabulary."""
        if self.params is None or is_copy(array, self.modules.ours[name][0], self.modules, self.params):
            self.of_base(name, "weight", array)
        else:
            self.problems.append(
                f"other     {t.PREFIX}{name}.weight {list(array.shape)}: a resized or retrained table saved beside the adapter; it is not "
                "this base's, and modules_to_save does not name it"
            )
