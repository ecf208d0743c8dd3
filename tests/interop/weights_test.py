"""Checks of tensor names and shapes, the order of rotary rows, and the reading into stacked leaves."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_checkpoint
import tiny_gguf
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from peftjax.interop import hf, weights
from peftjax.nn.tree import flatten

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture
def opened(tmp_path):
    tiny_checkpoint.write(tmp_path)
    return hf.open_directory(tmp_path)


def check(opened, sources):
    weights.check(opened.config, opened.family, "hf", sources, "the checkpoint")


@given(st.integers(1, 5), st.integers(1, 6).map(lambda half: 2 * half))
def test_rotary_order_undoes_llama_cpps_permutation(heads, head_size):
    rows = np.arange(heads * head_size * 3).reshape(-1, 3)
    np.testing.assert_array_equal(tiny_gguf.permute(rows, heads)[weights.rotary_order(heads, head_size)], rows)


def test_rotary_order_by_hand():
    assert weights.rotary_order(2, 6).tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]


def test_a_good_checkpoint_passes_and_every_fault_is_listed_at_once(opened):
    check(opened, opened.sources)
    sources = dict(opened.sources)
    layer = "model.layers.1."
    sources[layer + "self_attn.q_project.weight"] = sources.pop(layer + "self_attn.q_proj.weight")
    sources[layer + "mlp.up_proj.weight"] = weights.Source((64, 31), None)
    sources["model.norm.weight"] = dataclasses.replace(sources["model.norm.weight"], problem="truncated: 3 bytes")
    sources["visual.patch.weight"] = weights.Source((1,), None)
    with pytest.raises(ValueError) as error:
        check(opened, sources)
    text = str(error.value)
    assert "the checkpoint does not hold the llama weights" in text
    assert f"missing   {layer}self_attn.q_proj.weight [24, 32] for blocks/attn/q/kernel; nearest: {layer}self_attn.q_project" in text
    assert f"extra     {layer}self_attn.q_project.weight [24, 32]; nearest: {layer}self_attn.q_proj.weight" in text
    assert f"misshapen {layer}mlp.up_proj.weight: found [64, 31], blocks/mlp/up/kernel wants [64, 32]" in text
    assert "unreadable model.norm.weight: truncated: 3 bytes" in text
    assert "extra     visual.patch.weight [1]" in text
    assert len(text.splitlines()) == 6


def test_buffers_without_information_are_let_through_under_their_exact_names(opened):
    buffer = weights.Source((3,), None)
    check(opened, opened.sources | {"model.layers.2.self_attn.rotary_emb.inv_freq": buffer})
    with pytest.raises(ValueError, match="extra"):
        check(opened, opened.sources | {"model.layers.3.self_attn.rotary_emb.inv_freq": buffer})


def test_a_tied_checkpoint_may_repeat_the_embedding_but_only_unchanged(opened):
    embedding = opened.sources["model.embed_tokens.weight"]
    check(opened, opened.sources | {"lm_head.weight": embedding})
    with pytest.raises(ValueError, match=r"misshapen lm_head.weight: found \[2, 2\]"):
        check(opened, opened.sources | {"lm_head.weight": weights.Source((2, 2), None)})
    params = {"embed/embedding": embedding.read(slice(None))}
    weights.check_copies(opened.family, {"lm_head.weight": embedding}, params, "x")
    other = weights.Source(embedding.shape, lambda rows: embedding.read(rows) + 1)
    with pytest.raises(ValueError, match="lm_head.weight differs from embed/embedding"):
        weights.check_copies(opened.family, {"lm_head.weight": other}, params, "x")


def test_leaves_do_not_depend_on_block_size_or_threads(tmp_path, monkeypatch):
    params = flatten(tiny_checkpoint.write(tmp_path, tiny_checkpoint.BIASED))
    opened = hf.open_directory(tmp_path)
    for rows_of, threads in ((1, 1), (100, 3), (1 << 20, 2)):
        monkeypatch.setattr(weights, "_AT_ONCE", rows_of)
        found = dict(weights.leaves(opened.config, opened.family, "hf", opened.sources, threads=threads))
        assert found.keys() == params.keys()
        for path in params:
            np.testing.assert_array_equal(found[path], params[path])


@pytest.mark.parametrize("name", ["phi3", "gpt2"])
def test_parts_of_a_tensor_are_read_apart_whatever_the_block_size(name, monkeypatch):
    opened = hf.open_directory(GOLDEN / name)
    tensors = load_file(GOLDEN / name / "model.safetensors")
    fused = "model.layers.1.self_attn.qkv_proj.weight" if name == "phi3" else "transformer.h.1.attn.c_attn.weight"
    whole = tensors[fused].T if name == "phi3" else tensors[fused]
    for rows_of, threads in ((1, 1), (100, 3), (1 << 20, 2)):
        monkeypatch.setattr(weights, "_AT_ONCE", rows_of)
        found = dict(weights.leaves(opened.config, opened.family, "hf", opened.sources, threads=threads))
        parts = [found[f"blocks/attn/{part}/kernel"][1] for part in "qkv"]
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
        if name == "gpt2":
            biases = [found[f"blocks/attn/{part}/bias"][1] for part in "qkv"]
            np.testing.assert_array_equal(np.concatenate(biases), tensors["transformer.h.1.attn.c_attn.bias"])


def test_a_fault_of_a_fused_tensor_names_all_that_it_holds():
    opened = hf.open_directory(GOLDEN / "phi3")
    name = "model.layers.0.mlp.gate_up_proj.weight"
    with pytest.raises(ValueError, match=r"found \[95, 32\], blocks/mlp/gate/kernel, blocks/mlp/up/kernel wants \[96, 32\]"):
        check(opened, opened.sources | {name: weights.Source((95, 32), None)})
    without = {key: value for key, value in opened.sources.items() if key != name}
    with pytest.raises(ValueError, match=r"missing   model.layers.0.mlp.gate_up_proj.weight \[96, 32\] for blocks/mlp/gate/kernel, "):
        check(opened, without)


def test_a_format_that_has_no_place_for_a_weight_is_named(opened):
    norm = dataclasses.replace(opened.family.weights[1], gguf=None)
    family = dataclasses.replace(opened.family, weights=(norm,))
    with pytest.raises(ValueError, match="homeless  blocks/attn_norm/scale: the format gguf has no place for it"):
        weights.check(opened.config, family, "gguf", {}, "x")


def test_what_a_format_has_added_is_taken_off(opened):
    norm = next(weight for weight in opened.family.weights if weight.path == "final_norm/scale")
    family = dataclasses.replace(opened.family, weights=(dataclasses.replace(norm, gguf=weights.Stored("n", offset=1.0)),))
    source = weights.Source((32,), lambda rows: np.arange(1, 33, dtype=np.float32)[rows])
    found = dict(weights.leaves(opened.config, family, "gguf", {"n": source}))
    np.testing.assert_array_equal(found["final_norm/scale"], np.arange(32))


def test_reading_errors_reach_the_caller(opened):
    def fail(rows):
        raise OSError("the disk is gone")

    name = "model.norm.weight"
    sources = opened.sources | {name: dataclasses.replace(opened.sources[name], read=fail)}
    with pytest.raises(OSError, match="the disk is gone"):
        list(weights.leaves(opened.config, opened.family, "hf", sources))


@pytest.mark.parametrize("shape", [(), (5,), (1000, 33), (0, 4)])
def test_a_device_takes_aligned_memory_over_without_a_copy(shape):
    array = weights.aligned_empty(shape, np.float32)
    array[...] = 1
    assert array.shape == shape
    if array.size:  # numpy gives an empty array any address
        assert array.ctypes.data % 64 == 0
        assert jax.device_put(array).unsafe_buffer_pointer() == array.ctypes.data
