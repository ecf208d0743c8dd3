"""What a table of weight names is made of: one `Family` per architecture, one `Weight` per parameter, one `Stored` per format.

    Weight("blocks/attn/q/kernel", ("D", "HK"),
           hf=Stored("model.layers.{layer}.self_attn.q_proj.weight", transpose=True),
           gguf=Stored("blk.{layer}.attn_q.weight", transpose=True, rotary="heads"))

reads as: our [L, D, H*K] is, layer by layer, the transpose of Hugging Face's (H*K, D); GGUF holds the same rows with rotary
pairs interleaved within each of the `config.heads` heads. Axes that may occur in `shape` are the keys of `AXES`.

Names and layouts are data: a reader, a writer and an exchange of adapters all go by the same table.
"""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

FORMATS = ("hf", "gguf")

# Size of each axis letter in a config; HK and GK are all query and all key/value heads in a row, Y token types, C labels of a classifier.
AXES = {
    "V": lambda config: config.vocab_size,
    "D": lambda config: config.width,
    "F": lambda config: config.ff,
    "HK": lambda config: config.heads * config.head_size,
    "GK": lambda config: config.kv_heads * config.head_size,
    "K": lambda config: config.head_size,
    "P": lambda config: config.max_length,
    "Y": lambda config: config.types,
    "C": lambda config: len(config.labels),
}


@dataclasses.dataclass(frozen=True)
class Stored:
    """How one format keeps a weight.

    Attributes:
        name: of the tensor; `{layer}` stands for the layer's number.
        transpose: kept as [out, in] where ours is [in, out].
        part: (index, axes): theirs is a concatenation, along its output axis, of parts with these axis letters, and ours is
            the part `index`. A fused qkv is (0, ("HK", "GK", "GK")) for q, a fused gate_up (1, ("F", "F")) for up.
        rotary: rows have their rotary pairs interleaved, within as many heads as this field of the config says.
        offset: theirs minus ours.
    """

    name: str
    transpose: bool = False
    part: tuple[int, tuple[str, ...]] | None = None
    rotary: str | None = None
    offset: float = 0.0

    def bounds(self, config: Any) -> tuple[int, int, int] | None:
        """(start, stop, size of the whole) of our part along their output axis, or None where the tensor is ours alone."""
        if self.part is None:
            return None
        index, axes = self.part
        sizes = [AXES[axis](config) for axis in axes]
        return sum(sizes[:index]), sum(sizes[: index + 1]), sum(sizes)


@dataclasses.dataclass(frozen=True)
class Weight:
    """One parameter of ours and where other formats keep it.

    Attributes:
        path: ours, `blocks/attn/q/kernel`; paths under `blocks/` are stacked over layers.
        shape: our axes without the layer axis, as letters.
        hf, gguf: how these formats keep it; None where one does not have it.
        when: field of the config that must be true for the weight to exist; "!field" for one that must be false.
    """

    path: str
    shape: tuple[str, ...]
    hf: Stored | None
    gguf: Stored | None
    when: str | None = None

    @property
    def stacked(self) -> bool:
        """Whether there is one for each layer."""
        return self.path.startswith("blocks/")

    def exists(self, config: Any) -> bool:
        """Whether a model of this config has it."""
        if self.when is None:
            return True
        return not getattr(config, self.when[1:]) if self.when.startswith("!") else bool(getattr(config, self.when))

    def sizes(self, config: Any) -> tuple[int, ...]:
        """Our shape of one layer."""
        return tuple(AXES[axis](config) for axis in self.shape)

    def stored(self, form: str) -> Stored | None:
        """How `form`, one of FORMATS, keeps it."""
        return {"hf": self.hf, "gguf": self.gguf}[form]

    def stored_sizes(self, form: str, config: Any) -> tuple[int, ...]:
        """Shape of the tensor that holds it in `form`, with the other parts of a concatenation."""
        stored, sizes = self.stored(form), self.sizes(config)
        if stored.part is not None:
            sizes = (*sizes[:-1], stored.bounds(config)[2])
        return sizes[::-1] if stored.transpose else sizes

    def names(self, form: str, config: Any) -> list[str]:
        """Names of the tensors it is read from, in the order of layers."""
        template = self.stored(form).name
        return [template.format(layer=layer) for layer in range(config.layers)] if self.stacked else [template]


@dataclasses.dataclass(frozen=True)
class Family:
    """An architecture as other formats know it.

    Attributes:
        name: the value of the config's field `family`.
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

    def present(self, config: Any) -> Iterator[Weight]:
        """The weights that a model of this config has."""
        return (weight for weight in self.weights if weight.exists(config))


class Module(NamedTuple):
    """The Hugging Face module that holds one of ours.

    name: its path, `model.layers.7.self_attn.q_proj`; part: (start, stop) of ours along its output axis, None where it is ours
    alone; conv1d: its weight is kept [in, out] (GPT-2's Conv1D), which PEFT calls fan_in_fan_out.
    """

    name: str
    part: tuple[int, int] | None
    conv1d: bool


def hf_modules(family: Family, config: Any) -> dict[str, Module]:
    """The Hugging Face module of each module of ours that carries weights.

    Ours are written with the layer's number: `blocks/7/attn/q`, `blocks/7/attn_norm`, `embed`, `final_norm`. `head` is listed
    on a tied base too, as adapters may be attached to it there. Of a model of text and images the names are those within the whole:
    `model.language_model.layers.7.self_attn.q_proj` and `lm_head`, as transformers 5 has them.
    """
    prefix = "model.language_model." if getattr(config, "multimodal", False) else "model."
    modules = {}
    for weight in family.weights:
        path, _, leaf = weight.path.rpartition("/")
        if leaf not in ("kernel", "embedding", "scale") or weight.hf is None or not (weight.exists(config) or path == "head"):
            continue
        bounds = weight.hf.bounds(config)
        conv1d = leaf == "kernel" and not weight.hf.transpose
        for layer, name in enumerate(weight.names("hf", config)):
            ours = path.replace("blocks/", f"blocks/{layer}/", 1) if weight.stacked else path
            theirs = re.sub(r"^model\.", prefix, name.removesuffix(".weight"))
            modules[ours] = Module(theirs, bounds and bounds[:2], conv1d)
    return modules
