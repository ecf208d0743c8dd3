"""Methods that make room for what stands somewhere: attached, they put the same there."""

import jax
import numpy as np
import pytest
from tiny import TIED, base

from peftjax.peft.attach import attach
from peftjax.peft.changes import keys
from peftjax.peft.dense_delta import DenseDelta, dense_delta
from peftjax.peft.lora import LoRA, lora
from peftjax.peft.rules import Rule, methods_of
from peftjax.peft.select import parameters


def found(params):
    """The rules of what is attached; ranks by the rows that are used."""
    rules = {}
    for target in parameters(params, ("kernel", "embedding")):
        value = target.value
        for layer, key in keys(target.path, value.shape[0]):
            if isinstance(value, LoRA):
                a, b, scale = (np.asarray(leaf if layer is None else leaf[layer]) for leaf in (value.a, value.b, value.scale))
                rank = int((a.any(axis=-1) | b.any(axis=-1)).sum())
                rules[key] = Rule(lora, rank, round(float(scale), 5), value.bias is not None)
            elif isinstance(value, DenseDelta):
                rules[key] = Rule(dense_delta)
    return rules


@pytest.mark.parametrize(("rules", "segments"), [
    ({"blocks/0/attn/q/kernel": Rule(lora, 4), "blocks/1/attn/q/kernel": Rule(lora, 4)}, ()),
    ({"blocks/0/attn/q/kernel": Rule(lora, 4), "blocks/1/attn/q/kernel": Rule(lora, 2), "embed/embedding": Rule(lora, 3, 0.5)}, ()),
    ({"blocks/0/attn/q/kernel": Rule(lora, 4, 2.0), "blocks/1/attn/q/kernel": Rule(lora, 2, 2.0), "head/kernel": Rule(lora, 2)}, ()),
    ({"blocks/1/attn/q/kernel": Rule(lora, 1), "blocks/0/mlp/up/kernel": Rule(dense_delta), "blocks/1/mlp/up/kernel": Rule(dense_delta)},
     (1, 1)),
    ({"blocks/0/attn/k/kernel": Rule(lora, 2, biased=True), "blocks/1/attn/k/kernel": Rule(lora, 3, biased=True),
      "blocks/0/attn/v/kernel": Rule(lora, 2), "blocks/1/attn/v/kernel": Rule(lora, 2)}, ()),
])
def test_attached_they_put_the_same_there(rules, segments):
    methods = methods_of(rules, 2, "tone")
    assert found(attach(base(TIED, segments), methods, jax.random.key(0))) == rules
    assert all(method.name == "tone" for method in methods)


def test_one_method_covers_what_one_can():
    rules = {f"blocks/{layer}/{module}/kernel": Rule(lora, 4) for layer in (0, 1) for module in ("attn/q", "mlp/up")}
    (method,) = methods_of(rules, 2, "n")
    assert method == lora(rank=4, targets=("q_proj", "up_proj"), name="n")
