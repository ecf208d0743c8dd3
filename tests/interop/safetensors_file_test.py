"""safetensors: the same values as the package reads, bfloat16, rows, and damaged files."""

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from peftjax.interop.safetensors_file import open_safetensors


@pytest.fixture
def file(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=(5, 3)).astype(dtype) for name, dtype in [("a", "f4"), ("b", "f2"), ("c", "f8")]}
    save_file(arrays | {"scalarless": np.zeros((0, 4), np.float32)}, tmp_path / "x.safetensors", metadata={"format": "pt"})
    return tmp_path / "x.safetensors"


def test_values_are_those_that_the_package_reads(file):
    sources, oracle = open_safetensors(file), load_file(file)
    assert sources.keys() == oracle.keys()
    for name, array in oracle.items():
        assert sources[name].shape == array.shape and sources[name].problem is None
        np.testing.assert_array_equal(sources[name].read(slice(None)), array)
    np.testing.assert_array_equal(sources["a"].read(slice(1, 3)), oracle["a"][1:3])
    np.testing.assert_array_equal(sources["a"].read(np.array([4, 0])), oracle["a"][[4, 0]])


def test_bfloat16(tmp_path):
    array = np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16) / 7
    save_file({"w": array}, tmp_path / "x.safetensors")
    read = open_safetensors(tmp_path / "x.safetensors")["w"].read(slice(None))
    assert read.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(read, array)


def test_a_truncated_file_names_the_tensors_that_are_cut(file):
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    problems = {name: source.problem for name, source in open_safetensors(file).items() if source.problem}
    assert len(problems) == 1 and "x.safetensors is truncated: it needs data bytes" in next(iter(problems.values()))
    for length in (0, 5, 30):
        file.write_bytes(content[:length])
        with pytest.raises(ValueError, match="truncated or no safetensors file"):
            open_safetensors(file)


def test_other_contents_are_refused(file, tmp_path):
    file.write_bytes(len(b"no json").to_bytes(8, "little") + b"no json")
    with pytest.raises(ValueError, match="header is not JSON"):
        open_safetensors(file)
    save_file({"w": np.zeros(3, np.int32)}, tmp_path / "y.safetensors")
    assert "dtype I32 is not supported" in open_safetensors(tmp_path / "y.safetensors")["w"].problem
