"""The architecture of a decoder as data.

A family (Llama, Qwen, Gemma, Phi-3, GPT-2, ...) is one of these plus a table of weight names (`peftjax.interop.families`), never a
subclass of the model.
"""

import dataclasses

from peftjax.models import rope
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
        ff: F, inner size of the MLP.
        rope_base: base of the rotary frequencies.
        norm_eps: epsilon inside the root of the norms.
        max_length: positions the base was trained for; rows of the position embedding where there is one.
        tied: logits are taken with the embedding; there is no `head/kernel`.
        activation: non-linearity of the MLP, a name in `peftjax.nn.layers.ACTIVATIONS`.
        qkv_bias, out_bias, mlp_bias: biases on q/k/v, on the attention output, on the MLP kernels.
        window: a token attends to at most this many positions, itself included; None is all of them.
        full_layers: numbers of the layers to which `window` does not apply (global ones, among local ones).
        family: name of the table of weight names that this base was read with.
        rope_scaling: how the frequencies are rescaled for long contexts, one of `peftjax.models.rope.SCALINGS`, or None.
        local_rope_base: base in the layers that have the window, which are then not rescaled; None is as in the others.
        rotary_size: how many of a head's elements, the first ones, are turned; None is all.
        learned_positions: positions are an embedding added to the tokens' (`pos_embed`); nothing is turned.
        layer_norm: norms are LayerNorm with biases, not RMS norms.
        norm_offset: norms multiply by scale + this; Gemma's keep w of 1 + w.
        post_norms: the outputs of attention and MLP are normed too, before they are added.
        qk_norm: each head of q and k is normed before it is turned.
        query_scalar: scores are divided by the square root of this; None is head_size.
        attention_softcap, logit_softcap: c in c tanh(x / c) of scores and logits; None is no cap.
        embedding_scale: embeddings are multiplied by this where they enter the stream, not in a tied head.
        gated: the MLP is down(act(gate(h)) * up(h)); else down(act(up(h))).
        multimodal: it is the text part of a model of text and images, whose modules have other names; nothing is computed otherwise.
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
    full_layers: tuple[int, ...] = ()
    rope_scaling: rope.Linear | rope.Llama3 | rope.Yarn | rope.LongRope | None = None
    local_rope_base: float | None = None
    rotary_size: int | None = None
    learned_positions: bool = False
    layer_norm: bool = False
    norm_offset: float = 0.0
    post_norms: bool = False
    qk_norm: bool = False
    query_scalar: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    embedding_scale: float = 1.0
    gated: bool = True
    multimodal: bool = False

    def __post_init__(self):
        if self.layers < 1:
            raise ValueError(f"a decoder of {self.layers} layers has none")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation {self.activation!r} is none of {', '.join(ACTIVATIONS)}")
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} query heads cannot share {self.kv_heads} key/value heads evenly")
        name, turned = ("head_size", self.head_size) if self.rotary_size is None else ("rotary_size", self.rotary_size)
        if turned % 2 and not self.learned_positions:
            raise ValueError(f"{name} {turned} is odd; rotary positions turn pairs")
        if turned > self.head_size:
            raise ValueError(f"{name} {turned} is more than the {self.head_size} elements of a head")
        if self.window is None and (self.full_layers or self.local_rope_base):
            raise ValueError("full_layers and local_rope_base tell layers with a window from others; there is no window")
        if any(layer not in range(self.layers) for layer in self.full_layers):
            raise ValueError(f"full_layers {self.full_layers} are not all among the {self.layers} layers")

    @property
    def local_layers(self) -> tuple[bool, ...]:
        """Which layers have the window."""
        return tuple(self.window is not None and layer not in self.full_layers for layer in range(self.layers))
