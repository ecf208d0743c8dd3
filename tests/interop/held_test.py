"""Our own base directory: what is read is what was written, bit for bit, and what is not is noticed."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_checkpoint
from tiny import equal_trees

from peftjax.interop.base import load_base
from peftjax.interop.held import FILE, WEIGHTS, is_held, write_held
from peftjax.models.config import DecoderConfig
from peftjax.nn.tree import get
from peftjax.peft.attach import attach
from peftjax.peft.lora import lora

CONFIG = DecoderConfig(vocab_size=300, width=64, layers=3, heads=8, kv_heads=2, head_size=16, ff=192, tied=True)
RULES = {
    "q_proj": "int8", "k_proj": "fp8", "v_proj": "int4", "embed": "int8:32", "down_proj": {"kind": "nf4", "double": False},
    "all-linear": "nf4",
}  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf")
    tiny_checkpoint.write(folder, CONFIG)
    return folder


def write(folder, base):
    write_held(folder, base.config, base.params, base.tokenizer, dtype=base.dtype, quantise=base.quantise, origin={"base": base.uri})
    return folder


@pytest.mark.parametrize("quantise", [None, "nf4", RULES], ids=["dense", "nf4", "each"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_base_comes_back_bit_for_bit(quantise, dtype, source, tmp_path):
    base = load_base(source, dtype, quantise)
    again = load_base(write(tmp_path / "held", base), dtype)
    equal_trees(again.params, base.params)
    assert jax.tree.structure(again.params) == jax.tree.structure(base.params)
    assert (again.config, again.fingerprint, again.dtype, again.quantise) == (base.config, base.fingerprint, base.dtype, base.quantise)
    assert again.tokenizer.fingerprint == base.tokenizer.fingerprint
    assert load_base(tmp_path / "held", dtype, quantise).fingerprint == base.fingerprint
    assert is_held(tmp_path / "held") and not is_held(source)


def test_the_dense_part_may_be_wanted_in_another_dtype(source, tmp_path):
    write(tmp_path, load_base(source, quantise="nf4"))
    half, other = load_base(tmp_path, "bfloat16"), load_base(source, "bfloat16", "nf4")
    equal_trees(half.params, other.params)
    assert half.fingerprint == other.fingerprint and get(half.params, "blocks/attn/q/kernel").dtype == jnp.bfloat16


def test_other_rules_are_refused(source, tmp_path):
    write(tmp_path, load_base(source, quantise="nf4"))
    with pytest.raises(ValueError, match="is held all-linear nf4 already and cannot be held all-linear int8; leave `quantise` out"):
        load_base(tmp_path, quantise="int8")


def test_damage_is_noticed(source, tmp_path):
    write(tmp_path, load_base(source, quantise="nf4"))
    content = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match="does not hold what was written: fingerprint"):
        load_base(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(content[:-8])
    with pytest.raises(ValueError, match="is damaged: .* is truncated"):
        load_base(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(content)
    (tmp_path / FILE).write_text(json.dumps(json.loads((tmp_path / FILE).read_text()) | {"version": 9}))
    with pytest.raises(ValueError, match="version 9; this reads 'peftjax base', 1"):
        load_base(tmp_path)


def test_adapters_have_no_place_in_it(source, tmp_path):
    base = load_base(source)
    params = attach(base.params, [lora(rank=2, targets="q_proj")], jax.random.key(0))
    with pytest.raises(ValueError, match="blocks/attn/q/kernel carry adapters; merge or detach"):
        write_held(tmp_path / "x", base.config, params, base.tokenizer, dtype="float32")
    assert not (tmp_path / "x").exists()


def test_the_description_names_where_it_comes_from(source, tmp_path):
    base = load_base(source, quantise="embed=int8")
    about = json.loads((write(tmp_path, base) / FILE).read_text())
    assert about["origin"] == {"base": str(source)} and about["quantise"] == [["embed", "int8"]]
    assert about["nodes"] == {"embed/embedding": {"kind": "Int8", "fields": ["q", "scale"], "rows": True, "dtype": "float32"}}
    np.testing.assert_array_equal(about["fingerprint"], base.fingerprint)
