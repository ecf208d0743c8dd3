"""Roles are what the nodes say: matrices decay, vectors do not, and the output factor of LoRA is the fast one."""

import jax
from tiny import BIASED, base

from peftjax.nn.tree import flatten
from peftjax.peft.attach import attach
from peftjax.peft.bottleneck import bottleneck
from peftjax.peft.lora import lora
from peftjax.peft.parts import full, head_only
from peftjax.peft.roles import roles
from peftjax.peft.tokens import trainable_tokens

KEY = jax.random.key(0)


def role_of(*methods):
    params = attach(base(BIASED), methods, KEY)
    assert jax.tree.structure(roles(params)) == jax.tree.structure(params)
    assert set(jax.tree.leaves(roles(params))) <= {"matrix", "fast", "vector"}
    return flatten(roles(params))


def test_the_factors_of_a_lora():
    found = role_of(
        lora(rank=2, targets=["q_proj", "embed_tokens"], dropout=0.1), lora(rank=2, targets="q_proj", name="tone")
    )
    for place in ("blocks/attn/q/kernel/default", "blocks/attn/q/kernel/tone", "embed/embedding/default"):
        assert found[f"{place}/a"] == "matrix" and found[f"{place}/b"] == "fast" and found[f"{place}/scale"] == "vector"


def test_the_parts_of_a_bottleneck():
    found = role_of(bottleneck(size=3, norm="both", scale="learned"))
    leaves = {path.rpartition("/")[2]: role for path, role in found.items() if path.startswith("blocks/mlp_out/")}
    assert {name for name, role in leaves.items() if role == "matrix"} == {"down", "up"}
    assert set(leaves.values()) == {"matrix", "vector"} and leaves["scale"] == leaves["norm_after"] == "vector"


def test_trained_kernels_decay_and_trained_norms_and_biases_do_not():
    found = role_of(full())
    for path, role in found.items():
        kernel = any(f"/{name}" in path for name in ("kernel", "embedding"))
        assert role == ("matrix" if kernel else "vector"), path
    assert {"blocks/attn/q/bias/default/value", "final_norm/scale/default/value"} < set(found)


def test_token_rows_decay_and_a_bias_behind_a_lora_does_not():
    found = role_of(trainable_tokens(ids=(3, 5)), lora(rank=2, targets="q_proj", lora_bias=True))
    assert found["embed/embedding/default/rows"] == "matrix"
    assert found["blocks/attn/q/kernel/default/bias"] == "vector"


def test_what_stands_on_something_trained_keeps_its_role():
    found = role_of(head_only(name="head"), lora(rank=2, targets="lm_head"))
    assert found["head/kernel/default/b"] == "fast" and found["head/kernel/head/value"] == "matrix"
