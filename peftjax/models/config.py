"""The architecture of a decoder as data.

A family (Llama, Mistral, SmolLM2, ...) is one of these plus a table of weight names (`peftjax.interop.families`), never a
subclass of the model.
"""

import dataclasses

from peftjax.nn.layers import ACTIVATIONS


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes and switches of one decoder.

    Attributes:
        vocab_size: V, rows of the embedding.
        width: D, size of the residual stream.
        layers: L, number of blocks.
        heads: H, query heads.
        kv_heads: G, key/value heads; divides `heads` (grouped-query attention).
        head_size: K, size of one head; even, since rotary positions turn pairs.
        ff: F, inner size of the gated MLP.
        rope_base: base of the rotary frequencies.
        norm_eps: epsilon inside the root of RMS norm.
        max_length: positions the base was trained for.
        tied: logits are taken with the embedding; there is no `head/kernel`.
        activation: non-linearity of the gate, a name in `peftjax.nn.layers.ACTIVATIONS`.
        qkv_bias, out_bias, mlp_bias: biases on q/k/v, on the attention output, on the MLP kernels.
        window: a token attends to at most this many positions, itself included; None is all of them.
        family: name of the table of weight names that this base was read with.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    ff: int
    rope_base: float = 10000.0
    norm_eps: float = 1e-5
    max_length: int = 2048
    tied: bool = False
    activation: str = "silu"
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    window: int | None = None
    family: str = "llama"

    def __post_init__(self):
        if self.layers < 1:
            raise ValueError(f"a decoder of {self.layers} layers has none")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation {self.activation!r} is none of {', '.join(ACTIVATIONS)}")
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} query heads cannot share {self.kv_heads} key/value heads evenly")
        if self.head_size % 2:
            raise ValueError(f"head_size {self.head_size} is odd; rotary positions turn pairs")
