"""The GGUF container: what the gguf package's own reader finds, and damage that is named."""

import gguf
import numpy as np
import pytest
import tiny_gguf

from peftjax.interop.gguf_file import read_header

METADATA = {
    "general.name": "Ünïcode ▁ 中文",
    "test.flag": True,
    "test.count": 70000,
    "test.share": 0.25,
    "test.words": ["a", "", "é"],
    "test.types": [3, 1, 6],
    "test.scores": [-1.5, 0.0],
}


@pytest.fixture
def file(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    tiny_gguf.add_metadata(writer, METADATA)
    for number, name in enumerate(("small", "big")):
        writer.add_tensor(name, np.arange(6 * (number + 1), dtype=np.float32).reshape(-1, 3))
    tiny_gguf.finish(writer)
    return tmp_path / "x.gguf"


def test_everything_is_as_the_package_reads_it(file):
    ours, oracle = read_header(file), gguf.GGUFReader(file)
    assert ours.metadata == {key: f.contents() for key, f in oracle.fields.items() if not key.startswith("GGUF.")}
    assert METADATA.items() <= ours.metadata.items()
    assert list(ours.tensors) == [tensor.name for tensor in oracle.tensors]
    for tensor in oracle.tensors:
        info = ours.tensors[tensor.name]
        assert info.shape == tuple(tensor.shape[::-1].tolist())
        assert (info.type, info.offset, info.elements) == (tensor.tensor_type, tensor.data_offset, tensor.n_elements)


def test_another_alignment(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_custom_alignment(256)
    writer.add_tensor("w", np.ones((2, 2), np.float32))
    tiny_gguf.finish(writer)
    assert read_header(tmp_path / "x.gguf").tensors["w"].offset == gguf.GGUFReader(tmp_path / "x.gguf").tensors[0].data_offset


def test_a_header_cut_anywhere_is_an_error_that_names_the_file(file):
    content, end = file.read_bytes(), min(info.offset for info in read_header(file).tensors.values())
    for length in range(0, end - 32, 7):
        file.write_bytes(content[:length])
        with pytest.raises(ValueError, match="x.gguf is truncated or damaged: it ends at byte"):
            read_header(file)


def test_a_damaged_length_allocates_nothing(file):
    content = file.read_bytes()
    place = content.index(b"test.words") + len(b"test.words") + 8
    file.write_bytes(content[:place] + (1 << 60).to_bytes(8, "little") + content[place + 8 :])
    with pytest.raises(ValueError, match="truncated or damaged: test.words announces"):
        read_header(file)


@pytest.mark.parametrize(
    "start, words",
    [
        (b"PK\x03\x04" + bytes(20), "is not a GGUF file: it begins with b'PK"),
        (b"GGUF" + (1).to_bytes(4, "little") + bytes(16), "version 1 is not supported"),
        (b"GGUF" + (3).to_bytes(4, "big") + bytes(16), "big-endian file"),
    ],
)
def test_other_files_are_refused(tmp_path, start, words):
    (tmp_path / "x.gguf").write_bytes(start)
    with pytest.raises(ValueError, match=words):
        read_header(tmp_path / "x.gguf")
