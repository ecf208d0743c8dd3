"""A classification head on an encoder, trained, chosen, detached and saved with the adapter whose name it has.

    before  pool/kernel = P [D, D]                           head/kernel = W [D, C'], or absent
    after   pool/kernel = Trained(base=P, value=[D, D])      head/kernel = Trained(base=W or None, value=[D, C])

    logits = tanh(h pool + bias) head + bias        h: hidden state of the first token

| `hidden` | trained            | as in                                                                                     |
|---|---|---|
| True     | pool and head      | AdapterHub's classification head of two layers; RoBERTa's classifier in transformers      |
| False    | head               | BERT's classifier in transformers, behind the frozen pooler (1810.04805, 2018)            |

What is trained starts afresh: normal(0.02) kernels and zero biases. To go on training the base's own head, use `head_only()`.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from peftjax.nn.kernels import Kernel
from peftjax.nn.tree import get, put
from peftjax.peft.keys import per_layer
from peftjax.peft.parts import Trained

_STD = 0.02


@dataclasses.dataclass(frozen=True)
class classifier:  # noqa: N801 (configs read `classifier()`)
    """A fresh classification head.

    Attributes:
        labels: names of the labels in the order of the logits, or how many there are. A run fills in those of its data.
        hidden: train a dense layer before the head too; False reads the base's pooler where it has one, else the hidden state itself.
        name: of the adapter it belongs to.
    """

    labels: Sequence[str] | int = ()
    hidden: bool = True
    name: str = "default"

    def __post_init__(self):
        labels = self.labels
        labels = tuple(f"LABEL_{number}" for number in range(labels)) if isinstance(labels, int) else tuple(labels)
        object.__setattr__(self, "labels", labels)
        doubles = sorted({label for label in labels if labels.count(label) > 1})
        if doubles:
            raise ValueError(f"classifier labels are not all different: {', '.join(doubles)}")
        if len(labels) == 1:
            raise ValueError(f"classifier has one label, {labels[0]!r}; there is nothing to tell apart")

    def attach(self, params: dict, key: jax.Array) -> dict:
        """A new tree with the head in it.

        Raises:
            ValueError: no labels, a base that is no encoder, or an adapter of another kind where the head belongs.
        """
        if not self.labels:
            raise ValueError("classifier() has no labels; give their names, or how many there are")
        if get(params, "type_embed/embedding") is None:
            raise ValueError("classifier() needs an encoder (BERT, RoBERTa); this base has no type_embed/embedding")
        width = get(params, "embed/embedding").shape[-1]
        shapes = {"head/kernel": (width, len(self.labels)), "head/bias": (len(self.labels),)}
        if self.hidden:
            shapes |= {"pool/kernel": (width, width), "pool/bias": (width,)}
        for path, shape in shapes.items():
            there = get(params, path)
            if isinstance(there, Trained) and there.name == self.name:
                there = there.base  # of full(): a head of its own takes the place of a copy of the base's
            elif isinstance(there, Kernel) and not isinstance(there, Trained):
                raise ValueError(f"classifier() would hide {type(there).__name__} at {path}; name other targets there")
            if len(shape) == 1:
                value = jnp.zeros(shape)
            else:
                value = per_layer(lambda rng, s=shape: _STD * jax.random.normal(rng, s), key, f"{path}/{self.name}", None)
            params = put(params, path, Trained(there, value, self.name))
        return params
