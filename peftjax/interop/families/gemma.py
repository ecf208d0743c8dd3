"""Gemma 2 and 3 (text): norms before and after both sublayers. A norm multiplies by 1 + w; GGUF keeps 1 + w, Hugging Face and we w.

    ours                    Hugging Face                   GGUF
    blocks/attn_norm        input_layernorm                attn_norm
    blocks/attn_post_norm   post_attention_layernorm       post_attention_norm
    blocks/mlp_norm         pre_feedforward_layernorm      ffn_norm
    blocks/mlp_post_norm    post_feedforward_layernorm     post_ffw_norm
"""

from peftjax.interop.families.llama import BLOCK, COPIES, DOWN, EMBED, GATE_UP, HEAD, IGNORED, LAYER, OUT, qkv, scale
from peftjax.interop.families.table import Family

_NORMS = (
    scale("blocks/attn_norm", "D", f"{LAYER}input_layernorm", f"{BLOCK}attn_norm", 1.0),
    scale("blocks/attn_post_norm", "D", f"{LAYER}post_attention_layernorm", f"{BLOCK}post_attention_norm", 1.0),
    scale("blocks/mlp_norm", "D", f"{LAYER}pre_feedforward_layernorm", f"{BLOCK}ffn_norm", 1.0),
    scale("blocks/mlp_post_norm", "D", f"{LAYER}post_feedforward_layernorm", f"{BLOCK}post_ffw_norm", 1.0),
    scale("final_norm", "D", "model.norm", "output_norm", 1.0),
)
_QK_NORMS = (
    scale("blocks/attn/q_norm", "K", f"{LAYER}self_attn.q_norm", f"{BLOCK}attn_q_norm", 1.0),
    scale("blocks/attn/k_norm", "K", f"{LAYER}self_attn.k_norm", f"{BLOCK}attn_k_norm", 1.0),
)

GEMMA2 = Family(
    name="gemma2",
    hf=("Gemma2ForCausalLM",),
    gguf=("gemma2",),
    weights=(EMBED, *_NORMS, *qkv(), *OUT, *GATE_UP, *DOWN, HEAD),
    copies=COPIES,
    ignored=IGNORED,
)
GEMMA3 = Family(
    name="gemma3",
    hf=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    gguf=("gemma3",),
    weights=(EMBED, *_NORMS, *qkv(), *_QK_NORMS, *OUT, *GATE_UP, *DOWN, HEAD),
    copies=COPIES,
    ignored=IGNORED,
)
