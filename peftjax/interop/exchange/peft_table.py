"""What a table of HF PEFT's says: one `PeftMethod` for each of its peft_types, in `peft_methods`. Read by peft_read, written by peft_write.

| what | node | their keys behind `base_model.model.<module>.` |
|---|---|---|
| a method on a module | its tables say | its tables say |
| trainable tokens | TokenRows | token_adapter.trainable_tokens_delta (N, D): the new rows themselves |
| modules_to_save | Trained | weight, bias |
| bias "lora_only", "all" | Trained | base_layer.bias, bias |

Seen in files written by peft 0.21.2.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from peftjax.interop.exchange.tensors import Field, Tensor

PREFIX = "base_model.model."
CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
LINEAR = ("linear", "conv1d")
KEPT_OUT_IN = ("linear",)  # of methods that PEFT refuses on a Conv1D


def _always(*_: Any) -> bool:
    return True


@dataclasses.dataclass(frozen=True)
class Table:
    """Tensors of one node class on one kind of module.

    Attributes:
        node: our class.
        kinds: of modules it stands on, as `Modules.kind` names them.
        tensors: the rows.
        asked: whether their config asks for it on the module of this name; (config, name) -> bool.
        stands: whether our method puts it on this logical module; (method, module) -> bool.
    """

    node: str
    kinds: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    asked: Callable[[Mapping[str, Any], str], bool] = _always
    stands: Callable[[Any, str], bool] = _always


@dataclasses.dataclass(frozen=True)
class Number:
    """A number that may differ from module to module: rank, alpha.

    Attributes:
        theirs, ours: config field, and field of our method.
        default: of theirs.
        patterns: their config field of exceptions, where there is one; ours_patterns: that of our method.
        axis: the letter of a table that is this number.
        strict: the config must say the same as the tensors.
        anchored: their exceptions may be whole names, "^model.layers.0..."; else they are looked for behind a dot.
    """

    theirs: str
    ours: str
    default: Any
    patterns: str | None = None
    ours_patterns: str | None = None
    axis: str | None = None
    strict: bool = True
    anchored: bool = True


@dataclasses.dataclass(frozen=True)
class PeftMethod:
    """One peft_type, and the method that it is here.

    Attributes:
        make: our method's class.
        tables: in the order in which they are asked.
        numbers, fields: config fields, those that differ between modules, and those said once.
        per: scale = alpha / per(rank, config), as a leaf `scale`; None where there is no alpha.
        constant: further arrays of each node that follow from its numbers: (numbers, config, in, out) -> arrays.
        shared: tensors held once, behind `base_model.`; `field` is the place below our store of shared values.
        draw: those where the file holds a seed in their place; (config, in, out) -> their tensors by suffix.
        repeated: each module has copies of the shared tensors.
        defaults: config fields that say nothing of ours, with the values that PEFT writes.
        at_training: those of them that act at training time only, and are not applied here.
        refused: config fields that must be off, each with what it would ask for.
        alike: config fields of ours that are said otherwise there: (config, names of modules by ours) -> settings of our method.
        unlike: back; (method, names of modules by ours) -> config fields.
        parts: whether it stands on a part of a fused module as on the whole.
        masked: the row of what is zero where a rank was pruned: the file leaves such ranks out (`peftjax.interop.exchange.peft_masks`).
        only: the value of `bias` that means the biases of its own modules; None where that is the type, as in "oft_only".
    """

    peft_type: str
    make: Callable[..., Any]
    tables: tuple[Table, ...]
    numbers: tuple[Number, ...] = ()
    fields: tuple[Field, ...] = ()
    per: Callable[[int, Mapping[str, Any]], float] | None = None
    constant: Callable[..., Mapping[str, np.ndarray]] = lambda numbers, config, inputs, outputs: {}
    shared: tuple[Tensor, ...] = ()
    draw: Callable[[Mapping[str, Any], int, int], Mapping[str, np.ndarray]] | None = None
    repeated: bool = False
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    at_training: tuple[str, ...] = ()
    refused: Mapping[str, str] = dataclasses.field(default_factory=dict)
    alike: Callable[[Mapping[str, Any], Mapping[str, str]], dict[str, Any]] = lambda config, names: {}
    unlike: Callable[[Any, Mapping[str, str]], dict[str, Any]] = lambda method, names: {}
    parts: bool = True
    masked: Tensor | None = None
    only: str | None = None

    @property
    def own_biases(self) -> str:
        """The value of `bias` that means the biases of its own modules."""
        return self.only or f"{self.peft_type.lower()}_only"

    @property
    def suffixes(self) -> set[str]:
        """Of all its tensors."""
        own = {row.suffix for table in self.tables for row in table.tensors}
        return own | ({row.suffix for row in self.shared} if self.repeated else set())

    @property
    def known(self) -> set[str]:
        """Its config fields."""
        numbers = {number.theirs for number in self.numbers} | {number.patterns for number in self.numbers if number.patterns}
        return numbers | {field.theirs for field in self.fields} | set(self.defaults) | set(self.refused)

    def table_of(self, node: str, kind: str, method: Any, module: str) -> Table | None:
        """The table of a node of ours; None where there is none."""
        fits = [t for t in self.tables if t.node == node and kind in t.kinds and t.stands(method, module)]
        return fits[0] if fits else None


TOKENS = Table("TokenRows", ("embedding", "linear"), (Tensor("rows", "token_adapter.trainable_tokens_delta", ("N", "D")),))
SAVED_LINEAR = Table("Trained", ("linear",), (Tensor("value", "weight", ("out", "in"), flip=True),))
SAVED_CONV1D = Table("Trained", ("conv1d",), (Tensor("value", "weight", ("in", "out")),))
SAVED_EMBEDDING = Table("Trained", ("embedding",), (Tensor("value", "weight", ("V", "D")),))
SAVED_NORM = Table("Trained", ("norm",), (Tensor("value", "weight", ("out",)),))
SAVED_BIAS = Tensor("value", "bias", ("out",))
BIAS_BELOW = Tensor("value", "base_layer.bias", ("out",))
COPY_OF_BASE = "base_layer.weight"
SAVED = (SAVED_LINEAR, SAVED_CONV1D, SAVED_EMBEDDING, SAVED_NORM)
# Of every file, whatever its method.
SUFFIXES = {TOKENS.tensors[0].suffix, SAVED_BIAS.suffix, BIAS_BELOW.suffix, COPY_OF_BASE, "weight"}

# Config fields that are read elsewhere, or say how the file came about and change nothing in what it holds.
READ = {
    "peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version", "runtime_config",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "bias", "fan_in_fan_out",
    "trainable_token_indices", "ensure_weight_tying", "init_weights",
}
# Beginnings of the values of init_lora_weights with which the file fits a changed base, and not the one it names. (MiCA's freezes a B that
# it takes from the base, and leaves the base.)
MUTATING = ("pissa", "olora", "corda", "lora_ga", "loftq")


def saved_row(kind: str) -> Tensor:
    """The weight of a module saved whole, by what `Modules.kind` says it is."""
    return next(table.tensors[0] for table in SAVED if kind in table.kinds)


def mutating(init: Any) -> bool:
    """Whether a value of init_lora_weights changed the base when training began."""
    return isinstance(init, str) and init.lower().startswith(MUTATING)
