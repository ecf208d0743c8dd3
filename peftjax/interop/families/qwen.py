"""Qwen 2, 2.5 and 3: Llama's names, biases on q, k, v (2) or norms of each head of q and k (3)."""

from peftjax.interop.families.llama import (
    ATTN_NORM,
    BLOCK,
    COPIES,
    DOWN,
    EMBED,
    FINAL_NORM,
    GATE_UP,
    HEAD,
    IGNORED,
    LAYER,
    MLP_NORM,
    OUT,
    qkv,
    scale,
)
from peftjax.interop.families.table import Family

_QK_NORMS = (
    scale("blocks/attn/q_norm", "K", f"{LAYER}self_attn.q_norm", f"{BLOCK}attn_q_norm"),
    scale("blocks/attn/k_norm", "K", f"{LAYER}self_attn.k_norm", f"{BLOCK}attn_k_norm"),
)

QWEN2 = Family(
    name="qwen2",
    hf=("Qwen2ForCausalLM",),
    gguf=("qwen2",),
    weights=(EMBED, ATTN_NORM, *qkv(), *OUT, MLP_NORM, *GATE_UP, *DOWN, FINAL_NORM, HEAD),
    copies=COPIES,
    ignored=IGNORED,
)
QWEN3 = Family(
    name="qwen3",
    hf=("Qwen3ForCausalLM",),
    gguf=("qwen3",),
    weights=(EMBED, ATTN_NORM, *qkv(), *_QK_NORMS, *OUT, MLP_NORM, *GATE_UP, *DOWN, FINAL_NORM, HEAD),
    copies=COPIES,
    ignored=IGNORED,
)
