"""Llama, Mistral, SmolLM2, and what other families share with them.

Names are those of transformers' modelling files and of llama.cpp's converter. The latter's `permute` reorders the rows of q and k for
these alone.
"""

from peftjax.interop.families.table import Family, Stored, Weight

LAYER = "model.layers.{layer}."
BLOCK = "blk.{layer}."


def linear(path: str, axes: tuple[str, str], hf: str, gguf: str, bias: str, rotary: str | None = None) -> tuple[Weight, Weight]:
    """A linear layer of a block: kernel, and bias where the config's field `bias` says so."""
    return tuple(
        Weight(
            f"blocks/{path}/{leaf}",
            axes if leaf == "kernel" else axes[1:],
            Stored(f"{LAYER}{hf}.{theirs}", transpose=leaf == "kernel"),
            Stored(f"{BLOCK}{gguf}.{theirs}", transpose=leaf == "kernel", rotary=rotary),
            when=when,
        )
        for leaf, theirs, when in (("kernel", "weight", None), ("bias", "bias", bias))
    )


def scale(path: str, axis: str, hf: str, gguf: str, offset: float = 0.0) -> Weight:
    """The scale of an RMS norm, to which GGUF has added `offset`."""
    return Weight(f"{path}/scale", (axis,), Stored(f"{hf}.weight"), Stored(f"{gguf}.weight", offset=offset))


def qkv(permuted: bool = False) -> tuple[Weight, ...]:
    """q, k and v; `permuted` as Llama's are in GGUF."""
    return (
        *linear("attn/q", ("D", "HK"), "self_attn.q_proj", "attn_q", "qkv_bias", rotary="heads" if permuted else None),
        *linear("attn/k", ("D", "GK"), "self_attn.k_proj", "attn_k", "qkv_bias", rotary="kv_heads" if permuted else None),
        *linear("attn/v", ("D", "GK"), "self_attn.v_proj", "attn_v", "qkv_bias"),
    )


EMBED = Weight("embed/embedding", ("V", "D"), Stored("model.embed_tokens.weight"), Stored("token_embd.weight"))
ATTN_NORM = scale("blocks/attn_norm", "D", f"{LAYER}input_layernorm", f"{BLOCK}attn_norm")
OUT = linear("attn/o", ("HK", "D"), "self_attn.o_proj", "attn_output", "out_bias")
MLP_NORM = scale("blocks/mlp_norm", "D", f"{LAYER}post_attention_layernorm", f"{BLOCK}ffn_norm")
GATE_UP = (
    *linear("mlp/gate", ("D", "F"), "mlp.gate_proj", "ffn_gate", "mlp_bias"),
    *linear("mlp/up", ("D", "F"), "mlp.up_proj", "ffn_up", "mlp_bias"),
)
DOWN = linear("mlp/down", ("F", "D"), "mlp.down_proj", "ffn_down", "mlp_bias")
FINAL_NORM = scale("final_norm", "D", "model.norm", "output_norm")
HEAD = Weight("head/kernel", ("D", "V"), Stored("lm_head.weight", transpose=True), Stored("output.weight", transpose=True), when="!tied")
COPIES = (("lm_head.weight", "embed/embedding"),)
IGNORED = ("model.layers.{layer}.self_attn.rotary_emb.inv_freq",)

LLAMA = Family(
    name="llama",
    hf=("LlamaForCausalLM", "MistralForCausalLM"),
    gguf=("llama",),
    weights=(EMBED, ATTN_NORM, *qkv(permuted=True), *OUT, MLP_NORM, *GATE_UP, *DOWN, FINAL_NORM, HEAD),
    copies=COPIES,
    ignored=IGNORED,
)
