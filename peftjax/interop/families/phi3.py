"""Phi-3 and Phi-4-mini: Llama's names, with q, k and v in one tensor, and gate and up in another. Ours are apart."""

from peftjax.interop.families.llama import ATTN_NORM, BLOCK, COPIES, DOWN, EMBED, FINAL_NORM, HEAD, IGNORED, LAYER, MLP_NORM, OUT
from peftjax.interop.families.table import Family, Stored, Weight


def _parts(paths: tuple[str, ...], axes: tuple[str, ...], hf: str, gguf: str) -> tuple[Weight, ...]:
    """Kernels that are joined along their output axis."""
    return tuple(
        Weight(
            f"blocks/{path}/kernel",
            ("D", axes[index]),
            Stored(f"{LAYER}{hf}.weight", transpose=True, part=(index, axes)),
            Stored(f"{BLOCK}{gguf}.weight", transpose=True, part=(index, axes)),
        )
        for index, path in enumerate(paths)
    )


_QKV = _parts(("attn/q", "attn/k", "attn/v"), ("HK", "GK", "GK"), "self_attn.qkv_proj", "attn_qkv")
_GATE_UP = _parts(("mlp/gate", "mlp/up"), ("F", "F"), "mlp.gate_up_proj", "ffn_up")

PHI3 = Family(
    name="phi3",
    hf=("Phi3ForCausalLM",),
    gguf=("phi3",),
    weights=(EMBED, ATTN_NORM, *_QKV, *OUT, MLP_NORM, *_GATE_UP, *DOWN, FINAL_NORM, HEAD),
    copies=COPIES,
    ignored=IGNORED,
)
