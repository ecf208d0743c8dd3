"""HF PEFT's directories: PEFT's own logits from each that is supported, and an error that names the thing from each other.

The golden adapters are made by tests/golden/make_peft_golden.py.
"""

import json
import shutil

import numpy as np
import pytest
from golden_bases import GOLDEN, base, base_of, forward, golden, loaded, read, variants
from safetensors.numpy import load_file, save_file

from peftjax.interop.exchange.adapter import digest
from peftjax.interop.exchange.load import adapt
from peftjax.interop.exchange.peft_methods import VERA
from peftjax.interop.exchange.peft_read import read_peft
from peftjax.interop.safetensors_file import open_safetensors
from peftjax.models.decoder import cut
from peftjax.peft import merge

READ = (
    "plain", "all_linear", "mistral", "rslora", "patterns", "patterns_rslora", "layers", "layers_pattern", "regex", "excluded",
    "excluded_regex", "embed", "embed_tied", "embed_tied_ensured", "head", "head_tied", "embed_head_tied", "embed_head_tied_ensured",
    "saved_head", "saved_head_tied", "saved_embed_tied", "saved_embed_tied_ensured", "saved_embed_head", "saved_norm", "lora_bias",
    "bias_lora_only", "bias_all", "tokens", "tokens_tied", "tokens_head", "float16", "bfloat16", "pissa_converted", "gpt2_attn",
    "gpt2_all", "gpt2_embed", "phi3", "qwen2", "gemma2", "bert", "roberta", "dora", "dora_patterns", "dora_biased", "dora_embed",
    "gpt2_dora", "phi3_dora",
)  # fmt: skip
# Of other methods than LoRA those that are changes of the weight, by way of which they are tested with few programs: that a node multiplies
# as its merged weight does is a law of its own.
MERGED = (
    "orthogonal", "eva", "mica", "olora_converted", "corda_converted", "lora_ga_converted",
    "loha", "lokr", "lokr_both", "lokr_dense", "hira", "vera", "vera_by_key", "randlora",
    "randlora_sparse", "delora", "gralora", "gralora_hybrid", "fourierft", "shira", "miss", "miss_bat", "miss_mini", "ia3", "ia3_attention",
    "oft", "oft_neumann", "oft_shared", "boft", "hra", "hra_gs", "road_1", "road_2", "road_4", "ln_tuning", "trainable_tokens",
    "trainable_tokens_tied", "gpt2_ia3", "phi3_ia3", "phi3_oft", "phi3_loha", "phi3_road", "bias_oft", "saved_loha", "adalora",
    "adalora_pruned",
)  # fmt: skip
CONTEXT = (
    "prompt_tuning", "p_tuning", "p_tuning_lstm", "prefix_tuning", "prefix_projected", "bert_prompt_tuning", "roberta_prompt_tuning",
    "bert_p_tuning", "bert_prefix_tuning", "roberta_prefix_projected",
)  # fmt: skip
REFUSED = {
    "dora_embed_ensured": (ValueError, "lm_head: with ensure_weight_tying and use_dora it .* has lengths and magnitudes of its own rows"),
    "olora": (ValueError, "init_lora_weights 'olora': the factors fit a base that was changed"),
    "randlora_by_key": (ValueError, "save_projection False: the random matrices were drawn in bfloat16 or float16"),
    "gpt2_vera": (ValueError, "h.0.attn.c_attn: it is q, k, v in one, and VeRA of the whole is not that of its parts"),
    "pissa": (ValueError, "init_lora_weights 'pissa': the factors fit a base that was changed"),
    "pickle": (ValueError, "adapter_model.bin is a pickle.*safetensors.torch.save_file"),
    "missing": (ValueError, "missing   base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"),
    "extra": (ValueError, r"extra     base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight: .* .did you mean"),
    "misshapen": (ValueError, r"layers.0.self_attn.q_proj.lora_A.weight: \[4, 16\], this base wants \[R=4, in=32\]"),
    "named": (FileNotFoundError, "has no adapter_config.json.*there is one in french: name that folder"),
}


def test_every_golden_adapter_is_among_the_examples():
    lists = (*READ, *MERGED, *CONTEXT, *REFUSED)
    assert len(set(lists)) == len(lists)
    assert set(lists) == variants("peft")


@pytest.mark.parametrize("variant", READ)
def test_logits_are_those_of_peft(variant):
    found, on = golden("peft", variant), loaded("peft", variant)
    config = base(str(found["base"])).config
    plain = forward(config, base(str(found["base"])).params, found)
    assert np.abs(plain - found["logits"]).max() > 0.05  # else an adapter that does nothing would pass
    np.testing.assert_allclose(forward(config, on.params, found, on.segments), found["logits"], atol=1e-4)


@pytest.mark.parametrize("variant", MERGED)
def test_merged_logits_are_those_of_peft(variant):
    found, there, on = golden("peft", variant), loaded("peft", variant), base_of("peft", variant)
    assert np.abs(forward(on.config, on.params, found) - found["logits"]).max() > 0.5
    merged = merge(cut(there.params, on.config, ()))
    np.testing.assert_allclose(forward(on.config, merged, found), found["logits"], atol=5e-5)


@pytest.mark.parametrize("variant", CONTEXT)
def test_logits_behind_virtual_tokens_are_those_of_peft(variant):
    found, there, on = golden("peft", variant), loaded("peft", variant), base_of("peft", variant)
    assert np.abs(forward(on.config, on.params, found) - found["logits"]).max() > 0.5
    np.testing.assert_allclose(forward(on.config, there.params, found, there.segments), found["logits"], atol=3e-5)
    computed = not variant.endswith(("prompt_tuning", "prefix_tuning"))
    assert [("encoder is not in the file" in note) for note in there.adapter.notes] == [True] * computed


DAMAGED = {
    "labels are missing": ({"base_model.classifier.bias": None}, {}, "missing   base_model.classifier.bias"),
    "nothing is beside them": (
        {f"base_model.classifier.{leaf}": None for leaf in ("weight", "bias")}, {}, "missing   base_model.classifier.weight"
    ),
    "another module": ({"base_model.pooler.weight": np.zeros((2, 2), np.float32)}, {}, "extra     base_model.pooler.weight: this base"),
    "too narrow": ({"base_model.classifier.weight": np.zeros((3, 5), np.float32)}, {}, r"weight: \[3, 5\], .* wants \[labels, 32\]"),
    "token classes": ({}, {"task_type": "TOKEN_CLS"}, "task_type is 'TOKEN_CLS'; what is read on an encoder is classification, SEQ_CLS"),
    "more is saved": ({}, {"modules_to_save": ["classifier", "pooler"]}, "modules_to_save is not supported here"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_a_classifier_beside_virtual_tokens_that_does_not_fit_is_refused(case, tmp_path):
    arrays, said, message = DAMAGED[case]
    theirs, file = GOLDEN / "peft" / "bert_prompt_tuning", "adapter_model.safetensors"
    held = load_file(theirs / file) | arrays
    save_file({name: array for name, array in held.items() if array is not None}, tmp_path / file)
    document = json.loads((theirs / "adapter_config.json").read_text()) | said
    (tmp_path / "adapter_config.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=message):
        read_peft(tmp_path, base("bert").config)


def test_constants_that_the_file_does_not_hold_are_drawn_as_pytorch_draws_them():
    """The file with the matrices has them from seed 0: drawn here, they are the same to the last bit."""
    vera = read("peft", "vera")
    config = json.loads((GOLDEN / "peft" / "vera" / "adapter_config.json").read_text())
    drawn = VERA.draw(config, 64, 32)
    for row in VERA.shared:
        np.testing.assert_array_equal(row.ours(drawn[row.suffix]), vera.pieces[f"shared/{row.field}"].arrays["value"])
    (note,) = read("peft", "vera_by_key").notes
    assert "were drawn from its seed as PyTorch draws them" in note


def test_a_named_adapter_is_read_from_its_own_folder():
    found, on = golden("peft", "named"), base("llama")
    adapter = read("peft", "named", "french")
    there = adapt(on, adapter)
    np.testing.assert_allclose(forward(on.config, there.params, found, there.segments), found["logits"], atol=1e-4)


@pytest.mark.parametrize("variant", REFUSED)
def test_what_is_not_supported_or_damaged_is_refused_by_name(variant):
    kind, message = REFUSED[variant]
    on = base(str(golden("peft", variant)["base"]))
    with pytest.raises(kind, match=f"(?s){message}"):
        read_peft(GOLDEN / "peft" / variant, on.config, on.params)


@pytest.mark.parametrize("variant", ["float16", "bfloat16"])
def test_half_precision_is_kept_as_values_and_as_the_dtype_to_write(variant):
    adapter = read("peft", variant)
    assert adapter.dtype == variant
    source = open_safetensors(GOLDEN / "peft" / variant / "adapter_model.safetensors")
    stored = source["base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"].read(slice(None))
    found = adapter.pieces["blocks/1/attn/q/kernel"].arrays["b"]
    assert found.dtype == np.float32 and str(stored.dtype) == variant
    np.testing.assert_array_equal(found, stored.astype(np.float32).T)


@pytest.mark.parametrize(
    ("variant", "other", "names"),
    [
        ("plain", "gpt2", ["none of its 28 tensors", "model.layers.0.mlp.down_proj.lora_A.weight"]),
        ("plain", "phi3", ["model.layers.0.mlp.gate_proj.lora_A.weight", "did you mean 'model.layers.0.mlp.gate_up_proj'", "and 4 more"]),
        ("plain", "qwen2", ["mlp.gate_proj.lora_B.weight: [64, 4], this base wants [out=48, R=4]", "missing   LoRA of model.layers.2"]),
        ("gpt2_all", "llama", ["transformer.h.0.attn.c_attn"]),
        ("all_linear", "llama", ["layers.0.self_attn.q_proj.lora_B.weight: [48, 4], this base wants [out=32, R=4]"]),
        ("bias_all", "llama", ["layers.0.self_attn.k_proj.bias: this base has no bias there"]),
        ("bert", "roberta", ["bert.encoder.layer.0.attention.self.query"]),
        ("tokens", "gpt2", ["model.embed_tokens"]),
    ],
)  # fmt: skip
def test_an_adapter_of_another_base_is_refused_with_every_name(variant, other, names):
    with pytest.raises(ValueError) as error:
        read_peft(GOLDEN / "peft" / variant, base(other).config, base(other).params)
    assert str(error.value).startswith(f"{GOLDEN / 'peft' / variant} ")
    for name in names:
        assert name in str(error.value)


# ---- edited files --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def copied(tmp_path):
    """copied(variant, config changes, tensor changes) -> a folder; a change of None removes."""

    def copy(variant, config=None, arrays=None):
        folder = tmp_path / variant
        shutil.copytree(GOLDEN / "peft" / variant, folder)
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | (config or {})))
        if arrays:
            held = load_file(folder / "adapter_model.safetensors") | arrays
            save_file({name: array for name, array in held.items() if array is not None}, folder / "adapter_model.safetensors")
        return folder

    return copy


START = "base_model.model.model"
EDITS = {
    "an unknown setting": ("plain", {"lora_alhpa": 4}, {}, r"lora_alhpa = '4', which is not known here \(did you mean 'lora_alpha'"),
    "two settings at once": ("plain", {"use_qalora": True, "layer_replication": [[0, 1]]}, {}, "(?s)layer_replication: .*use_qalora: "),
    "lengths not there": ("plain", {"use_dora": True}, {}, "missing   .*layers.1.self_attn.q_proj.lora_magnitude_vector"),
    "lengths not asked for": ("dora", {"use_dora": False}, {}, "extra     .*layers.1.self_attn.q_proj.lora_magnitude_vector: nothing here"),
    "lengths of another base": ("dora", {}, {f"{START}.layers.0.self_attn.q_proj.lora_magnitude_vector": np.ones(8, np.float32)},
                                r"q_proj.lora_magnitude_vector: \[8\], this base wants \[out=32\]"),
    "a bias behind DoRA": ("dora", {"lora_bias": True}, {}, "a bias behind B has no part in DoRA"),
    "another rank": ("layers_pattern", {"r": 2}, {}, r"layers.0.self_attn.q_proj: rank 4, the config says 2"),
    "more targets": ("layers_pattern", {"target_modules": ["q_proj", "k_proj"]}, {}, "missing   LoRA of model.layers.0.self_attn.k_proj"),
    "other targets": ("mistral", {"target_modules": ["q_proj"]}, {}, "extra     LoRA of model.layers.0.self_attn.v_proj"),
    "other layers": ("layers_pattern", {"layers_to_transform": [1]}, {}, "(?s)extra .*layers.0.*missing   LoRA of model.layers.1"),
    "no modules to save": ("saved_norm", {"modules_to_save": None}, {}, "extra     base_model.model.model.norm.weight: modules_to_save is"),
    "more modules to save": ("saved_head", {"modules_to_save": ["lm_head", "embed_tokens"]}, {}, f"missing   {START}.embed_tokens.weight"),
    "biases not asked for": ("bias_all", {"bias": "none"}, {}, "bias is 'none', and the file holds"),
    "fewer tokens": ("tokens", {"trainable_token_indices": [3, 50]}, {}, r"_delta: \[3, 32\], this base wants \[N=2, D=32\]"),
    "a copy of another base": ("embed", {}, {f"{START}.embed_tokens.base_layer.weight": np.zeros((97, 32), np.float32)},
                               "embed_tokens.base_layer.weight differs from this base's weight: it is of another base"),
    "a tied head of its own": ("embed_tied_ensured", {}, {"base_model.model.lm_head.lora_A.weight": np.ones((4, 32), np.float32)},
                               "lm_head.lora_A.weight: ensure_weight_tying is on, yet it is not model.embed_tokens's"),
    "only one factor": ("layers_pattern", {}, {f"{START}.layers.0.self_attn.q_proj.lora_A.weight": None}, "missing .*q_proj.lora_A.weight"),
    "fewer ranks than are kept": ("adalora_pruned", {}, {f"{START}.layers.1.self_attn.q_proj.lora_E": np.ones((1, 1), np.float32)},
                                  r"layers.1.self_attn.q_proj.lora_E: \[1, 1\], and rank_pattern keeps 2 ranks"),
    "ranks of another start": ("adalora_pruned", {"init_r": 6}, {}, "layers.1.self_attn.q_proj: rank 4, the config says 6"),
    "ranks of nothing": ("adalora", {"rank_pattern": {"model.layers.0.self_attn.k_proj.lora_E": [True] * 6}}, {},
                         "missing   model.layers.0.self_attn.k_proj.lora_E, of which rank_pattern says"),
    "an AdaLoRA without alpha": ("adalora", {"lora_alpha": 0}, {}, "lora_alpha 0, in the place of which PEFT takes init_r here; say 6"),
    **{f"the start of {init}": ("plain", {"init_lora_weights": init}, {}, f"init_lora_weights '{init}': the factors fit a base that was")
       for init in ("corda", "lora_ga", "loftq", "pissa_niter_4")},
    "a method that is not here": ("adalora", {"peft_type": "XLORA"}, {},
                                  r"peft_type is 'XLORA' \(a method of HF PEFT that is not here: a router over LoRAs"),
    "an unread tensor": ("layers_pattern", {}, {f"{START}.layers.0.self_attn.q_proj.lora_C.weight": np.ones((4, 4), np.float32)},
                         "extra     .*q_proj.lora_C.weight"),
    "no prefix": ("layers_pattern", {}, {"model.layers.0.self_attn.q_proj.lora_A.weight": np.ones((4, 32), np.float32)},
                  r"extra     model.layers.0.self_attn.q_proj.lora_A.weight"),
}  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
def test_files_that_say_other_than_they_hold_are_refused(edit, copied):
    variant, config, arrays, message = EDITS[edit]
    on = base(str(golden("peft", variant)["base"]))
    with pytest.raises(ValueError, match=message):
        read_peft(copied(variant, config, arrays), on.config, on.params)


@pytest.mark.parametrize("variant", ["miss", "miss_bat"])
def test_a_bone_is_the_miss_that_it_was_renamed_to(variant, copied):
    """What PEFT's own scripts/convert-bone-to-miss.py changes is the type and the ends of the keys."""
    held = load_file(GOLDEN / "peft" / variant / "adapter_model.safetensors")
    old = {key.replace(".miss_", ".bone_"): array for key, array in held.items()} | dict.fromkeys(held)
    folder, miss = copied(variant, {"peft_type": "BONE"}, old), read("peft", variant)
    adapter = read_peft(folder, base_of("peft", variant).config)
    assert adapter.methods == miss.methods and digest(adapter) == digest(miss)


def test_a_config_that_names_only_what_counts_is_enough(copied):
    """Old files lack most fields, and ours may have fields that are off."""
    folder = copied("plain")
    config = json.loads((folder / "adapter_config.json").read_text())
    kept = {name: config[name] for name in ("peft_type", "r", "lora_alpha", "target_modules")} | {"a_field_of_tomorrow": None}
    (folder / "adapter_config.json").write_text(json.dumps(kept))
    adapter = read_peft(folder, base("llama").config)
    assert adapter.pieces.keys() == read("peft", "plain").pieces.keys()
    assert adapter.methods == read("peft", "plain").methods


def test_copies_of_the_base_are_compared_or_taken_on_trust_and_said():
    folder, on = GOLDEN / "peft" / "embed", base("llama")
    assert read_peft(folder, on.config, on.params).notes == (
        "model.embed_tokens.base_layer.weight is this base's own weight and was left out",
    )
    assert "was not compared with the base" in read_peft(folder, on.config).notes[0]


def test_files_that_cannot_be_opened_are_refused(copied):
    folder, config = copied("layers_pattern"), base("llama").config
    whole = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="adapter_model.safetensors|cannot be read"):
        read_peft(folder, config)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no adapter_model.safetensors \(found: adapter_config.json, golden.npz\)"):
        read_peft(folder, config)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA",')
    with pytest.raises(ValueError, match="adapter_config.json is not JSON"):
        read_peft(folder, config)
