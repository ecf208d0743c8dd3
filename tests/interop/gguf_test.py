"""GGUF weights: every block type as the gguf package decodes it, configuration, and settings that are refused."""

import dataclasses
import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny_checkpoint
import tiny_gguf

from peftjax.interop import hf, weights
from peftjax.interop.gguf import open_gguf
from peftjax.models import rope
from peftjax.nn.tree import flatten

GOLDEN = Path(__file__).parent.parent / "golden"
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


@pytest.mark.parametrize(
    "extra, words",
    [
        ({"llama.rope.scaling.type": "dynamic"}, "rope scaling dynamic with attention factor 1.0 is not supported .supported: linear"),
        ({"llama.rope.scaling.attn_factor": 2.0}, "rope scaling none with attention factor 2.0"),
        ({"llama.rope.scaling.alpha": 2.0}, "llama.rope.scaling.alpha = 2.0"),
        ({"llama.expert_count": 8}, "a mixture of 8 experts"),
        ({"llama.logit_scale": 0.5}, "llama.logit_scale = 0.5"),
        ({"llama.attention.head_count": None}, "no metadata key 'llama.attention.head_count'; nearest: llama.attention.head_count_kv"),
        ({"llama.attention.head_count_kv": [2, 1, 2]}, r"head_count_kv differs between layers \(\[1, 2\]\)"),
        ({"llama.rope.dimension_count": 4}, "rope.dimension_count is 4, but heads have size 6"),
    ],
)
def test_settings_that_would_change_the_computation_are_refused(extra, words, folder, tmp_path):
    with pytest.raises(ValueError, match=words):
        open_gguf(tiny_gguf.write_gguf(tmp_path / "x.gguf", folder, extra=extra))


def test_the_same_value_for_every_layer_may_be_a_list(folder, tmp_path):
    extra = {"llama.attention.head_count_kv": [2, 2, 2], "llama.rope.scaling.type": "none"}
    assert open_gguf(tiny_gguf.write_gguf(tmp_path / "x.gguf", folder, extra=extra)).config.kv_heads == 2


def test_llama_3s_own_rule_is_known_by_its_divisors(tmp_path):
    """So that what is exported from it says what the original config.json says."""
    rule = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = dataclasses.replace(
        tiny_checkpoint.CONFIG, head_size=64, rope_base=500000.0, rope_scaling=rope.Llama3(32.0, 1.0, 4.0, 8192), max_length=131072
    )
    tiny_checkpoint.write(tmp_path, config)
    assert rule.items() <= json.loads((tmp_path / "config.json").read_text())["rope_parameters"].items()
    assert open_gguf(tiny_gguf.write_gguf(tmp_path / "x.gguf", tmp_path)).config == config


@pytest.mark.parametrize("name", ["qwen3", "gemma2", "gemma3", "phi3", "gpt2"])
def test_the_configuration_is_that_of_config_json(name, tmp_path):
    """But for what a file cannot say: Gemma's query scale is in llama.cpp's code, by size, and so is the base of its local layers."""
    extra = {"gemma3.rope.freq_base_swa": 50.0} if name == "gemma3" else None
    found = open_gguf(tiny_gguf.write_gguf(tmp_path / "x.gguf", GOLDEN / name, extra=extra)).config
    wanted = hf.open_directory(GOLDEN / name).config
    assert found == dataclasses.replace(wanted, query_scalar=None)


def test_what_llama_cpp_has_in_its_code_for_gemma(tmp_path):
    default = open_gguf(tiny_gguf.write_gguf(tmp_path / "x.gguf", GOLDEN / "gemma3")).config
    assert (default.local_rope_base, default.full_layers, default.query_scalar) == (10000.0, (5,), None)
    for period, full in ((3, (2, 5)), ([True, False, True, True, True, True, True], (1,))):
        extra = {"gemma3.attention.sliding_window_pattern": period}
        assert open_gguf(tiny_gguf.write_gguf(tmp_path / "x.gguf", GOLDEN / "gemma3", extra=extra)).config.full_layers == full
    largest = open_gguf(tiny_gguf.write_gguf(tmp_path / "x.gguf", GOLDEN / "gemma2", extra={"gemma2.block_count": 46})).config
    assert largest.query_scalar == largest.width // largest.heads
    extra = {"gemma3.attention.sliding_window": 0}
    everywhere = open_gguf(tiny_gguf.write_gguf(tmp_path / "x.gguf", GOLDEN / "gemma3", extra=extra)).config
    assert (everywhere.window, everywhere.full_layers, everywhere.local_rope_base) == (None, (), None)


def test_other_architectures_are_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "y.gguf", "mamba")
    tiny_gguf.finish(writer)
    with pytest.raises(ValueError, match="y.gguf: architecture 'mamba' is not supported; supported are llama"):
        open_gguf(tmp_path / "y.gguf")
