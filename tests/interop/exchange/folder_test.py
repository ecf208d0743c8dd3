"""Files of an adapter directory: whole or not at all, and errors that say what is there instead."""

import json

import numpy as np
import pytest

from peftjax.interop.exchange.folder import open_tensors, write_tensors
from peftjax.interop.json_file import read_json, write_json
from peftjax.interop.safetensors_file import open_safetensors


def test_json_there_and_back(tmp_path):
    write_json(tmp_path / "x.json", {"name": "Tür", "list": [1, None, 0.5]})
    assert read_json(tmp_path / "x.json") == {"name": "Tür", "list": [1, None, 0.5]}
    assert (tmp_path / "x.json").read_text("utf-8").endswith("}\n") and "Tür" in (tmp_path / "x.json").read_text("utf-8")


def test_json_that_cannot_be_written_leaves_what_was_there(tmp_path):
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(ValueError):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert read_json(tmp_path / "x.json") == {"a": 1} and [file.name for file in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b'{"a": 1', "x.json is not JSON"), (b"\xff\xfe", "x.json is not JSON"), (b"[1]", "x.json holds a list, not an object")],
)
def test_damaged_json_is_refused(content, message, tmp_path):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_json(tmp_path / "x.json")


def test_a_missing_file_is_answered_with_what_is_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no x.json \(found: nothing\)"):
        read_json(tmp_path / "x.json")
    (tmp_path / "french").mkdir()
    write_json(tmp_path / "french" / "x.json", {})
    with pytest.raises(FileNotFoundError, match=r"\(found: french\); there is one in french: name that folder"):
        read_json(tmp_path / "x.json")
    with pytest.raises(FileNotFoundError, match="has no x.json"):
        read_json(tmp_path / "nowhere" / "x.json")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_floats_are_written_in_the_dtype_and_whole_numbers_as_they_are(dtype, tmp_path):
    arrays = {"b": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3) / 7), "ids": np.array([3, 5], np.int32)}
    write_tensors(tmp_path / "x.safetensors", arrays, dtype, {"base": "abc"})
    found = open_safetensors(tmp_path / "x.safetensors", whole_numbers=True)
    values = found["b"].read(slice(None))
    assert str(values.dtype) == dtype and str(found["ids"].read(slice(None)).dtype) == "int32"
    np.testing.assert_array_equal(values.astype(np.float32), arrays["b"].astype(values.dtype).astype(np.float32))
    header = (tmp_path / "x.safetensors").read_bytes()
    metadata = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["__metadata__"]
    assert metadata == {"format": "pt", "base": "abc"}


def test_the_bytes_do_not_depend_on_the_order(tmp_path):
    arrays = {name: np.full(3, number, np.float32) for number, name in enumerate("cab")}
    write_tensors(tmp_path / "1", arrays, "float32")
    write_tensors(tmp_path / "2", dict(reversed(arrays.items())), "float32")
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_pickles_are_refused_and_safetensors_beside_them_taken(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no a.safetensors \(found: nothing\)"):
        open_tensors(tmp_path, "a.safetensors", "a.bin")
    (tmp_path / "a.bin").write_bytes(b"cos\nsystem\n")
    with pytest.raises(ValueError, match=r"a.bin is a pickle, which can run any code.*torch.load\('a.bin', weights_only=True\)"):
        open_tensors(tmp_path, "a.safetensors", "a.bin")
    write_tensors(tmp_path / "a.safetensors", {"x": np.ones(2, np.float32)}, "float32")
    assert list(open_tensors(tmp_path, "a.safetensors", "a.bin")) == ["x"]


def test_damaged_tensors_are_refused(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"\x10")
    with pytest.raises(ValueError, match="a.safetensors"):
        open_tensors(tmp_path, "a.safetensors", "a.bin")
