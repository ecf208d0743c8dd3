"""HF PEFT's rules of names: against the modules that PEFT itself adapted in the golden files, and case by case."""

import json

import pytest
from golden_bases import GOLDEN, base, golden, tensors

from peftjax.interop.exchange.modules import Modules
from peftjax.interop.exchange.peft_rules import pattern_value, saved, targeted

NAMES = [
    "model.embed_tokens", "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.up_proj", "model.layers.11.self_attn.q_proj",
    "model.norm", "lm_head",
]  # fmt: skip
Q1, UP1, Q11 = NAMES[1:4]
LINEAR = [Q1, UP1, Q11, "lm_head"]


@pytest.mark.parametrize(
    "variant",
    ["all_linear", "layers", "layers_pattern", "regex", "excluded", "excluded_regex", "embed", "head", "phi3", "gpt2_all", "bert"],
)
def test_what_a_config_targets_is_what_peft_adapted(variant):
    config = json.loads((GOLDEN / "peft" / variant / "adapter_config.json").read_text())
    modules = Modules.of(base(str(golden("peft", variant)["base"])).config)
    keys = (key.removeprefix("base_model.model.") for key in tensors(GOLDEN / "peft" / variant / "adapter_model.safetensors"))
    adapted = {key.partition(".lora_")[0] for key in keys if ".lora_" in key}
    assert set(targeted(list(modules.ours), modules.linear, config)) == adapted


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({}, []),
        ({"target_modules": ["q_proj"]}, [Q1, Q11]),
        ({"target_modules": ["proj"]}, []),  # an entry begins behind a dot
        ({"target_modules": ["lm_head", "mlp.up_proj"]}, [UP1, "lm_head"]),
        ({"target_modules": r".*\.1\..*"}, [Q1, UP1]),
        ({"target_modules": "q_proj"}, []),  # a text is a regular expression over the whole name
        ({"target_modules": "all-linear"}, [Q1, UP1, Q11]),
        ({"target_modules": "all-linear", "exclude_modules": ["q_proj"]}, [UP1]),
        ({"target_modules": ["q_proj"], "exclude_modules": r".*\.11\..*"}, [Q1]),
        ({"target_modules": ["q_proj", "lm_head"], "layers_to_transform": [11]}, [Q11]),
        ({"target_modules": ["q_proj"], "layers_to_transform": 1, "layers_pattern": "layers"}, [Q1]),
        ({"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": ["h", "layers"]}, [Q1]),
        ({"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "blocks"}, []),
        ({"target_modules": r".*q_proj", "layers_to_transform": [1]}, [Q1, Q11]),  # with a list of names only
    ],
)
def test_targets(config, wanted):
    assert targeted(NAMES, LINEAR, config) == wanted


@pytest.mark.parametrize(
    ("patterns", "wanted"),
    [
        (None, 8), ({}, 8), ({"q_proj": 4}, 4), ({"proj": 4}, 8), ({"k_proj": 2, "self_attn.q_proj": 4, "q_proj": 1}, 4),
        ({r"layers\.[2-9]\..*": 4}, 8), ({r"layers\.\d\.self_attn\..*": 4}, 4), ({"^model.layers.1.self_attn.q_proj": 4}, 4),
        ({"^layers.1.self_attn.q_proj": 4}, 8), ({"layers.11.self_attn.q_proj": 4}, 8),
    ],
)  # fmt: skip
def test_the_first_pattern_that_fits_the_end_of_a_name_counts(patterns, wanted):
    assert pattern_value(patterns, Q1, 8) == wanted


@pytest.mark.parametrize(
    ("entries", "name", "wanted"),
    [
        (None, "model.norm", False), (["norm"], "model.norm", True), (["norm"], "model.layers.0.input_layernorm", True),
        (["norm"], "model.normal", False), (["classifier"], "classifier.out_proj", True), (["score", "head"], "lm_head", True),
        (["layers.1"], Q1, True), (["layers.1"], Q11, False),
    ],
)  # fmt: skip
def test_modules_to_save_need_no_dot_and_hold_what_is_inside(entries, name, wanted):
    assert saved(entries, name) is wanted
