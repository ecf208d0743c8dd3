"""LoRA's relatives go into formats that do not know them as the plain LoRA that they are: read again, the model is the same."""

import jax
import numpy as np
import pytest
from golden_bases import base, forward
from tiny import moved

from peftjax.interop.exchange.adapter import extract, insert
from peftjax.interop.exchange.adapterhub_read import read_adapterhub
from peftjax.interop.exchange.adapterhub_write import write_adapterhub
from peftjax.interop.exchange.gguf_lora import gguf_lora_content
from peftjax.interop.exchange.load import adapt
from peftjax.interop.exchange.peft_read import read_peft
from peftjax.interop.exchange.peft_write import write_peft
from peftjax.interop.exchange.plain_form import in_plain_form
from peftjax.nn.tree import get
from peftjax.peft import adalora, attach, lora, merge

ON = ("v_proj", "down_proj")
FOUND = {"tokens": np.arange(12).reshape(2, 6)}
METHODS = {
    "PiSSA": (lora(rank=2, alpha=3, init="pissa", targets=ON), 4),
    "MiLoRA": (lora(rank=2, alpha=3, init="milora", targets=ON), 4),
    "OLoRA by rsLoRA": (lora(rank=2, rslora=True, init="olora", targets=ON, rank_pattern={"blocks/1/.*": 3}), 4),
    "LoRA-FA": (lora(rank=3, alpha=2, freeze_a=True, lora_bias=True, targets=ON), 3),
    "AdaLoRA": (adalora(rank=3, target_rank=2, alpha=4, targets=ON), 3),
}


def adapted(name):
    """(tree, methods, adapter) on the tiny Llama."""
    method = METHODS[name][0]
    params = moved(attach(base("llama").params, [method], jax.random.key(0)))
    return params, extract(params, [method])


def merged_logits(params):
    return forward(base("llama").config, merge(params), FOUND)


@pytest.mark.parametrize("name", METHODS)
def test_read_again_from_hf_peft_the_model_is_the_same(name, tmp_path):
    on, (params, adapter) = base("llama"), adapted(name)
    write_peft(tmp_path, adapter, on.config)
    (method,) = (there := adapt(on, read_peft(tmp_path, on.config))).methods
    assert method.rank == METHODS[name][1] and type(get(there.params, "blocks/attn/v/kernel")).__name__ in ("LoRA", "AdaLoRA")
    assert np.abs(merged_logits(params) - merged_logits(on.params)).max() > 0.01
    np.testing.assert_allclose(merged_logits(there.params), merged_logits(params), atol=1e-5)


@pytest.mark.parametrize("name", ["PiSSA", "AdaLoRA"])
def test_read_again_from_adapterhub_and_gguf_the_model_is_the_same(name, tmp_path):
    on, (params, adapter) = base("llama"), adapted(name)
    write_adapterhub(tmp_path, adapter, on.config)
    there = adapt(on, read_adapterhub(tmp_path, on.config, on.params))
    assert there.methods[0].rank == METHODS[name][1]
    np.testing.assert_allclose(merged_logits(there.params), merged_logits(params), atol=1e-5)
    tensors, alpha = gguf_lora_content(adapter, on.config)
    for layer, delta in enumerate(np.asarray(get(params, "blocks/attn/v/kernel").delta())):
        a, b = (tensors[f"blk.{layer}.attn_v.weight.lora_{factor}"] for factor in "ab")
        np.testing.assert_allclose(alpha / len(a) * (b @ a).T, delta, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_the_methods_make_room_for_the_pieces_at_their_scales(name):
    """Attached anew they give the scales that the pieces have, which they need not be told."""
    _, adapter = adapted(name)
    plain = in_plain_form(adapter)
    assert {piece.kind for piece in plain.pieces.values()} == {"LoRA"} and in_plain_form(plain) is plain
    held = insert(base("llama").params, plain)
    fresh = attach(base("llama").params, plain.methods, jax.random.key(0))
    for path in ("blocks/attn/v/kernel", "blocks/mlp/down/kernel"):
        assert get(held, path).a.shape == get(fresh, path).a.shape
        np.testing.assert_allclose(get(held, path).scale, get(fresh, path).scale, rtol=1e-6)
    assert in_plain_form(adapter, but=("AdaLoRA",)).pieces.keys() == adapter.pieces.keys()
