"""BERT, RoBERTa and XLM-RoBERTa encoders, with or without a sequence-classification head: names of transformers' modelling files.

    bert       bert.embeddings, bert.encoder, bert.pooler, classifier
    roberta    roberta.embeddings, roberta.encoder, classifier.dense, classifier.out_proj      (a bare model: roberta.pooler)

XLM-RoBERTa (1911.02116, 2019) is RoBERTa with another vocabulary.

Bare models and those for masked language modelling have other names on disk; `peftjax.interop.hf_encoders` brings them to these.
"""

import dataclasses

from peftjax.interop.families.table import Family, Stored, Weight


def _dense(path: str, axes: tuple[str, str], hf: str, when: str | None = None) -> tuple[Weight, Weight]:
    """A linear layer with its bias."""
    return (
        Weight(f"{path}/kernel", axes, Stored(f"{hf}.weight", transpose=True), None, when),
        Weight(f"{path}/bias", axes[1:], Stored(f"{hf}.bias"), None, when),
    )


def _norm(path: str, hf: str) -> tuple[Weight, Weight]:
    """A layer norm."""
    return Weight(f"{path}/scale", ("D",), Stored(f"{hf}.weight"), None), Weight(f"{path}/bias", ("D",), Stored(f"{hf}.bias"), None)


def _trunk(prefix: str) -> tuple[Weight, ...]:
    embeddings, layer = f"{prefix}.embeddings", prefix + ".encoder.layer.{layer}"
    return (
        Weight("embed/embedding", ("V", "D"), Stored(f"{embeddings}.word_embeddings.weight"), None),
        Weight("pos_embed/embedding", ("P", "D"), Stored(f"{embeddings}.position_embeddings.weight"), None),
        Weight("type_embed/embedding", ("Y", "D"), Stored(f"{embeddings}.token_type_embeddings.weight"), None),
        *_norm("embed_norm", f"{embeddings}.LayerNorm"),
        *_dense("blocks/attn/q", ("D", "HK"), f"{layer}.attention.self.query"),
        *_dense("blocks/attn/k", ("D", "GK"), f"{layer}.attention.self.key"),
        *_dense("blocks/attn/v", ("D", "GK"), f"{layer}.attention.self.value"),
        *_dense("blocks/attn/o", ("HK", "D"), f"{layer}.attention.output.dense"),
        *_norm("blocks/attn_norm", f"{layer}.attention.output.LayerNorm"),
        *_dense("blocks/mlp/up", ("D", "F"), f"{layer}.intermediate.dense"),
        *_dense("blocks/mlp/down", ("F", "D"), f"{layer}.output.dense"),
        *_norm("blocks/mlp_norm", f"{layer}.output.LayerNorm"),
    )


BERT = Family(
    name="bert",
    hf=("BertForSequenceClassification", "BertModel", "BertForMaskedLM", "BertForPreTraining"),
    gguf=(),
    weights=(
        *_trunk("bert"),
        *_dense("pool", ("D", "D"), "bert.pooler.dense", when="pooled"),
        *_dense("head", ("D", "C"), "classifier", when="labels"),
    ),
)
ROBERTA = Family(
    name="roberta",
    hf=("RobertaForSequenceClassification", "RobertaModel", "RobertaForMaskedLM"),
    gguf=(),
    weights=(
        *_trunk("roberta"),
        *_dense("pool", ("D", "D"), "classifier.dense", when="labels"),
        *_dense("head", ("D", "C"), "classifier.out_proj", when="labels"),
        *_dense("pool", ("D", "D"), "roberta.pooler.dense", when="bare_pool"),
    ),
)
XLM_ROBERTA = dataclasses.replace(
    ROBERTA, name="xlm-roberta", hf=("XLMRobertaForSequenceClassification", "XLMRobertaModel", "XLMRobertaForMaskedLM")
)
