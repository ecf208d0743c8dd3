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
from peftjax.peft import bottleneck, compacter, gated_lora, ia3, invertible, lora, noreft, prefix, vera

FLAVOURS = ("adapter_plus", "double_seq_bn", "flex_lora", "flex_seq_bn", "ln_before", "lora", "lora_all", "par_bn", "seq_bn")
READ = (
    *(f"{encoder}_{flavour}" for encoder in ("bert", "roberta") for flavour in FLAVOURS), "adapter_plus", "adapter_plus_ln",
    "double_seq_bn", "gelu", "gelu_new", "gelu_without_version", "gpt2_double_seq_bn", "gpt2_lora", "gpt2_lora_all", "gpt2_lora_k",
    "gpt2_par_bn", "gpt2_seq_bn", "head", "leakyrelu", "leave_out", "ln_after", "ln_before", "lora", "lora_1.0.0", "lora_all",
    "lora_mlp", "lora_qkv", "lora_tied", "mistral", "named", "par_bn", "par_bn_attention", "reduction_fraction", "reduction_map",
    "scaled_par_bn", "scaled_seq_bn", "seq_bn", "tied", "union", "dora",
)  # fmt: skip
# Of the other methods, and those whose laws are kept by one of them.
OTHERS = (
    "bert_flex_prompt", "bert_prompt", "roberta_prompt",
    "bert_loreft", "bert_prefix", "bert_seq_bn_inv", "compacter", "compacter_frozen_rule", "direft", "gpt2_ia3", "gpt2_lora_gated",
    "gpt2_prefix", "gpt2_seq_bn_inv", "ia3_all", "loreft", "mam", "noreft_suffix", "prefix_gated", "seq_bn_inv", "unipelt", "vera",
    "vera_diagonal",
)  # fmt: skip
ALIKE = (
    "bert_ia3", "compacter_plus_plus", "double_seq_bn_inv", "lora_gated", "loreft_prefix", "loreft_tied", "mistral_prefix", "noreft",
    "prefix", "prefix_mlp", "seq_bn_gated",
)  # fmt: skip
REFUSED = {
    "bert_post_add": "residual_before_ln': 'post_add'.* make something that is not supported",
    "roberta_post_add": "residual_before_ln': 'post_add'",
    "ln_after_residual": "adapter_residual_before_ln: the residual inside the adapter's own norm",
    "lora_dora": "use_dora is not supported here, .*: its norms lack the scale alpha / r, here 2, and are right for alpha = r alone",
    "bert_dora": "use_dora is not supported here, .*: it scales the bias of bert.encoder.layer.0.attention.self.query too",
    "compacter_own_rules": "factorized_phm_W: whole matrices in the place of Compacter's.*shared_phm_rule: a rule of its own for each",
    "pickle": "pytorch_adapter.bin is a pickle.*save_file",
}
SEVERAL = {"fusion", "bert_fusion"}  # folders of adapters and of what fuses them (adapterhub_fusion_test.py)


def test_every_golden_adapter_is_among_the_examples():
    read = [*READ, *OTHERS, *ALIKE]
    assert len({*read, *REFUSED}) == len(read) + len(REFUSED)
    assert {*read, *REFUSED} | SEVERAL == variants("adapterhub")


@pytest.mark.parametrize(
    ("variant", "tolerance"),
    [
        *((variant, 1e-4) for variant in READ), *((variant, 3e-5) for variant in OTHERS),
        *(pytest.param(variant, 3e-5, marks=pytest.mark.slow) for variant in ALIKE),  # a program each, of laws that OTHERS keep too
    ],
)  # fmt: skip
def test_logits_are_those_of_adapterhub(variant, tolerance):
    found, on, there = golden("adapterhub", variant), base_of("adapterhub", variant), loaded("adapterhub", variant)
    assert np.abs(forward(on.config, on.params, found) - found["logits"]).max() > 0.02  # else doing nothing would pass
    np.testing.assert_allclose(forward(on.config, there.params, found, there.segments), found["logits"], atol=tolerance)


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
        if isinstance(content["config"], dict) and config:
            content["config"] |= config
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
LOREFT = "model.layers.1.reft_layer.refts.task.units.1.projection.parametrizations.weight"
POOL = "model.layers.1.self_attn.prefix_tuning.pool.prefix_tunings.task.self_prefix"
ZEROS = np.zeros
EDITS = {
    "an unknown field": ("seq_bn", {}, {"non_linarity": "relu"}, {}, r"non_linarity = 'relu', which is not known here \(did you mean"),
    "an unknown activation": ("seq_bn", {}, {"non_linearity": "reul"}, {}, r"non_linearity 'reul' is not supported \(did you mean 'relu'"),
    "two faults at once": ("seq_bn", {}, {"phm_layer": True, "use_gating": True, "ln_after": True}, {},
                           "(?s)ln_after: a norm behind Compacter.*use_gating: a gate on Compacter"),
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
    "GLOW": ("seq_bn_inv", {}, {"inv_adapter": "glow"}, {}, "inv_adapter 'glow' is not here: it scales"),
    "a network of another size": ("seq_bn_inv", {}, {"inv_adapter_reduction_factor": 4}, {}, r"F.0.weight: .* \[M=4, D2=16\]"),
    "Compacters of two sizes": ("compacter", {}, {"reduction_factor": {"0": 4, "default": 8}}, {}, r"Compacters of sizes \[4, 8\]"),
    "Compacter with a learned scale": ("compacter", {}, {"scaling": "learned"}, {}, "scaling 'learned': Compacter has no scale"),
    "Compacter without its rule": ("compacter", {}, {}, {"model.shared_parameters.task.phm_rule": None}, "missing .*task.phm_rule"),
    "IA3 of a scale": ("ia3_all", {}, {"alpha": 2}, {}, "alpha 2: a second factor of IA3's scale"),
    "IA3 with a gate": ("ia3_all", {}, {"use_gating": True}, {}, "use_gating: a gate beside it"),
    "neither add nor scale": ("lora", {}, {"composition_mode": "mul"}, {}, "composition_mode = 'mul', which is not known here"),
    "DVoRA": ("vera", {}, {"use_dora": True}, {}, "use_dora: DoRA of VeRA or IA3"),
    "VeRA of two sizes": ("vera", {}, {"attn_matrices": ["q", "v"]}, {}, r"several sizes, \[\(32, 16\), \(32, 32\)\]"),
    "VeRA on a fused module": ("gpt2_lora", {}, {"vera_d": 0.1}, {}, "VeRA on the fused transformer.h.0.attn.c_attn"),
    "a mark that is not heeded": ("noreft", {}, {"subtract_projection": False}, {}, "AdapterHub itself does not heed it"),
    "as many rows as columns": ("loreft", {}, {"r": 32}, {}, "as many orthonormal rows as the states are wide, 32"),
    "signs that are none": ("loreft", {}, {}, {f"{LOREFT}.original": np.full((2, 32), 0.9, np.float32)}, "cuts to .*no LoReFT"),
    "no positions": ("loreft_prefix", {}, {"prefix_positions": 0}, {}, "it edits no positions"),
    "two copies that differ": ("prefix", {}, {}, {f"{POOL}.control_trans": ZEROS(192, np.float32)}, "pool: differs from model"),
    "a longer prefix": ("prefix", {}, {"prefix_length": 4}, {}, r"control_trans: \[192\], .* want \[P L 2 GK=256\]"),
    "an encoder of another kind": ("prefix_mlp", {}, {"non_linearity": "reul"}, {}, "non_linearity 'reul' is not supported"),
    "several tasks": ("lora", {}, {"architecture": "mtl_lora"}, {}, r"'mtl_lora': LoRAs of several tasks in one \(supported"),
    "a prompt of another kind": ("bert_prompt", {}, {"combine": "suffix"}, {}, "combine 'suffix' is not supported; .* prefix, prefix_aft"),
    "a shorter prompt": ("bert_prompt", {}, {"prompt_length": 2}, {}, r"prompt_embedding.weight: \[3, 32\], .* want \[P=2, D=32\]"),
}  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
def test_files_that_say_other_than_they_hold_are_refused(edit, copied):
    variant, document, config, arrays, message = EDITS[edit]
    with pytest.raises(ValueError, match=message):
        read_adapterhub(copied(variant, document, config, arrays=arrays), base_of("adapterhub", variant).config)


def test_two_methods_at_one_place_are_refused(copied):
    config, other = (json.loads((GOLDEN / "adapterhub" / name / "adapter_config.json").read_text())["config"]
                     for name in ("bert_loreft", "bert_adapter_plus"))  # fmt: skip
    arrays = load_file(GOLDEN / "adapterhub" / "bert_adapter_plus" / "adapter.safetensors")
    folder = copied("bert_loreft", {"config": {"architecture": "union", "configs": [config, other]}}, arrays=arrays)
    with pytest.raises(ValueError, match="two methods of one adapter stand at blocks/0/block_out, blocks/1/block_out"):
        read_adapterhub(folder, base("bert").config)


def test_a_prompt_beside_reft_or_on_a_decoder_is_refused(copied):
    """AdapterHub counts virtual tokens among the positions that ReFT edits, and has them on encoders alone."""
    reft, prompt = (json.loads((GOLDEN / "adapterhub" / name / "adapter_config.json").read_text())["config"]
                    for name in ("bert_loreft", "bert_prompt"))  # fmt: skip
    arrays = load_file(GOLDEN / "adapterhub" / "bert_prompt" / "adapter.safetensors")
    folder = copied("bert_loreft", {"config": {"architecture": "union", "configs": [reft, prompt]}}, arrays=arrays)
    with pytest.raises(ValueError, match="ReFT beside a prompt: AdapterHub counts virtual tokens among the positions"):
        read_adapterhub(folder, base("bert").config)
    with pytest.raises(ValueError, match="AdapterHub has prompts on encoders alone; this base is llama"):
        read_adapterhub(GOLDEN / "adapterhub" / "bert_prompt", base("llama").config)


def test_a_prefix_may_be_held_once(copied):
    keys = load_file(GOLDEN / "adapterhub" / "gpt2_prefix" / "adapter.safetensors")
    same_pieces(copied("gpt2_prefix", arrays={key: None for key in keys if ".pool." in key}), "gpt2_prefix")


def test_methods_say_what_was_read():
    (one,) = read("adapterhub", "double_seq_bn").methods
    assert isinstance(one, bottleneck) and (one.reads, one.sites, one.size) == ("output", ("attn_out", "mlp_out"), 4)
    large, small = sorted(read("adapterhub", "reduction_map").methods, key=lambda method: method.layers)
    assert (large.size, large.layers, small.size, small.layers) == (2, (0,), 8, (1,))
    (low,) = read("adapterhub", "lora").methods
    assert low == lora(rank=4, alpha=8, targets=("q_proj", "v_proj"))
    assert read("adapterhub", "ia3_all").methods == (
        ia3(targets=("k_proj", "q_proj", "v_proj", "down_proj", "up_proj"), feedforward=(), layers=(1,)),
    )
    assert [type(method) for method in read("adapterhub", "unipelt").methods] == [prefix, bottleneck, gated_lora]
    assert read("adapterhub", "seq_bn_inv").methods[1:] == (invertible(reduction_factor=2),)
    (frozen,) = read("adapterhub", "compacter_frozen_rule").methods
    assert frozen == compacter(size=8, phm_dim=2, rank=2, learn_rule=False, sites=("mlp_out",), reads="sum")
    positions = {"prefix_positions": 2, "suffix_positions": 1, "init": "random"}
    assert read("adapterhub", "direft").methods == (noreft(rank=2, **positions),)
    assert read("adapterhub", "noreft_suffix").methods == (noreft(rank=2, init="random", prefix_positions=0, suffix_positions=2),)
    assert read("adapterhub", "prefix_gated").methods == (
        prefix(length=3, offset=False, gates=2, gating="mean", layers=(1,)),
    )
    assert read("adapterhub", "gpt2_prefix").methods == (prefix(length=2, hidden=5, activation="relu", offset=False, layers=(0, 2)),)
    (made,), (kept,) = (read("adapterhub", variant).methods for variant in ("vera", "vera_diagonal"))
    assert made == lora(rank=3, alpha=6, targets=("q_proj",)) and kept == vera(rank=3, targets=("k_proj", "v_proj"), layers=(1,))


NOTES = {
    "direft": ["dropout 0.05 is on the edit here", "it is read as NoReFT, as AdapterHub reads it; its files do not say whether"],
    "loreft_prefix": ["dropout 0.05 is on the edit here", "the unit of no positions is read by nothing"],
    "prefix_gated": ["its gates are means over a whole row of a batch, padding included"],
    "seq_bn_gated": ["its gates are means over a whole row of a batch, padding included"],
    "vera": ["vera_D and vera_B are no diagonals, as training leaves them there: read as the LoRA of rank 3 that they make"],
    "vera_diagonal": ["its scale alpha / r = 2 is part of lambda_b here"], "mam": [], "ia3_all": [], "compacter": [],
}  # fmt: skip


@pytest.mark.parametrize("variant", NOTES)
def test_what_is_left_out_or_derived_is_noted(variant):
    notes = read("adapterhub", variant).notes
    assert len(notes) == len(NOTES[variant]) and all(note.startswith(begins) for note, begins in zip(notes, NOTES[variant], strict=True))


def test_stochastic_depth_is_a_setting_of_the_method(copied):
    (method,) = same_pieces(copied("seq_bn", config={"stochastic_depth": 0.2}), "seq_bn").methods
    assert method.stochastic_depth == 0.2
