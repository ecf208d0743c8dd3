"""Llama, Mistral, SmolLM2: names of transformers' modelling files and of llama.cpp's converter, whose `permute` reorders q and k."""

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


LLAMA = Family(
    name="llama",
    hf=("LlamaForCausalLM", "MistralForCausalLM"),
    gguf=("llama",),
    weights=(
        Weight("embed/embedding", ("V", "D"), Stored("model.embed_tokens.weight"), Stored("token_embd.weight")),
        Weight("blocks/attn_norm/scale", ("D",), Stored(f"{LAYER}input_layernorm.weight"), Stored(f"{BLOCK}attn_norm.weight")),
        *linear("attn/q", ("D", "HK"), "self_attn.q_proj", "attn_q", "qkv_bias", rotary="heads"),
        *linear("attn/k", ("D", "GK"), "self_attn.k_proj", "attn_k", "qkv_bias", rotary="kv_heads"),
        *linear("attn/v", ("D", "GK"), "self_attn.v_proj", "attn_v", "qkv_bias"),
        *linear("attn/o", ("HK", "D"), "self_attn.o_proj", "attn_output", "out_bias"),
        Weight("blocks/mlp_norm/scale", ("D",), Stored(f"{LAYER}post_attention_layernorm.weight"), Stored(f"{BLOCK}ffn_norm.weight")),
        *linear("mlp/gate", ("D", "F"), "mlp.gate_proj", "ffn_gate", "mlp_bias"),
        *linear("mlp/up", ("D", "F"), "mlp.up_proj", "ffn_up", "mlp_bias"),
        *linear("mlp/down", ("F", "D"), "mlp.down_proj", "ffn_down", "mlp_bias"),
        Weight("final_norm/scale", ("D",), Stored("model.norm.weight"), Stored("output_norm.weight")),
        Weight(
            "head/kernel", ("D", "V"), Stored("lm_head.weight", transpose=True), Stored("output.weight", transpose=True), when="!tied"
        ),
    ),
    copies=(("lm_head.weight", "embed/embedding"),),
    ignored=("model.layers.{layer}.self_attn.rotary_emb.inv_freq",),
)
