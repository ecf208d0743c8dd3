"""Names and layouts of base weights in other formats, as data: one `Family` per architecture, one `Weight` per parameter.

    Weight("blocks/attn/q/kernel", ("D", "HK"), hf="model.layers.{layer}.self_attn.q_proj.weight",
           gguf="blk.{layer}.attn_q.weight", transpose=True, rotary="heads")

reads as: our [L, D, H*K] is, layer by layer, the transpose of Hugging Face's (H*K, D); GGUF holds the same rows with rotary
pairs interleaved within each of the `config.heads` heads. Axes that may occur in `shape` are the keys of `axis_sizes`.

A new architecture is a new table here (and, if it computes something new, a field of DecoderConfig), not new reading code.
Sources: transformers' modelling files and llama.cpp's convert_hf_to_gguf.py for the names; the latter's `permute` for the row order.
"""

import dataclasses
from collections.abc import Iterator

from peftjax.models.config import DecoderConfig

FORMATS = ("hf", "gguf")


@dataclasses.dataclass(frozen=True)
class Weight:
    """One parameter of ours and where other formats keep it.

    Attributes:
        path: ours, `blocks/attn/q/kernel`; paths under `blocks/` are stacked over layers.
        shape: our axes without the layer axis, as letters.
        hf, gguf: names of the tensors; `{layer}` stands for the layer's number.
        transpose: the others keep it as [out, in].
        rotary: GGUF interleaves the rotary pairs of its rows, within as many heads as this field of the config says.
        when: field of the config that must be true for the weight to exist; "!field" for one that must be false.
    """

    path: str
    shape: tuple[str, ...]
    hf: str
    gguf: str
    transpose: bool = False
    rotary: str | None = None
    when: str | None = None

    @property
    def stacked(self) -> bool:
        """Whether there is one for each layer."""
        return self.path.startswith("blocks/")

    def exists(self, config: DecoderConfig) -> bool:
        """Whether a model of this config has it."""
        if self.when is None:
            return True
        return not getattr(config, self.when[1:]) if self.when.startswith("!") else bool(getattr(config, self.when))

    def sizes(self, config: DecoderConfig) -> tuple[int, ...]:
        """Our shape of one layer."""
        axes = axis_sizes(config)
        return tuple(axes[axis] for axis in self.shape)

    def names(self, form: str, config: DecoderConfig) -> list[str]:
        """Names of the tensors it is read from, in the order of layers; `form` is one of FORMATS."""
        template = getattr(self, form)
        return [template.format(layer=layer) for layer in range(config.layers)] if self.stacked else [template]


@dataclasses.dataclass(frozen=True)
class Family:
    """An architecture as other formats know it.

    Attributes:
        name: the value of `DecoderConfig.family`.
        hf: names in the `architectures` of config.json. The first is written on export.
        gguf: values of `general.architecture`.
        weights: every parameter.
        copies: HF names that a tied checkpoint may repeat, each with our path that it must equal.
        ignored: HF names of buffers that carry no information, with `{layer}`.
    """

    name: str
    hf: tuple[str, ...]
    gguf: tuple[str, ...]
    weights: tuple[Weight, ...]
    copies: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()

    def present(self, config: DecoderConfig) -> Iterator[Weight]:
        """The weights that a model of this config has."""
        return (weight for weight in self.weights if weight.exists(config))


def axis_sizes(config: DecoderConfig) -> dict[str, int]:
    """Size of each axis letter; HK and GK are all query and all key/value heads in a row."""
    return {
        "V": config.vocab_size,
        "D": config.width,
        "F": config.ff,
        "HK": config.heads * config.head_size,
        "GK": config.kv_heads * config.head_size,
    }


def _linear(path: str, inputs: str, outputs: str, hf: str, gguf: str, bias: str, rotary: str | None = None) -> tuple[Weight, Weight]:
    """A linear layer of a block: kernel, and bias where the config's field `bias` says so."""
    hf, gguf = "model.layers.{layer}." + hf, "blk.{layer}." + gguf
    return (
        Weight(f"blocks/{path}/kernel", (inputs, outputs), f"{hf}.weight", f"{gguf}.weight", transpose=True, rotary=rotary),
        Weight(f"blocks/{path}/bias", (outputs,), f"{hf}.bias", f"{gguf}.bias", rotary=rotary, when=bias),
    )


LLAMA = Family(
    name="llama",
    hf=("LlamaForCausalLM", "MistralForCausalLM"),
    gguf=("llama",),
    weights=(
        Weight("embed/embedding", ("V", "D"), "model.embed_tokens.weight", "token_embd.weight"),
        Weight("blocks/attn_norm/scale", ("D",), "model.layers.{layer}.input_layernorm.weight", "blk.{layer}.attn_norm.weight"),
        *_linear("attn/q", "D", "HK", "self_attn.q_proj", "attn_q", "qkv_bias", rotary="heads"),
        *_linear("attn/k", "D", "GK", "self_attn.k_proj", "attn_k", "qkv_bias", rotary="kv_heads"),
        *_linear("attn/v", "D", "GK", "self_attn.v_proj", "attn_v", "qkv_bias"),
        *_linear("attn/o", "HK", "D", "self_attn.o_proj", "attn_output", "out_bias"),
        Weight("blocks/mlp_norm/scale", ("D",), "model.layers.{layer}.post_attention_layernorm.weight", "blk.{layer}.ffn_norm.weight"),
        *_linear("mlp/gate", "D", "F", "mlp.gate_proj", "ffn_gate", "mlp_bias"),
        *_linear("mlp/up", "D", "F", "mlp.up_proj", "ffn_up", "mlp_bias"),
        *_linear("mlp/down", "F", "D", "mlp.down_proj", "ffn_down", "mlp_bias"),
        Weight("final_norm/scale", ("D",), "model.norm.weight", "output_norm.weight"),
        Weight("head/kernel", ("D", "V"), "lm_head.weight", "output.weight", transpose=True, when="!tied"),
    ),
    copies=(("lm_head.weight", "embed/embedding"),),
    ignored=("model.layers.{layer}.self_attn.rotary_emb.inv_freq",),
)

FAMILIES = (LLAMA,)


def family_named(name: str) -> Family:
    """The family of a DecoderConfig."""
    for family in FAMILIES:
        if family.name == name:
            return family
    raise ValueError(f"family {name!r} is not known; known are {', '.join(family.name for family in FAMILIES)}")


def family_for(form: str, architecture: str, origin: str) -> Family:
    """The family that a file names. `form` is "hf" or "gguf"; `origin` is said in the error.

    Raises:
        ValueError: none has this architecture.
    """
    for family in FAMILIES:
        if architecture in getattr(family, form):
            return family
    known = ", ".join(name for family in FAMILIES for name in getattr(family, form))
    raise ValueError(f"{origin}: architecture {architecture!r} is not supported; supported are {known}")
