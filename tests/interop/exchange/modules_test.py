"""Names of modules in both directions: nothing is lost, sizes are those of the weights, and endings hit what they are meant to."""

import dataclasses

import numpy as np
import pytest
from golden_bases import GOLDEN, base
from hypothesis import given, settings
from hypothesis import strategies as st

from peftjax.interop.exchange.modules import Modules, layer_of, logical
from peftjax.interop.exchange.peft_rules import saved, targeted
from peftjax.interop.safetensors_file import open_safetensors
from peftjax.nn.tree import get

BASES = ("llama", "llama_tied", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt2", "bert", "roberta")


def modules_of(name: str) -> Modules:
    return Modules.of(base(name).config)


@pytest.mark.parametrize("name", BASES)
def test_every_module_of_the_checkpoint_has_ours_and_back(name):
    modules = modules_of(name)
    assert {path for paths in modules.ours.values() for path in paths} == set(modules.theirs)
    assert all(path in modules.ours[module.name] for path, module in modules.theirs.items())
    weights = {key.removesuffix(".weight") for key in open_safetensors(GOLDEN / name / "model.safetensors") if key.endswith(".weight")}
    assert set(modules.ours) - {modules.theirs["head"].name} == weights - {modules.theirs["head"].name}


@pytest.mark.parametrize("name", BASES)
def test_sizes_are_those_of_the_weights(name):
    modules, params = modules_of(name), base(name).params
    for path in modules.theirs:
        leaf = get(params, logical(modules.parameter(path)))
        if leaf is None:
            assert path == "head" and base(name).config.tied
            continue
        assert modules.sizes(path) == leaf.shape[0 if layer_of(path) is None else 1 :], path
        assert modules.has_bias(path) == (get(params, f"{logical(path)}/bias") is not None), path


@pytest.mark.parametrize(("name", "fused"), [("gpt2", {"c_attn"}), ("phi3", {"qkv_proj", "gate_up_proj"}), ("llama", set())])
def test_the_parts_of_a_fused_module_follow_one_another(name, fused):
    modules = modules_of(name)
    several = {module: paths for module, paths in modules.ours.items() if len(paths) > 1}
    assert {module.rpartition(".")[2] for module in several} == fused
    for paths in several.values():
        ends = [modules.theirs[path].part for path in paths]
        assert ends[0][0] == 0 and all(before[1] == after[0] for before, after in zip(ends, ends[1:], strict=False))
        assert [stop - start for start, stop in ends] == [modules.sizes(path)[-1] for path in paths]


def test_kinds():
    llama, gpt2 = modules_of("llama"), modules_of("gpt2")
    kinds = {"embed": "embedding", "head": "linear", "final_norm": "norm", "blocks/1/attn_norm": "norm", "blocks/0/attn/q": "linear"}
    assert {path: llama.kind(path) for path in kinds} == kinds
    assert gpt2.kind("blocks/0/attn/q") == "conv1d" and gpt2.kind("pos_embed") == "embedding"
    assert "lm_head" in llama.linear and "model.norm" not in llama.linear and "model.embed_tokens" not in llama.linear
    with pytest.raises(ValueError, match="blocks/0/attn has no weight of its own"):
        llama.parameter("blocks/0/attn")



def test_paths_and_layers():
    assert (logical("blocks/17/attn/q"), layer_of("blocks/17/attn/q")) == ("blocks/attn/q", 17)
    assert (logical("embed"), layer_of("embed")) == ("embed", None)


def test_the_text_part_of_a_model_of_text_and_images():
    """Names as transformers 5.23 lists them for a Gemma3ForConditionalGeneration; its vision tower has a q_proj in each layer too."""
    alone = modules_of("gemma3")
    within = Modules.of(dataclasses.replace(base("gemma3").config, multimodal=True))
    assert within.theirs["blocks/1/attn/q"].name == "model.language_model.layers.1.self_attn.q_proj"
    assert [within.theirs[path].name for path in ("embed", "final_norm", "head")] == [
        "model.language_model.embed_tokens", "model.language_model.norm", "lm_head"
    ]  # fmt: skip
    assert {name.replace("model.language_model.", "model."): paths for name, paths in within.ours.items()} == alone.ours
    q = sorted(name for name in within.ours if name.endswith("q_proj"))
    vision = [f"model.vision_tower.encoder.layers.{n}.self_attn.q_proj" for n in range(2)]
    for dotted in (True, False):
        assert alone.shortest([name.replace("language_model.", "") for name in q], dotted, alone.ours) == ["q_proj"]
        entries = within.shortest(q, dotted, within.ours)
        hit = [name for name in [*within.ours, *vision] if saved(entries, name)]
        assert sorted(hit) == sorted(targeted([*within.ours, *vision], (), {"target_modules": entries})) == q


@pytest.mark.parametrize("name", ["llama", "gpt2", "roberta"])
def test_a_whole_kind_of_modules_is_named_by_its_ending(name):
    modules = modules_of(name)
    linear = [module for module in modules.linear if module.split(".")[-2:-1] != []]
    assert len(modules.shortest(linear, dotted=True, among=modules.ours)) < len(linear)


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_any_set_of_modules_is_hit_by_its_endings_and_no_other(data):
    modules = modules_of(data.draw(st.sampled_from(["llama", "gpt2", "phi3", "bert", "roberta"])))
    wanted = data.draw(st.sets(st.sampled_from(sorted(modules.ours))))
    endings = data.draw(st.sampled_from([set(), {name.rpartition(".")[2] for name in wanted}]))
    wanted |= {name for name in modules.ours if name.rpartition(".")[2] in endings}
    hit = targeted(list(modules.ours), modules.linear, {"target_modules": modules.shortest(wanted, dotted=True, among=modules.ours)})
    assert set(hit) == wanted
    entries = modules.shortest(wanted, dotted=False, among=modules.ours)
    assert {name for name in modules.ours if saved(entries, name)} == wanted
    assert len(entries) == len(np.unique(entries))
