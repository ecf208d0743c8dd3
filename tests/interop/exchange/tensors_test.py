"""Rows of exchange tables read both ways, and fused modules as products."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from peftjax.interop.exchange.tensors import Field, Tensor, fuse, nbytes, read_float32, split_key, trimmed
from peftjax.interop.safetensors_file import open_safetensors


def values(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("row", "shape"),
    [
        (Tensor("a", "lora_A.weight", ("R", "in")), (3, 5)), (Tensor("b", "lora_B.weight", ("out", "R"), flip=True), (7, 3)),
        (Tensor("bias", "bias", ("out",)), (7,)), (Tensor("m", "m.weight", ("out", "1")), (7, 1)),
    ],
)  # fmt: skip
def test_there_and_back_is_the_same_tensor(row, shape):
    theirs = values(*shape)
    ours = row.ours(theirs)
    assert ours.flags.c_contiguous and row.theirs(ours).flags.c_contiguous
    np.testing.assert_array_equal(row.theirs(ours), theirs)
    if row.flip:
        np.testing.assert_array_equal(ours, theirs.T)


def test_the_parts_of_a_fused_tensor_are_its_rows_in_order():
    b, a, bounds = Tensor("b", "", ("out", "R"), flip=True), Tensor("a", "", ("R", "in")), [(0, 4), (4, 6), (6, 8)]
    theirs = values(8, 3)
    parts = [b.ours(theirs, part) for part in bounds]
    assert [part.shape for part in parts] == [(3, 4), (3, 2), (3, 2)]
    np.testing.assert_array_equal(b.theirs(np.concatenate(parts, axis=1)), theirs)
    np.testing.assert_array_equal(a.ours(values(3, 5), (4, 6)), values(3, 5))  # without an output axis it is shared


def test_shapes_are_those_that_are_known():
    assert Tensor("m", "", ("out", "1", "R")).shape({"out": 7}) == (7, 1, None)


def test_a_key_is_split_at_the_longest_suffix():
    suffixes = ["weight", "lora_A.weight", "bias", "lora_embedding_A"]
    assert split_key("model.q.lora_A.weight", suffixes) == ("model.q", "lora_A.weight")
    assert split_key("model.norm.weight", suffixes) == ("model.norm", "weight")
    assert split_key("weight", suffixes) == ("", "weight")
    assert split_key("model.embed.lora_embedding_A", suffixes) == ("model.embed", "lora_embedding_A")
    assert split_key("model.unbias", suffixes) is None


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_fused_factors_have_the_product_of_their_parts(data):
    widths = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    there = data.draw(st.lists(st.booleans(), min_size=len(widths), max_size=len(widths)).filter(any))
    shared = data.draw(st.booleans())
    ends = np.cumsum(widths)
    parts, wanted = [], np.zeros((5, ends[-1]), np.float32)
    for number, (width, end, is_there) in enumerate(zip(widths, ends, there, strict=True)):
        if not is_there:
            continue
        rank = 2 if shared else data.draw(st.integers(1, 3))
        scale = np.float32(0.5 if shared else data.draw(st.sampled_from([0.0, 0.25, 1.5])))
        part = {"a": values(rank, 5, seed=0 if shared else number), "b": values(rank, width, seed=10 + number), "scale": scale}
        parts.append(((int(end - width), int(end)), part))
        wanted[:, end - width : end] = scale * part["a"].T @ part["b"]
    fused = fuse(parts, int(ends[-1]))
    np.testing.assert_allclose(fused["scale"] * fused["a"].T @ fused["b"], wanted, rtol=1e-5, atol=1e-6)
    if shared and all(there):  # as an import leaves it: the original again, not larger
        np.testing.assert_array_equal(fused["a"], parts[0][1]["a"])
        np.testing.assert_array_equal(fused["b"], np.concatenate([part["b"] for _, part in parts], axis=1))


def test_rows_that_pad_a_layer_to_its_stack_are_no_rank_of_it():
    a, b = values(4, 5), values(4, 3)
    a[2:], b[2:] = 0, 0
    found = trimmed({"a": a, "b": b, "scale": np.float32(2)})
    assert found["a"].shape == (2, 5) and found["b"].shape == (2, 3) and found["scale"] == 2
    at_start = trimmed({"a": values(3, 5), "b": np.zeros((3, 3), np.float32)})
    assert at_start["a"].shape == (3, 5)  # B is zero before training, A is not
    assert trimmed({"a": a * 0, "b": b * 0})["a"].shape == (1, 5)  # there is no LoRA of rank 0


def test_config_fields_there_and_back():
    plain, named = Field("lora_dropout", "dropout", 0.0), Field("act", "activation", "relu", {"relu": "relu", "swish": "silu"})
    assert plain.read({"lora_dropout": 0.1}) == 0.1 == plain.write(0.1)
    assert plain.read({}) == plain.read({"lora_dropout": None}) == 0.0
    assert named.read({}) == "relu" and named.read({"act": "swish"}) == "silu" and named.write("silu") == "swish"
    assert named.read({"act": "maxout"}) is None is named.write("maxout")


def test_tensors_are_read_in_float32_with_the_name_of_their_dtype(tmp_path):
    save_file({"half": values(2, 3).astype(np.float16), "one": np.float32([2.5]).reshape(())}, tmp_path / "x.safetensors")
    sources = open_safetensors(tmp_path / "x.safetensors")
    array, dtype = read_float32("half", sources["half"], "x")
    assert dtype == "float16" and array.dtype == np.float32
    np.testing.assert_array_equal(array, values(2, 3).astype(np.float16).astype(np.float32))
    scalar, dtype = read_float32("one", sources["one"], "x")
    assert scalar.shape == () and scalar == 2.5 and dtype == "float32"
    broken = dataclasses.replace(sources["half"], problem="it ends early")
    with pytest.raises(ValueError, match="my-folder: half cannot be read: it ends early"):
        read_float32("half", broken, "my-folder")


def test_bytes_are_those_of_all_arrays():
    assert nbytes({"a": values(2, 3), "b": np.zeros(5, np.float16)}) == 34
