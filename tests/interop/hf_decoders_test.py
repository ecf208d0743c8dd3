"""config.json of decoders in the forms of transformers 4 and 5, settings that are refused, and checkpoints under other names.

That the logits are those of transformers is in tests/models/golden_test.py; rotary settings (`hf_rope`) are tested here too.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import tiny_checkpoint
from safetensors.numpy import load_file, save_file

from peftjax.interop import hf, weights

GOLDEN = Path(__file__).parent.parent / "golden"


def read(folder):
    opened = hf.open_directory(folder)
    weights.check(opened.config, opened.family, "hf", opened.sources, "x")
    return opened.config, dict(weights.leaves(opened.config, opened.family, "hf", opened.sources))


def document(**changes):
    base = hf.document_from_config(tiny_checkpoint.CONFIG, "float32")
    merged = base | changes
    return {key: value for key, value in merged.items() if value is not ...}


def test_both_forms_of_the_rope_base():
    old = document(rope_parameters=..., rope_theta=77.0)
    new = document(rope_parameters={"rope_theta": 77.0, "rope_type": "default"}, rope_theta=...)
    assert hf.config_from_document(old, "x") == hf.config_from_document(new, "x")
    assert hf.config_from_document(old, "x").rope_base == 77.0
    assert hf.config_from_document(document(rope_parameters=..., rope_theta=...), "x").rope_base == 10000.0


def test_defaults_are_those_of_transformers():
    silent = document(num_key_value_heads=..., head_dim=..., tie_word_embeddings=..., attention_bias=..., mlp_bias=..., hidden_act=...)
    config = hf.config_from_document(silent, "x")
    assert (config.kv_heads, config.head_size, config.tied, config.qkv_bias, config.activation) == (4, 8, False, False, "silu")
    assert hf.config_from_document(document(sliding_window=9), "x").window is None  # Llama's code does not look at it
    mistral = document(architectures=["MistralForCausalLM"])
    assert hf.config_from_document(mistral, "x").window == 4096
    assert hf.config_from_document(mistral | {"sliding_window": None}, "x").window is None


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"architectures": ["MambaForCausalLM"]}, "architecture 'MambaForCausalLM' is not supported; supported are LlamaFor"),
        ({"architectures": ...}, r"architecture '\(none named\)'"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, "rope scaling 'llama3' without low_freq_factor, high_freq_factor"),
        ({"rope_parameters": ..., "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope scaling 'dynamic' .supported: linear"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "rotary settings per layer type"),
        ({"hidden_act": "gelu_pytorch_tan"}, "hidden_act 'gelu_pytorch_tan'.*did you mean 'gelu_pytorch_tanh'"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantised with 'awq'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"hidden_size": ..., "vocab_size": None}, "x lacks vocab_size, hidden_size"),
    ],
)
def test_what_is_not_supported_is_named(changes, words):
    with pytest.raises(ValueError, match=words):
        hf.config_from_document(document(**changes), "x")


def said(name, **changes):
    """The content of the config.json of a golden checkpoint, with changes; `...` takes an entry out."""
    document = json.loads((GOLDEN / name / "config.json").read_text()) | changes
    return {key: value for key, value in document.items() if value is not ...}


@pytest.mark.parametrize(
    "name, changes, words",
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True .supported: False"),
        ("gpt2", {"activation_function": "quick_gelu"}, "activation_function 'quick_gelu'"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
        ("gemma3", {"rope_parameters": {"sliding_attention": {"rope_type": "yarn"}}}, "rope scaling 'yarn' in local layers"),
        ("qwen2", {"layer_types": ["chunked_attention"] * 3}, "layer_types of 3 layers, chunked_attention"),
        ("qwen3", {"layer_types": ["full_attention"]}, "layer_types of 1 layers"),
    ],
)
def test_what_a_family_does_not_support_is_named(name, changes, words):
    with pytest.raises(ValueError, match=words):
        hf.config_from_document(said(name, **changes), "x")


def test_layers_with_a_window_by_their_types_by_a_pattern_and_by_a_bound():
    gemma3 = hf.config_from_document(said("gemma3"), "x")
    assert (gemma3.window, gemma3.full_layers) == (5, (5,))
    assert hf.config_from_document(said("gemma3", layer_types=...), "x") == gemma3  # the pattern of six is in the file too
    third = hf.config_from_document(said("gemma3", layer_types=..., _sliding_window_pattern=..., sliding_window_pattern=3), "x")
    assert third.full_layers == (2, 5)
    assert hf.config_from_document(said("gemma2", layer_types=...), "x").full_layers == (1,)
    qwen2 = hf.config_from_document(said("qwen2"), "x")
    assert (qwen2.window, qwen2.full_layers) == (5, (0,))
    assert hf.config_from_document(said("qwen2", layer_types=...), "x") == qwen2
    for silent in (said("qwen2", use_sliding_window=False), said("qwen2", use_sliding_window=...), said("qwen2", max_window_layers=9)):
        assert hf.config_from_document(silent | {"layer_types": None}, "x").window is None


ROPE = {
    "llama3": ("rope_type", "llama3"), "qwen3": ("type", "yarn"), "phi3": ("type", "longrope"), "gemma3": ("rope_type", "linear"),
}  # fmt: skip


@pytest.mark.parametrize("name", ROPE)
def test_rope_scaling_in_the_form_of_transformers_4(name):
    """What is written has both forms; with the newer one taken out it says the same."""
    config = hf.config_from_document(said(name), "x")
    written = hf.document_from_config(config, "float32")
    assert config.rope_scaling.kind == ROPE[name][1]
    assert written["rope_scaling"][ROPE[name][0] if ROPE[name][0] in written["rope_scaling"] else "rope_type"] == ROPE[name][1]
    old = {key: value for key, value in written.items() if key not in ("rope_parameters", "layer_types")}
    assert hf.config_from_document(old, "x") == config
    assert hf.config_from_document({key: written[key] for key in written if key not in ("rope_scaling", "rope_theta")}, "x") == config


def test_what_a_config_json_cannot_say_is_not_written():
    gemma2, gpt2 = (hf.config_from_document(said(name), "x") for name in ("gemma2", "gpt2"))
    with pytest.raises(ValueError, match=r"a config.json of Gemma2ForCausalLM cannot say qk_norm=True \(but False\)"):
        hf.document_from_config(dataclasses.replace(gemma2, qk_norm=True), "float32")
    with pytest.raises(ValueError, match=r"of GPT2LMHeadModel cannot say kv_heads=2 \(but 4\)"):
        hf.document_from_config(dataclasses.replace(gpt2, kv_heads=2), "float32")
    windowed_and_biased = dataclasses.replace(tiny_checkpoint.BIASED, window=4)
    with pytest.raises(ValueError, match="of MistralForCausalLM cannot say qkv_bias=True"):
        hf.document_from_config(windowed_and_biased, "float32")


def test_gpt2_as_it_is_on_the_hub(tmp_path):
    """Saved without its head, with the causal masks as buffers, and a config.json that leaves out the inner size."""
    tensors = load_file(GOLDEN / "gpt2" / "model.safetensors")
    hub = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    for layer in range(3):
        hub[f"h.{layer}.attn.bias"] = np.tril(np.ones((1, 1, 40, 40), np.float32))
        hub[f"h.{layer}.attn.masked_bias"] = np.array(-1e4, np.float32)
    save_file(hub, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(said("gpt2", n_inner=..., n_ctx=40)))
    (config, found), (wanted_config, wanted) = read(tmp_path), read(GOLDEN / "gpt2")
    assert config == wanted_config and found.keys() == wanted.keys()
    for path in wanted:
        np.testing.assert_array_equal(found[path], wanted[path])


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_text_part_of_a_gemma_3_for_text_and_images(prefix, tmp_path):
    tensors = load_file(GOLDEN / "gemma3" / "model.safetensors")
    both = {prefix + name.removeprefix("model."): value for name, value in tensors.items()}
    whole = prefix.removesuffix("language_model.model.").removesuffix("language_model.")
    both |= {f"{whole}vision_tower.patch.weight": np.ones(3, np.float32), f"{whole}multi_modal_projector.norm": np.ones(3, np.float32)}
    save_file(both, tmp_path / "model.safetensors")
    text = said("gemma3", architectures=..., query_pre_attn_scalar=12)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text}))
    (config, found), (wanted_config, wanted) = read(tmp_path), read(GOLDEN / "gemma3")
    assert config == dataclasses.replace(wanted_config, multimodal=True) and found.keys() == wanted.keys()
    assert hf.document_from_config(config, "float32") == hf.document_from_config(wanted_config, "float32")
    for path in wanted:
        np.testing.assert_array_equal(found[path], wanted[path])
