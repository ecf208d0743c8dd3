"""The architecture of an encoder as data, beside `peftjax.models.config` for decoders."""

import dataclasses

from peftjax.nn.layers import ACTIVATIONS


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Sizes and switches of one encoder.

    Attributes:
        vocab_size: V, rows of the embedding.
        width: D, size of the residual stream.
        layers: L, number of blocks.
        heads: H, attention heads; divides `width`.
        ff: F, inner size of the MLP.
        max_length: P, rows of the position table.
        position_offset: row of the table that the first token takes (RoBERTa: padding id + 1).
        types: rows of the token type table (BERT: 2, the first and the second text).
        norm_eps: epsilon inside the root of layer norm.
        activation: non-linearity of the MLP, a name in `peftjax.nn.layers.ACTIVATIONS`.
        pooled: the base has a dense layer before its head.
        labels: names of the labels of the base's own classification head, in the order of its logits; () is a base without one.
        family: name of the table of weight names that this base was read with.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    ff: int
    max_length: int = 512
    position_offset: int = 0
    types: int = 2
    norm_eps: float = 1e-12
    activation: str = "gelu"
    pooled: bool = True
    labels: tuple[str, ...] = ()
    family: str = "bert"

    # What tables of weights and readers ask of any architecture.
    tied = False
    window = None
    embedding_scale = 1.0

    def __post_init__(self):
        if self.layers < 1:
            raise ValueError(f"an encoder of {self.layers} layers has none")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation {self.activation!r} is none of {', '.join(ACTIVATIONS)}")
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads cannot share a width of {self.width} evenly")
        if self.position_offset >= self.max_length:
            raise ValueError(f"positions begin at row {self.position_offset} of a table of {self.max_length}")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels are not all different: {', '.join(self.labels)}")

    @property
    def head_size(self) -> int:
        """K, size of one head."""
        return self.width // self.heads

    @property
    def kv_heads(self) -> int:
        """Key/value heads: as many as query heads."""
        return self.heads

    @property
    def bare_pool(self) -> bool:
        """A dense layer, and no head behind it."""
        return self.pooled and not self.labels

    @property
    def longest(self) -> int:
        """Tokens that a text may have, special ones included."""
        return self.max_length - self.position_offset
