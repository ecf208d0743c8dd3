"""AdapterHub's directories: the library's own logits from each that is supported, its mends of old files, and errors that name the thing.

The golden adapters are made by tests/golden/make_adapterhub_golden.py.
"""

import json
import shutil

import numpy as np
import pytest
from golden_bases import GOLDEN, base, base_of, forward, golden, loaded, read, variants
from safetensors.numpy import load_file, save_file

from peftjax.interop.exchange.adapterhub_read import read_adapterhub
from peftjax.peft import bottleneck, lora

FLAVOURS = ("adapter_plus", "double_seq_bn", "flex_lora", "flex_seq_bn", "ln_before", "lora", "lora_all", "par_bn", "seq_bn")
READ = (
    *(f"{encoder}_{flavour}" for encoder in ("bert", "roberta") for flavour in FLAVOURS), "adapter_plus", "adapter_plus_ln",
    "double_seq_bn", "gelu", "gelu_new", "gelu_without_version", "gpt2_double_seq_bn", "gpt2_lora", "gpt2_lora_all", "gpt2_lora_k",
    "gpt2_par_bn", "gpt2_seq_bn", "head", "leakyrelu", "leave_out", "ln_after", "ln_before", "lora", "lora_1.0.0", "lora_all",
    "lora_mlp", "lora_qkv", "lora_tied", "mistral", "named", "par_bn", "par_bn_attention", "reduction_fraction", "reduction_map",
    "scaled_par_bn", "scaled_seq_bn", "seq_bn", "tied", "union", "dora",
)  # fmt: skip
REFUSED = {
    "bert_post_add": "residual_before_ln': 'post_add'.* make something that is not supported",
    "roberta_post_add": "residual_before_ln': 'post_add'",
    **dict.fromkeys(("ia3_all", "bert_ia3", "gpt2_ia3"), "composition_mode: IA3 and the like"),
    "ln_after_residual": "adapter_residual_before_ln: the residual inside the adapter's own norm",
    "lora_dora": "use_dora is not supported here, .*: its norms lack the scale alpha / r, here 2, and are right for alpha = r alone",
    "bert_dora": "use_dora is not supported here, .*: it scales the bias of bert.encoder.layer.0.attention.self.query too",
    "lora_gated": "use_gating: a gate",
    "seq_bn_gated": "use_gating: a gate",
    **dict.fromkeys(("seq_bn_inv", "bert_seq_bn_inv", "double_seq_bn_inv"), "inv_adapter: invertible adapters"),
    **dict.fromkeys(("compacter", "compacter_frozen_rule", "compacter_own_rules", "compacter_plus_plus"), "phm_layer: PHM layers"),
    **dict.fromkeys(
        ("prefix", "prefix_mlp", "mam", "unipelt"), r"architecture 'prefix_tuning' \(supported: bottlenecks, "
    ),
    **dict.fromkeys(
        ("loreft", "loreft_prefix", "loreft_tied", "noreft", "direft"), r"architecture 'reft' \(supported: bottlenecks, which"
    ),
    "vera": "vera_d: VeRA",
    "pickle": "pytorch_adapter.bin is a pickle.*save_file",
}
SEVERAL = {"fusion", "bert_fusion"}  # folders of adapters and of what fuses them (tests/peft/fusion_test.py)


def test_every_golden_adapter_is_among_the_examples():
    assert not set(READ) & set(REFUSED)
    assert set(READ) | set(REFUSED) | SEVERAL == variants("adapterhub")


@pytest.mark.parametrize("variant", READ)
def test_logits_are_those_of_adapterhub(variant):
    found, on, there = golden("adapterhub", variant), base_of("adapterhub", variant), loaded("adapterhub", variant)
    assert np.abs(forward(on.config, on.params, found) - found["logits"]).max() > 0.02  # else doing nothing would pass
    np.testing.assert_allclose(forward(on.config, there.params, found, there.segments), found["logits"], atol=1e-4)


@pytest.mark.parametrize("variant", REFUSED)
def test_what_is_not_supported_is_refused_by_name(variant):
    on = base_of("adapterhub", variant)
    with pytest.raises(ValueError, match=f"(?s){REFUSED[variant]}"):
        read_adapterhub(GOLDEN / "adapterhub" / variant, on.config, on.params)


@pytest.mark.parametrize(
    ("variant", "other", "names"),
    [
        ("seq_bn", "bert", ["model.layers.0.output_adapters.adapters.task.adapter_down.0.weight", "no such place"]),
        ("seq_bn", "gpt2", ["model.layers.0.output_adapters", "missing   transformer.h.0.output_adapters.adapters.task"]),
        ("gpt2_seq_bn", "llama", ["transformer.h.2.output_adapters"]),
        ("bert_lora", "roberta", ["bert.encoder.layer.0.attention.self.query.loras.task.lora_A"]),
        ("lora", "llama_tied", ["q_proj.loras.task.lora_B: [32, 4], this base and this config want [out=48, R=4]"]),
    ],
)  # fmt: skip
def test_an_adapter_of_another_base_is_refused_with_every_name(variant, other, names):
    with pytest.raises(ValueError) as error:
        read_adapterhub(GOLDEN / "adapterhub" / variant, base(other).config)
    assert "does not fit this base" in str(error.value)
    for name in names:
        assert name in str(error.value)


@pytest.mark.parametrize("name", ["qwen2", "phi3", "gemma2"])
def test_a_family_whose_adapterhub_is_not_known_is_refused(name):
    with pytest.raises(ValueError, match=f"what AdapterHub computes on {name} is not known here; known are llama, gpt2, bert, roberta"):
        read_adapterhub(GOLDEN / "adapterhub" / "seq_bn", base(name).config)


# ---- old files, as the library mends them ----------------------------------------------------------------------------------------------


@pytest.fixture
def copied(tmp_path):
    """copied(variant, document changes, config changes, rename of keys) -> a folder; a change of None removes."""

    def copy(variant, document=None, config=None, rename=lambda key: key, arrays=None):
        folder = tmp_path / variant
        shutil.copytree(GOLDEN / "adapterhub" / variant, folder)
        file = folder / "adapter_config.json"
        content = json.loads(file.read_text()) | (document or {})
        if isinstance(content["config"], dict):
            content["config"] |= config or {}
        file.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))
        held = {rename(key): array for key, array in load_file(folder / "adapter.safetensors").items()} | (arrays or {})
        save_file({name: array for name, array in held.items() if array is not None}, folder / "adapter.safetensors")
        return folder

    return copy


def same_pieces(folder, variant):
    again, first = read_adapterhub(folder, base_of("adapterhub", variant).config), read("adapterhub", variant)
    assert again.pieces.keys() == first.pieces.keys()
    for path, piece in first.pieces.items():
        for field, array in piece.arrays.items():
            np.testing.assert_array_equal(again.pieces[path].arrays[field], array)
    return again


@pytest.mark.parametrize("kind", ["attention_text_task_adapters", "layer_text_task_adapters", "layer_text_lang_adapters"])
def test_legacy_names_of_modules(kind, copied):
    again = same_pieces(copied("bert_seq_bn", rename=lambda key: key.replace(".adapters.", f".{kind}.")), "bert_seq_bn")
    assert again.methods == read("adapterhub", "bert_seq_bn").methods


@pytest.mark.parametrize(("variant", "prefix"), [("seq_bn", "model."), ("bert_lora", "bert."), ("gpt2_lora_all", "transformer.")])
def test_files_of_a_bare_model_lack_the_prefix(variant, prefix, copied):
    same_pieces(copied(variant, rename=lambda key: key.removeprefix(prefix)), variant)


@pytest.mark.parametrize(
    ("version", "asked", "meant"),
    [
        (None, "gelu", "gelu_tanh"), (None, "gelu_orig", "gelu"), ("adapters.1.3.0", "gelu", "gelu"), (None, "relu", "relu"),
        ("adapters.1.3.0", "gelu_new", "gelu_tanh"), (None, "swish", "swish"),
    ],
)  # fmt: skip
def test_gelu_was_its_tanh_form_before_files_had_versions(version, asked, meant, copied):
    adapter = same_pieces(copied("seq_bn", document={"version": version}, config={"non_linearity": asked}), "seq_bn")
    assert [method.activation for method in adapter.methods] == [meant]


@pytest.mark.parametrize(
    ("version", "scale"), [("adapters.1.0.0", 1.0), ("adapters.1.0.1", 1.0), ("adapters.1.1.0", 2.0), ("adapters.1.10.0", 2.0), ("", 2.0)]
)
def test_alpha_had_no_effect_before_1_1_0(version, scale, copied):
    adapter = read_adapterhub(copied("lora", document={"version": version}), base("llama").config)
    assert {float(piece.arrays["scale"]) for piece in adapter.pieces.values()} == {scale}


def test_an_invertible_adapter_that_is_named_and_not_there_is_not_asked_for(copied):
    same_pieces(copied("seq_bn", config={"inv_adapter": "nice", "inv_adapter_reduction_factor": 2}), "seq_bn")


def test_a_norm_that_is_held_once_is_enough(copied):
    keys = load_file(GOLDEN / "adapterhub" / "ln_before" / "adapter.safetensors")
    same_pieces(copied("ln_before", arrays={key: None for key in keys if "adapter_norm_before" in key}), "ln_before")


# ---- files that say other than they hold ---------------------------------------------------------------------------------------------

KEY = "model.layers.1.output_adapters.adapters.task.adapter_down.0.weight"
ZEROS = np.zeros
EDITS = {
    "an unknown field": ("seq_bn", {}, {"non_linarity": "relu"}, {}, r"non_linarity = 'relu', which is not known here \(did you mean"),
    "an unknown activation": ("seq_bn", {}, {"non_linearity": "reul"}, {}, r"non_linearity 'reul' is not supported \(did you mean 'relu'"),
    "two faults at once": ("seq_bn", {}, {"phm_layer": True, "use_gating": True}, {}, "(?s)phm_layer: PHM.*use_gating: a gate"),
    "no config": ("seq_bn", {"config": None, "config_id": "9076f36a74755ac4"}, {}, {}, "holds no config of its own.*9076f36a"),
    "another size": ("seq_bn", {}, {"reduction_factor": 4}, {}, r"misshapen .*down.0.weight: \[4, 32\], .* want \[M=8, D=32\]"),
    "attention too": ("seq_bn", {}, {"mh_adapter": True}, {}, "missing   model.layers.0.attention_adapters.adapters.task.adapter"),
    "no output": ("double_seq_bn", {}, {"output_adapter": False}, {}, "extra     model.layers.0.output_adapters.*nothing in the config"),
    "flags of no preset": ("seq_bn", {}, {"original_ln_after": False}, {}, "make something that is not supported"),
    "a missing tensor": ("seq_bn", {}, {}, {KEY: None}, "missing   model.layers.1.output_adapters.adapters.task.adapter_down.0.weight"),
    "a misshapen tensor": ("seq_bn", {}, {}, {KEY: ZEROS((4, 16), np.float32)}, r"misshapen .*\[4, 16\], .* want \[M=4, D=32\]"),
    "a layer too many": ("seq_bn", {}, {}, {KEY.replace("1", "2"): ZEROS((4, 32), np.float32)}, "extra     model.layers.2.output_adapters"),
    "another's tensors": ("seq_bn", {"name": "other"}, {}, {}, "extra     .*adapters.task.adapter_down.0.bias"),
    "two norms that differ": ("ln_before", {}, {}, {KEY: ZEROS(32, np.float32)}, "differs from its second copy"),
    "other matrices": ("lora", {}, {"attn_matrices": ["q", "k", "v"]}, {}, "missing   model.layers.0.self_attn.k_proj.loras.task.lora_A"),
    "fewer matrices": ("lora", {}, {"attn_matrices": ["q"]}, {}, "extra     .*v_proj.loras.task.lora_A: nothing in the config asks"),
    "another rank": ("lora", {}, {"r": 2}, {}, r"lora_A: \[4, 32\], this base and this config want \[R=2, in=32\]"),
}  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
def test_files_that_say_other_than_they_hold_are_refused(edit, copied):
    variant, document, config, arrays, message = EDITS[edit]
    with pytest.raises(ValueError, match=message):
        read_adapterhub(copied(variant, document, config, arrays=arrays), base_of("adapterhub", variant).config)


def test_methods_say_what_was_read():
    (one,) = read("adapterhub", "double_seq_bn").methods
    assert isinstance(one, bottleneck) and (one.reads, one.sites, one.size) == ("output", ("attn_out", "mlp_out"), 4)
    large, small = sorted(read("adapterhub", "reduction_map").methods, key=lambda method: method.layers)
    assert (large.size, large.layers, small.size, small.layers) == (2, (0,), 8, (1,))
    (low,) = read("adapterhub", "lora").methods
    assert low == lora(rank=4, alpha=8, targets=("q_proj", "v_proj"))


def test_what_acts_at_training_time_only_is_noted(copied):
    (note,) = same_pieces(copied("seq_bn", config={"stochastic_depth": 0.2}), "seq_bn").notes
    assert "stochastic_depth 0.2 acts at training time only" in note
