"""The tables of weight names: complete, unambiguous, and in step with the decoder."""

import json
from pathlib import Path

import pytest
import tiny_checkpoint

from peftjax.interop import hf
from peftjax.interop.families import FAMILIES, FORMATS, Module, family_for, family_named, hf_modules
from peftjax.models.decoder import abstract_params
from peftjax.nn.tree import flatten

GOLDEN = Path(__file__).parent.parent / "golden"


def golden(name):
    """The config of a golden checkpoint."""
    return hf.config_from_document(json.loads((GOLDEN / name / "config.json").read_text()), name)


DECODERS = [tiny_checkpoint.CONFIG, tiny_checkpoint.BIASED, tiny_checkpoint.WINDOWED]
DECODERS += [golden(name) for name in ("qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt2")]


@pytest.mark.parametrize("config", DECODERS, ids=lambda config: config.family)
def test_the_table_has_exactly_the_decoders_parameters(config):
    family = family_named(config.family)
    ours = {w.path: ((config.layers,) if w.stacked else ()) + w.sizes(config) for w in family.present(config)}
    assert ours == {path: leaf.shape for path, leaf in flatten(abstract_params(config)).items()}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize("form", FORMATS)
def test_no_two_weights_share_a_name_and_stacked_ones_name_the_layer(family, form):
    stored = [(weight, weight.stored(form)) for weight in family.weights if weight.stored(form)]
    places = [(kept.name, kept.part and kept.part[0]) for _, kept in stored]
    assert len(set(places)) == len(places)
    assert all(("{layer}" in kept.name) == weight.stacked for weight, kept in stored)


def test_names_follow_the_layers():
    weight = {weight.path: weight for weight in family_named("llama").weights}["blocks/attn/q/kernel"]
    assert weight.names("gguf", tiny_checkpoint.CONFIG) == [f"blk.{n}.attn_q.weight" for n in range(3)]
    assert weight.names("hf", tiny_checkpoint.CONFIG)[2] == "model.layers.2.self_attn.q_proj.weight"


def test_unknown_architectures_are_refused_with_the_known_ones():
    assert family_for("hf", "MistralForCausalLM", "x").name == "llama"
    with pytest.raises(ValueError, match="config.json: architecture 'MambaForCausalLM' is not supported; supported are LlamaFor"):
        family_for("hf", "MambaForCausalLM", "config.json")
    with pytest.raises(ValueError, match="family 'gemma9' is not known"):
        family_named("gemma9")


@pytest.mark.parametrize("config", DECODERS, ids=lambda config: config.family)
def test_modules_are_those_of_the_tree_with_the_layer_in_the_path(config):
    modules = hf_modules(family_named(config.family), config)
    paths = {path.rpartition("/")[0] for path in flatten(abstract_params(config))}
    ours = {p.replace("blocks/", f"blocks/{n}/") for p in paths for n in range(config.layers)}
    assert modules.keys() == ours | {"head"}
    assert modules["head"].name == "lm_head"
    assert all(module.conv1d == (config.family == "gpt2" and path.split("/")[-2] in ("attn", "mlp"))
               for path, module in modules.items() if path.startswith("blocks") and "norm" not in path)  # fmt: skip


def test_modules_by_name():
    llama = hf_modules(family_named("llama"), tiny_checkpoint.CONFIG)
    assert llama["blocks/2/attn/q"] == Module("model.layers.2.self_attn.q_proj", None, False)
    assert (llama["embed"].name, llama["final_norm"].name) == ("model.embed_tokens", "model.norm")
    phi3, gpt2 = (hf_modules(family_named(name), golden(name)) for name in ("phi3", "gpt2"))
    qkv, gate_up = "model.layers.1.self_attn.qkv_proj", "model.layers.1.mlp.gate_up_proj"
    assert phi3["blocks/1/attn/k"] == Module(qkv, (32, 48), False) and phi3["blocks/1/attn/v"] == Module(qkv, (48, 64), False)
    assert phi3["blocks/1/mlp/up"] == Module(gate_up, (48, 96), False)
    assert gpt2["blocks/0/attn/v"] == Module("transformer.h.0.attn.c_attn", (48, 72), True)
    assert gpt2["blocks/0/mlp/up"] == Module("transformer.h.0.mlp.c_fc", None, True)
    assert gpt2["pos_embed"] == Module("transformer.wpe", None, False)
