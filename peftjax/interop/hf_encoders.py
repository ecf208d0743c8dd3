"""config.json of encoders, and the names in their checkpoints: what `peftjax.interop.hf` asks where a family is one of FAMILIES.

| architecture                    | names begin with  | read as                                            |
|---|---|---|
| BertForSequenceClassification   | bert., classifier | trunk, pooler, head with the labels of config.json |
| BertModel                       | nothing           | trunk and pooler, no head                          |
| BertForMaskedLM, ForPreTraining | bert., cls        | trunk; its heads and its pooler are left aside     |

and RoBERTa and XLM-RoBERTa likewise (`lm_head` for `cls`). A base without a head is written as a bare model, under the names of the first
line, which transformers reads too. Old checkpoints call the scale and bias of a norm gamma and beta. Settings that would change the
computation and are not implemented are refused by name.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from peftjax.hints import did_you_mean
from peftjax.models.encoder_config import EncoderConfig

T = TypeVar("T")

# Of each family: what tensors and architectures begin with, and the padding id that transformers takes where config.json is silent.
_BEGIN = {"bert": ("bert.", "Bert", 0), "roberta": ("roberta.", "Roberta", 1), "xlm-roberta": ("roberta.", "XLMRoberta", 1)}
FAMILIES = tuple(_BEGIN)
ACTIVATIONS = {
    "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu",
    "tanh": "tanh",
}
_SIZES = {
    "vocab_size": "vocab_size", "hidden_size": "width", "num_hidden_layers": "layers", "num_attention_heads": "heads",
    "intermediate_size": "ff", "max_position_embeddings": "max_length",
}
_CLASSIFIER, _BARE = "ForSequenceClassification", "Model"
# Heads that a base for classification has no use for, and buffers that hold 0, 1, 2, ... or zeros.
_ASIDE = ("cls.", "lm_head.")
_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")


def config_from_document(document: Mapping[str, Any], family: str, origin: str) -> EncoderConfig:
    """The configuration in the content of the config.json of a `family`, one of FAMILIES.

    Raises:
        ValueError: a setting that is not supported, or a size that is not given.
    """
    absent = [name for name in _SIZES if document.get(name) is None]
    if absent:
        raise ValueError(f"{origin} lacks {', '.join(absent)}")
    _refuse_unsupported(document, origin)
    architecture = document["architectures"][0]
    classifies = architecture.endswith(_CLASSIFIER)
    padding = _BEGIN[family][2] if document.get("pad_token_id") is None else document["pad_token_id"]
    return EncoderConfig(
        **{ours: document[theirs] for theirs, ours in _SIZES.items()},
        position_offset=0 if family == "bert" else padding + 1,
        types=document.get("type_vocab_size") or 2,
        norm_eps=float(document.get("layer_norm_eps") or 1e-12),
        activation=ACTIVATIONS[document.get("hidden_act") or "gelu"],
        pooled=classifies or architecture.endswith(_BARE),
        labels=_labels(document, origin) if classifies else (),
        family=family,
    )


def document_from_config(config: EncoderConfig, dtype: str) -> dict[str, Any]:
    """The content of a config.json that transformers 4 and 5 read."""
    if config.pooled is False and config.labels:
        raise ValueError(f"a {config.family} classifier in the Hugging Face layout has a dense layer before its head; this base has none")
    _, name, padding = _BEGIN[config.family]
    document = {
        "architectures": [name + (_CLASSIFIER if config.labels else _BARE)],
        "model_type": config.family,
        **{theirs: getattr(config, ours) for theirs, ours in _SIZES.items()},
        "type_vocab_size": config.types,
        "layer_norm_eps": config.norm_eps,
        "hidden_act": next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config.activation),
        "pad_token_id": padding if config.family == "bert" else config.position_offset - 1,
        "torch_dtype": dtype,
        "dtype": dtype,
    }
    if config.labels:
        document["id2label"] = {str(number): label for number, label in enumerate(config.labels)}
        document["label2id"] = {label: number for number, label in enumerate(config.labels)}
    return document


def canonical(tensors: Mapping[str, T], config: EncoderConfig) -> dict[str, T]:
    """The tensors of a checkpoint under the names of the family's table, without what is left aside."""
    prefix, found = _BEGIN[config.family][0], {}
    own_pooler = config.bare_pool or config.family == "bert" and config.pooled  # RoBERTa's classifier has a dense layer instead
    for name, tensor in tensors.items():
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        name = name if name.startswith((prefix, "classifier.", *_ASIDE)) else prefix + name
        another_head = not config.labels and name.startswith(_ASIDE)
        if not (name.endswith(_BUFFERS) or another_head or name.startswith(f"{prefix}pooler.") and not own_pooler):
            found[name] = tensor
    return found


def _labels(document: Mapping[str, Any], origin: str) -> tuple[str, ...]:
    """Names of the labels by number; LABEL_0, ... where the file gives a count or nothing."""
    named = document.get("id2label")
    if not named:
        return tuple(f"LABEL_{number}" for number in range(document.get("num_labels") or 2))
    numbers = sorted(int(number) for number in named)
    if numbers != list(range(len(numbers))):
        raise ValueError(f"{origin}: the numbers of id2label are {numbers}, not 0 to {len(numbers) - 1}")
    return tuple(str({int(number): label for number, label in named.items()}[number]) for number in numbers)


def _refuse_unsupported(document: Mapping[str, Any], origin: str) -> None:
    problems = []
    positions = document.get("position_embedding_type") or "absolute"
    if positions != "absolute":
        problems.append(f"position_embedding_type {positions!r} (supported: absolute)")
    if document.get("is_decoder") or document.get("add_cross_attention"):
        problems.append("an encoder used as a decoder (is_decoder, add_cross_attention)")
    kind = document.get("problem_type") or "single_label_classification"
    if kind != "single_label_classification":
        problems.append(f"problem_type {kind!r} (supported: single_label_classification)")
    if document.get("quantization_config"):
        problems.append(f"weights quantised with {document['quantization_config'].get('quant_method', 'unnamed')!r}")
    activation = document.get("hidden_act") or "gelu"
    if activation not in ACTIVATIONS:
        problems.append(f"hidden_act {activation!r} (supported: {', '.join(ACTIVATIONS)}{did_you_mean(activation, ACTIVATIONS)})")
    if problems:
        raise ValueError(f"{origin} has settings that are not supported: {'; '.join(problems)}")
