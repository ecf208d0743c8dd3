"""HF PEFT's adapters as tables: our nodes against their tensors and config fields. Read by peft_read, written by peft_write.

| method | node | their keys behind `base_model.model.<module>.` |
|---|---|---|
| LoRA on a linear layer | LoRA | lora_A.weight (R, in), lora_B.weight (out, R), lora_B.bias (out,) |
| LoRA on an embedding | LoRA | lora_embedding_A (R, V), lora_embedding_B (D, R) |
| DoRA | DoRA | those of LoRA, and lora_magnitude_vector (out,) or (D,) |
| trainable tokens | TokenRows | token_adapter.trainable_tokens_delta (N, D): the new rows themselves |
| modules_to_save | Trained | weight, bias |
| bias "lora_only", "all" | Trained | base_layer.bias, bias |

A method that joins brings a `Table` here, and a line in `REFUSED` goes. Seen in files written by peft 0.21.2.
"""

import dataclasses
from typing import Any

from peftjax.interop.exchange.tensors import Field, Tensor

PREFIX = "base_model.model."
CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"


@dataclasses.dataclass(frozen=True)
class Table:
    """Tensors of one node class on one kind of module.

    Attributes:
        node: our class.
        kinds: of modules it stands on, as `Modules.kind` names them.
        tensors: the rows.
    """

    node: str
    kinds: tuple[str, ...]
    tensors: tuple[Tensor, ...]


LORA_LINEAR = Table("LoRA", ("linear", "conv1d"), (
    Tensor("a", "lora_A.weight", ("R", "in")),
    Tensor("b", "lora_B.weight", ("out", "R"), flip=True),
    Tensor("bias", "lora_B.bias", ("out",), optional=True),
))
LORA_EMBEDDING = Table("LoRA", ("embedding",), (
    Tensor("a", "lora_embedding_A", ("R", "V")),
    Tensor("b", "lora_embedding_B", ("D", "R"), flip=True),
))
DORA_LINEAR = Table("DoRA", ("linear", "conv1d"), (*LORA_LINEAR.tensors[:2], Tensor("magnitude", "lora_magnitude_vector", ("out",))))
DORA_EMBEDDING = Table("DoRA", ("embedding",), (*LORA_EMBEDDING.tensors, Tensor("magnitude", "lora_magnitude_vector", ("D",))))
TOKENS = Table("TokenRows", ("embedding", "linear"), (Tensor("rows", "token_adapter.trainable_tokens_delta", ("N", "D")),))
SAVED_LINEAR = Table("Trained", ("linear",), (Tensor("value", "weight", ("out", "in"), flip=True),))
SAVED_CONV1D = Table("Trained", ("conv1d",), (Tensor("value", "weight", ("in", "out")),))
SAVED_EMBEDDING = Table("Trained", ("embedding",), (Tensor("value", "weight", ("V", "D")),))
SAVED_NORM = Table("Trained", ("norm",), (Tensor("value", "weight", ("out",)),))
SAVED_BIAS = Tensor("value", "bias", ("out",))
BIAS_UNDER_LORA = Tensor("value", "base_layer.bias", ("out",))
COPY_OF_BASE = "base_layer.weight"

TABLES = (LORA_LINEAR, LORA_EMBEDDING, DORA_LINEAR, DORA_EMBEDDING, TOKENS, SAVED_LINEAR, SAVED_CONV1D, SAVED_EMBEDDING, SAVED_NORM)
SUFFIXES = sorted({t.suffix for table in TABLES for t in table.tensors} | {SAVED_BIAS.suffix, BIAS_UNDER_LORA.suffix, COPY_OF_BASE})


# Config fields that are one field of `lora`; rank and alpha, which patterns may vary, stand for themselves.
LORA_FIELDS = (
    Field("lora_dropout", "dropout", 0.0),
    Field("use_rslora", "rslora", False),
    Field("use_dora", "dora", False),
    Field("lora_bias", "lora_bias", False),
)

# Fields that must be off, each with what it would ask for.
REFUSED = {
    "target_parameters": "LoRA on bare parameters (mixtures of experts)",
    "layer_replication": "layers used several times",
    "alora_invocation_tokens": "activated LoRA",
    "use_qalora": "QA-LoRA, whose inputs are pooled",
    "use_bdlora": "block-diagonal LoRA",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA, which changes the base",
    "monteclora_config": "MonteCLoRA, which samples its factors",
    "megatron_config": "Megatron's split layers",
}
# Fields that are read elsewhere, or say how the file came about and change nothing in what it holds.
READ = {
    "peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version", "runtime_config",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "modules_to_save",
    "bias", "fan_in_fan_out", "trainable_token_indices", "init_lora_weights", "r", "lora_alpha", "ensure_weight_tying",
    "corda_config", "eva_config", "loftq_config", "lora_ga_config", "velora_config", "qalora_group_size", "megatron_core",
    *(field.theirs for field in LORA_FIELDS),
}
# Beginnings of the values of init_lora_weights with which the file fits a changed base, and not the one it names.
MUTATING = ("pissa", "olora", "corda", "lora_ga", "loftq", "mica")
OTHER_TYPES = {
    "IA3", "ADALORA", "LOHA", "LOKR", "OFT", "BOFT", "VERA", "HRA", "MISS", "BONE", "FOURIERFT", "RANDLORA", "LN_TUNING", "PROMPT_TUNING",
    "P_TUNING", "PREFIX_TUNING", "SHIRA", "HIRA", "DELORA", "GRALORA", "ROAD", "C3A", "WAVEFT", "XLORA", "POLY", "TRAINABLE_TOKENS",
}


def saved_row(kind: str) -> Tensor:
    """The weight of a module saved whole, by what `Modules.kind` says it is."""
    return next(table.tensors[0] for table in TABLES if table.node == "Trained" and kind in table.kinds)


def low_rank(node: str, kind: str) -> Table:
    """The tensors of a "LoRA" or "DoRA", by what `Modules.kind` says its module is."""
    return next(table for table in TABLES if table.node == node and kind in table.kinds)


def mutating(init: Any) -> bool:
    """Whether a value of init_lora_weights changed the base when training began."""
    return isinstance(init, str) and init.lower().startswith(MUTATING)
