"""GPT-2: learned positions, layer norms with biases, an MLP without a gate, and q, k and v in one tensor.

Its linear layers are Conv1D: Hugging Face keeps them as [in, out]. GGUF keeps them as all others, [out, in].
"""

from peftjax.interop.families.table import Family, Stored, Weight

_LAYER = "transformer.h.{layer}."
_BLOCK = "blk.{layer}."
_QKV = ("HK", "GK", "GK")


def _conv1d(path: str, axes: tuple[str, str], hf: str, gguf: str, part: tuple[int, tuple[str, ...]] | None = None) -> tuple[Weight, Weight]:
    """A linear layer of a block with its bias."""
    hf, gguf = f"{_LAYER}{hf}", f"{_BLOCK}{gguf}"
    return (
        Weight(f"blocks/{path}/kernel", axes, Stored(f"{hf}.weight", part=part), Stored(f"{gguf}.weight", transpose=True, part=part)),
        Weight(f"blocks/{path}/bias", axes[1:], Stored(f"{hf}.bias", part=part), Stored(f"{gguf}.bias", part=part)),
    )


def _norm(path: str, hf: str, gguf: str) -> tuple[Weight, Weight]:
    """A layer norm."""
    return (
        Weight(f"{path}/scale", ("D",), Stored(f"{hf}.weight"), Stored(f"{gguf}.weight")),
        Weight(f"{path}/bias", ("D",), Stored(f"{hf}.bias"), Stored(f"{gguf}.bias")),
    )


GPT2 = Family(
    name="gpt2",
    hf=("GPT2LMHeadModel",),
    gguf=("gpt2",),
    weights=(
        Weight("embed/embedding", ("V", "D"), Stored("transformer.wte.weight"), Stored("token_embd.weight")),
        Weight("pos_embed/embedding", ("P", "D"), Stored("transformer.wpe.weight"), Stored("position_embd.weight")),
        *_norm("blocks/attn_norm", f"{_LAYER}ln_1", f"{_BLOCK}attn_norm"),
        *_conv1d("attn/q", ("D", "HK"), "attn.c_attn", "attn_qkv", (0, _QKV)),
        *_conv1d("attn/k", ("D", "GK"), "attn.c_attn", "attn_qkv", (1, _QKV)),
        *_conv1d("attn/v", ("D", "GK"), "attn.c_attn", "attn_qkv", (2, _QKV)),
        *_conv1d("attn/o", ("HK", "D"), "attn.c_proj", "attn_output"),
        *_norm("blocks/mlp_norm", f"{_LAYER}ln_2", f"{_BLOCK}ffn_norm"),
        *_conv1d("mlp/up", ("D", "F"), "mlp.c_fc", "ffn_up"),
        *_conv1d("mlp/down", ("F", "D"), "mlp.c_proj", "ffn_down"),
        *_norm("final_norm", "transformer.ln_f", "output_norm"),
        Weight("head/kernel", ("D", "V"), Stored("lm_head.weight", transpose=True), Stored("output.weight", transpose=True), when="!tied"),
    ),
    copies=(("lm_head.weight", "embed/embedding"),),
    ignored=("transformer.h.{layer}.attn.bias", "transformer.h.{layer}.attn.masked_bias"),  # the causal mask, and -10000
)
