"""The configuration that a GGUF file describes, what llama.cpp has in its code instead, and settings that are refused."""

import dataclasses
import json
from pathlib import Path

import pytest
import tiny_checkpoint
import tiny_gguf

from peftjax.interop import hf
from peftjax.interop.gguf import open_gguf
from peftjax.models import rope

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture
def folder(tmp_path):
    tiny_checkpoint.write(tmp_path / "hf", tiny_checkpoint.BIASED)
    return tmp_path / "hf"


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
