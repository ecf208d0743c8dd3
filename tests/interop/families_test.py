"""The tables of weight names: complete, unambiguous, and in step with the decoder."""

import pytest
import tiny_checkpoint

from peftjax.interop.families import FAMILIES, FORMATS, Module, family_for, family_named, hf_modules
from peftjax.models.decoder import abstract_params
from peftjax.nn.tree import flatten


@pytest.mark.parametrize("config", [tiny_checkpoint.CONFIG, tiny_checkpoint.BIASED, tiny_checkpoint.WINDOWED])
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
    with pytest.raises(ValueError, match="config.json: architecture 'GPT2LMHeadModel' is not supported; supported are LlamaFor"):
        family_for("hf", "GPT2LMHeadModel", "config.json")
    with pytest.raises(ValueError, match="family 'gemma9' is not known"):
        family_named("gemma9")


@pytest.mark.parametrize("config", [tiny_checkpoint.CONFIG, tiny_checkpoint.BIASED])
def test_modules_are_those_of_the_tree_with_the_layer_in_the_path(config):
    modules = hf_modules(family_named(config.family), config)
    paths = {path.rpartition("/")[0] for path in flatten(abstract_params(config))}
    ours = {p.replace("blocks/", f"blocks/{n}/") for p in paths for n in range(config.layers)}
    assert modules.keys() == ours | {"head"}
    assert modules["blocks/2/attn/q"] == Module("model.layers.2.self_attn.q_proj", None, False)
    assert (modules["embed"].name, modules["head"].name, modules["final_norm"].name) == ("model.embed_tokens", "lm_head", "model.norm")
