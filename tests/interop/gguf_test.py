"""GGUF weights: every block type as the gguf package decodes it, and files that are damaged."""

import gguf
import numpy as np
import pytest
import tiny_checkpoint
import tiny_gguf

from peftjax.interop import weights
from peftjax.interop.gguf import open_gguf
from peftjax.nn.tree import flatten

ROWS, COLUMNS = 5, 512


def decodable():
    """Types for which the package has a decoder."""
    found = []
    for kind in gguf.GGMLQuantizationType:
        try:
            gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except NotImplementedError:
            continue
        found.append(kind)
    return found


@pytest.fixture
def folder(tmp_path):
    tiny_checkpoint.write(tmp_path / "hf", tiny_checkpoint.BIASED)
    return tmp_path / "hf"


def test_many_types_are_decodable():
    assert {"F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_1", "Q8_0", "Q4_K", "Q6_K", "IQ4_XS", "MXFP4"} <= {k.name for k in decodable()}


@pytest.mark.parametrize("kind", decodable(), ids=lambda kind: kind.name)
def test_rows_of_every_type_are_bit_equal_to_the_packages(kind, tmp_path):
    """Random blocks, so that all codes occur; read whole, by slices and by index."""
    row_bytes = COLUMNS // gguf.GGML_QUANT_SIZES[kind][0] * gguf.GGML_QUANT_SIZES[kind][1]
    packed = np.random.default_rng(int(kind)).integers(0, 256, (ROWS, row_bytes), np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    metadata = {"block_count": 1, "embedding_length": 8, "feed_forward_length": 8, "attention.head_count": 2}
    tiny_gguf.add_metadata(writer, {f"llama.{key}": value for key, value in metadata.items()})
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    shape = (ROWS, row_bytes) if kind not in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16) else (ROWS, COLUMNS)
    typed = packed if shape[1] == row_bytes else packed.view(np.float32 if kind == gguf.GGMLQuantizationType.F32 else np.float16)
    writer.add_tensor("token_embd.weight", typed, raw_dtype=kind)
    tiny_gguf.finish(writer)

    source = open_gguf(tmp_path / "x.gguf").sources["token_embd.weight"]
    with np.errstate(all="ignore"):  # random scales are also infinite or not a number
        whole = gguf.quants.dequantize(packed, kind)
        reads = [(rows, source.read(rows)) for rows in (slice(None), slice(1, 3), np.array([3, 0, 4]))]
    assert source.problem is None and source.shape == whole.shape == (ROWS, COLUMNS)
    for rows, found in reads:
        assert found.dtype == np.float32 and found.tobytes() == np.ascontiguousarray(whole[rows]).tobytes()


@pytest.mark.parametrize("config", [tiny_checkpoint.CONFIG, tiny_checkpoint.BIASED])
def test_a_float_file_gives_the_parameters_back_bit_for_bit(config, tmp_path):
    params = flatten(tiny_checkpoint.write(tmp_path, config))
    opened = open_gguf(tiny_gguf.write_gguf(tmp_path / "x.gguf", tmp_path))
    assert opened.config == config
    weights.check(opened.config, opened.family, "gguf", opened.sources, "x")
    found = dict(weights.leaves(opened.config, opened.family, "gguf", opened.sources))
    assert found.keys() == params.keys()
    for path in params:
        np.testing.assert_array_equal(found[path], params[path], err_msg=path)


def test_quantised_rows_are_put_into_order_after_decoding(folder, tmp_path):
    """Q8_0 of permuted rows is the permuted Q8_0, so the mended rows are near the true ones."""
    opened = open_gguf(tiny_gguf.write_gguf(tmp_path / "x.gguf", folder, kind="Q8_0"))
    found = dict(weights.leaves(opened.config, opened.family, "gguf", opened.sources))
    for path, leaf in flatten(tiny_checkpoint.random_params(tiny_checkpoint.BIASED)).items():
        np.testing.assert_allclose(found[path], leaf, atol=0.03, err_msg=path)


def test_a_file_cut_within_the_data_names_the_tensors(folder, tmp_path):
    file = tiny_gguf.write_gguf(tmp_path / "x.gguf", folder)
    last = max(open_gguf(file).file.tensors.items(), key=lambda item: item[1].offset)
    file.write_bytes(file.read_bytes()[: last[1].offset + 4])
    opened = open_gguf(file)
    with pytest.raises(ValueError, match=f"unreadable {last[0]}: truncated: it needs bytes {last[1].offset} to"):
        weights.check(opened.config, opened.family, "gguf", opened.sources, "x")


def test_types_that_nobody_decodes_are_named(folder, tmp_path):
    file = tiny_gguf.write_gguf(tmp_path / "x.gguf", folder)
    content = file.read_bytes()
    place = content.index(b"output_norm.weight") + len(b"output_norm.weight") + 4 + 8
    for number, words in ((99, "ggml type 99 is unknown"), (int(gguf.GGMLQuantizationType.I8), "cannot decode I8")):
        file.write_bytes(content[:place] + number.to_bytes(4, "little") + content[place + 4 :])
        assert words in open_gguf(file).sources["output_norm.weight"].problem


def test_other_architectures_are_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "y.gguf", "mamba")
    tiny_gguf.finish(writer)
    with pytest.raises(ValueError, match="y.gguf: architecture 'mamba' is not supported; supported are llama"):
        open_gguf(tmp_path / "y.gguf")
