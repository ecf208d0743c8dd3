"""Into AdapterHub's form: what was read is written byte for byte, what was trained here is read again, and what has no place is refused."""

import json

import jax
import numpy as np
import pytest
from golden_bases import GOLDEN, base, base_of, forward, golden, loaded, read
from golden_bases import tensors as held
from tiny import equal_trees, moved

from peftjax.interop.exchange.adapter import extract
from peftjax.interop.exchange.adapterhub_read import read_adapterhub
from peftjax.interop.exchange.adapterhub_write import write_adapterhub
from peftjax.interop.exchange.load import adapt
from peftjax.interop.exchange.native import read_native, write_native
from peftjax.models.decoder import cut
from peftjax.nn.tree import get
from peftjax.peft import (
    attach,
    bottleneck,
    classifier,
    compacter,
    cut_points,
    direft,
    full,
    gated_lora,
    houlsby,
    ia3,
    invertible,
    lora,
    loreft,
    noreft,
    norm_only,
    p_tuning,
    parallel,
    pfeiffer,
    prefix,
    prompt_tuning,
    scaled_parallel,
    vera,
)
from peftjax.peft.blocks import orthonormal

FILES = ("adapter.safetensors", "adapter_config.json", "model_head.safetensors", "head_config.json")
ROUND = (
    *(f"{encoder}_{flavour}" for encoder in ("bert", "roberta") for flavour in ("adapter_plus", "flex_lora", "flex_seq_bn", "ln_before",
                                                                                 "lora", "lora_all", "par_bn", "seq_bn")),
    "adapter_plus", "adapter_plus_ln", "double_seq_bn", "gelu", "gelu_new", "gelu_without_version", "gpt2_lora_all", "gpt2_lora_k",
    "gpt2_par_bn", "gpt2_seq_bn", "head", "leakyrelu", "leave_out", "ln_after", "ln_before", "lora", "lora_1.0.0", "lora_mlp",
    "lora_qkv", "lora_tied", "mistral", "named", "par_bn_attention", "reduction_fraction", "reduction_map", "scaled_par_bn",
    "scaled_seq_bn", "seq_bn", "tied", "union", "dora",
    "bert_flex_prompt", "bert_prompt", "roberta_prompt",
    "bert_ia3", "bert_prefix", "bert_seq_bn_inv", "compacter", "compacter_frozen_rule", "compacter_plus_plus", "direft",
    "double_seq_bn_inv", "gpt2_ia3", "gpt2_lora_gated", "gpt2_prefix", "gpt2_seq_bn_inv", "ia3_all", "lora_gated", "mam",
    "mistral_prefix", "noreft", "prefix", "prefix_gated", "prefix_mlp", "seq_bn_gated", "seq_bn_inv", "unipelt",
)  # fmt: skip
# Where the tensors written say the same in other words: a canonical parametrisation, a LoRA, a scale that is folded in.
IN_OTHER_WORDS = ("bert_loreft", "loreft", "loreft_prefix", "loreft_tied", "noreft_suffix", "vera", "vera_diagonal")
# Where the config written says the same in other words: flags that do not matter on Llama, mends of old files, a map written out.
PLUS = {"original_ln_after": True, "residual_before_ln": True}
OTHERWISE = {
    "adapter_plus": PLUS, "adapter_plus_ln": PLUS, "gelu_without_version": {"non_linearity": "gelu_new"}, "lora_1.0.0": {"alpha": 4},
    "reduction_map": {"reduction_factor": {"0": 16, "1": 4, "default": 16}}, "gpt2_lora_all": {"attn_matrices": ["q", "k", "v"]},
}  # fmt: skip


@pytest.mark.parametrize("variant", ROUND)
def test_what_was_read_is_written_byte_for_byte(variant, tmp_path):
    """The second round is the first, through our own form nothing changes; a language-model head that is the base's is left out."""
    theirs, on, there = GOLDEN / "adapterhub" / variant, base_of("adapterhub", variant), loaded("adapterhub", variant)
    document = json.loads((theirs / "adapter_config.json").read_text())
    adapter = extract(there.params, there.methods, dtype=there.adapter.dtype, lineage=there.adapter.lineage)
    write_adapterhub(tmp_path / "1", adapter, on.config, document["name"], document["model_name"])
    wanted = {name for name in FILES if (theirs / name).exists() and (variant != "head" or "head" not in name)}
    assert {file.name for file in (tmp_path / "1").iterdir()} == wanted
    for name in wanted:
        if name.endswith("safetensors"):
            assert held(tmp_path / "1" / name) == held(theirs / name)
    written = json.loads((tmp_path / "1" / "adapter_config.json").read_text())
    config = document.pop("config")
    if variant == "unipelt":
        config["configs"][2]["alpha"] = 8  # which does nothing beside a gate
    assert written.pop("config") == config | OTHERWISE.get(variant, {})
    assert written == document | {"version": "adapters.1.3.0"}
    if "head_config.json" in wanted:
        assert json.loads((tmp_path / "1" / "head_config.json").read_text()) == json.loads((theirs / "head_config.json").read_text())

    written_again(tmp_path, on, document, wanted)


def written_again(tmp_path, on, document, wanted):
    """What lies in folder 1 is written byte for byte when it is read, and through our own form too."""
    again = read_adapterhub(tmp_path / "1", on.config, on.params)
    write_adapterhub(tmp_path / "2", again, on.config, document["name"], document["model_name"])
    write_native(tmp_path / "3", again, on)
    write_adapterhub(tmp_path / "4", read_native(tmp_path / "3"), on.config, document["name"], document["model_name"])
    for other in ("2", "4"):
        for name in wanted:
            assert (tmp_path / other / name).read_bytes() == (tmp_path / "1" / name).read_bytes(), (other, name)


@pytest.mark.parametrize("variant", IN_OTHER_WORDS)
def test_what_is_written_in_other_words_is_the_same_adapter(variant, tmp_path):
    theirs, on, first = GOLDEN / "adapterhub" / variant, base_of("adapterhub", variant), read("adapterhub", variant)
    document = json.loads((theirs / "adapter_config.json").read_text())
    write_adapterhub(tmp_path / "1", first, on.config, document["name"], document["model_name"])
    again = read_adapterhub(tmp_path / "1", on.config, on.params)
    assert again.methods == first.methods and again.pieces.keys() == first.pieces.keys()
    for path, piece in first.pieces.items():
        for field, array in piece.arrays.items():
            np.testing.assert_array_equal(again.pieces[path].arrays[field], array)
    written_again(tmp_path, on, document, {file.name for file in (tmp_path / "1").iterdir()})
    if "reft" in variant:
        config = json.loads((tmp_path / "1" / "adapter_config.json").read_text())["config"]
        assert config == document["config"] and held(tmp_path / "1" / FILES[0]).keys() == held(theirs / FILES[0]).keys()


TRAINED = {
    "houlsby": ("llama", [houlsby(size=3)]),
    "a size that divides nothing": ("llama", [pfeiffer(size=11, activation="gelu", scale="channel")]),
    "wider than the base": ("llama", [pfeiffer(size=40)]),
    "layers": ("llama", [pfeiffer(size=5, layers=[1], norm="both")]),
    "a size a layer": ("gpt2", [houlsby(size=2, layers=[0, 2]), houlsby(size=7, layers=[1])]),
    "parallel": ("mistral", [parallel(size=3)]),
    "scaled": ("llama_tied", [scaled_parallel(size=3)]),
    "lora": ("llama", [lora(rank=3, alpha=0.7, targets=["q_proj", "k_proj", "up_proj"])]),
    "union": ("llama", [lora(rank=2, targets=["v_proj"]), pfeiffer(size=3)]),
    "a head": ("llama", [pfeiffer(size=3), full(targets=["lm_head"])]),
    "behind the norm": ("bert", [bottleneck(size=3, sites=("block_out",), reads="output"), classifier(labels=("a", "b"))]),
    "a static head": ("bert", [lora(rank=2, targets=["query", "down_proj"]), classifier(labels=4, hidden=False)]),
    "fused": ("gpt2", [lora(rank=2, targets=["q_proj", "v_proj"])]),
}  # fmt: skip


@pytest.mark.parametrize("case", TRAINED)
def test_what_was_trained_here_is_read_again(case, tmp_path):
    name, methods = TRAINED[case]
    on, segments = base(name), cut_points(methods, base(name).config.layers)
    params = moved(attach(cut(on.params, on.config, segments), methods, jax.random.key(0)))
    write_adapterhub(tmp_path, extract(params, methods), on.config, "tone", on.uri)
    there = adapt(on, read_adapterhub(tmp_path, on.config, on.params))
    assert there.segments == segments
    equal_trees(there.params, params)
    found = golden("adapterhub", "bert_lora") | ({} if name == "bert" else {"tokens": np.arange(12).reshape(2, 6)})
    np.testing.assert_array_equal(forward(on.config, there.params, found, segments), forward(on.config, params, found, segments))


# Of the other methods; equal trees are enough, as their logits are compared when they are read.
UNIPELT = [gated_lora(rank=2, gate="row"), prefix(length=2, hidden=3, offset=False, gates=2, gating="mean"), pfeiffer(size=3, gate="mean")]
OTHERS_TRAINED = {
    "unipelt": ("llama", UNIPELT),
    "mam": ("bert", [prefix(length=2, offset=False), scaled_parallel(size=3), classifier(labels=2)]),
    "compacter": ("gpt2", [compacter(size=8, layers=(0, 2), learn_rule=False), invertible(activation="gelu")]),
    "invertible alone": ("llama", [invertible(reduction_factor=4, activation="tanh")]),
    "ia3": ("llama", [ia3(targets=("q_proj", "up_proj"), feedforward=())]),
    "vera": ("llama", [vera(rank=3, targets=("k_proj", "v_proj"))]),
    "noreft": ("llama", [noreft(rank=2, prefix_positions=1, suffix_positions=1)]),
    "a prompt": ("roberta", [prompt_tuning(length=3, offset=False), pfeiffer(size=3), classifier(labels=2)]),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS_TRAINED)
def test_what_else_was_trained_here_is_read_again(case, tmp_path):
    name, methods = OTHERS_TRAINED[case]
    on, segments = base(name), cut_points(methods, base(name).config.layers)
    params = moved(attach(cut(on.params, on.config, segments), methods, jax.random.key(0)))
    write_adapterhub(tmp_path, extract(params, methods), on.config, "tone", on.uri)
    equal_trees(adapt(on, read_adapterhub(tmp_path, on.config, on.params)).params, params)


def test_direft_is_written_as_the_noreft_that_computes_the_same(tmp_path):
    methods = [direft(rank=2, prefix_positions=1, suffix_positions=1, tied=True)]
    params = moved(attach(base("llama").params, methods, jax.random.key(0)))
    write_adapterhub(tmp_path, extract(params, methods), base("llama").config)
    again = read_adapterhub(tmp_path, base("llama").config)
    assert again.methods == (noreft(rank=2, prefix_positions=1, suffix_positions=1, tied=True, init="random"),)
    h = np.random.default_rng(0).standard_normal((1, 4, 32)).astype(np.float32)
    found, wanted = (jax.tree.map(lambda leaf: leaf[1], get(tree, f"blocks/block_out/{name}")) for tree, name in (
        (adapt(base("llama"), again).params, "default"), (params, "default")))  # fmt: skip
    np.testing.assert_allclose(found(h), wanted(h), atol=2e-5)
    assert np.abs(wanted(h) - h).max() > 0.1


def test_rows_that_were_trained_are_written_orthonormal(tmp_path):
    methods = [loreft(rank=3, suffix_positions=2)]
    params = moved(attach(base("llama").params, methods, jax.random.key(0)), 0.3)
    write_adapterhub(tmp_path, extract(params, methods), base("llama").config)
    again = read_adapterhub(tmp_path, base("llama").config)
    for layer in range(2):
        for unit in range(2):
            rows = get(params, "blocks/block_out/default").projection[layer, unit]
            found = again.pieces[f"blocks/{layer}/block_out"].arrays["projection"][unit]
            np.testing.assert_allclose(found, orthonormal(rows), atol=2e-6)
            np.testing.assert_allclose(found @ found.T, np.eye(3), atol=1e-6)


HOMELESS = {
    "lora on o_proj": ("llama", [lora(rank=2, targets=["o_proj"])], "no place for LoRA on model.layers.0.self_attn.o_proj"),
    "lora on the embedding": ("llama", [lora(rank=2, targets=["embed_tokens"])], "no place for LoRA on model.embed_tokens"),
    "a bias": ("llama", [lora(rank=2, targets=["q_proj"], lora_bias=True)], "no place for a bias behind its LoRA"),
    "two ranks": ("llama", [lora(rank=2, targets=["q_proj", "v_proj"], rank_pattern={"q_proj": 3})], "has one rank .* here are 3, 2"),
    "two scales": ("llama", [lora(rank=2, targets=["q_proj", "v_proj"], alpha_pattern={"q_proj": 3})], "has one scale"),
    "trained norms": ("llama", [norm_only()], r"no place for .*attn_norm/scale \(Trained\)"),
    "a site of ours": ("llama", [bottleneck(size=3, sites=("attn_in",), reads="output")], "no place for bottlenecks at attn_in"),
    "two sizes in a layer": ("llama", [bottleneck(size=2, sites=("attn_out",)), bottleneck(size=3, sites=("mlp_out",))],
                             "one bottleneck size a layer"),
    "DoRA with a scale": ("llama", [lora(rank=2, alpha=3, dora=True, targets="q_proj")], "this DoRA: its norms lack the scale .* 1.5"),
    "DoRA on GPT-2": ("gpt2", [lora(dora=True, targets=["q_proj", "v_proj"])], "this DoRA: its norms on GPT-2 run along the wrong axis"),
    "DoRA beside a bias": ("bert", [lora(dora=True, targets="query")], "this DoRA: it scales the bias of bert.*self.query too"),
    "DoRA and LoRA": ("llama", [lora(dora=True, targets="q_proj"), lora(targets="v_proj")], "one kind of LoRA for the whole adapter"),
    "a head alone": ("bert", [classifier(labels=2)], "this one is a head alone"),
    "two activations": ("llama", [bottleneck(size=2, sites=("attn_out",)), bottleneck(size=2, sites=("mlp_out",), activation="tanh")],
                        "has one activation"),
    "a gate of each token": ("llama", [pfeiffer(size=3, gate="token")], "gates are means over a row, gate='mean'"),
    "a LoRA's gate of each token": ("llama", [gated_lora(rank=2)], "gates are means over a row, gate='row'"),
    "a gated LoRA with alpha": ("llama", [gated_lora(rank=2, gate="row", alpha=4)], "AdapterHub's scale of GatedLoRA is 1; .* is 2"),
    "an annealed activation": ("llama", [pfeiffer(size=3, anneal=True)], "no place for an activation that is annealed"),
    "IA3 of an input": ("llama", [ia3()], "scales the output of model.layers.0.mlp.down_proj, and here its input is scaled"),
    "IA3 on o_proj": ("llama", [ia3(targets="o_proj", feedforward=())], "no place for IA3 on model.layers.0.self_attn.o_proj"),
    "VeRA of two sizes": ("llama", [vera(rank=2, targets=("q_proj", "v_proj"))], "this VeRA: VeRA on modules of several sizes"),
    "VeRA on GPT-2": ("gpt2", [vera(rank=2, targets="q_proj")], "no place for this VeRA: AdapterHub itself cannot compute with VeRA"),
    "a prefix of tokens": ("llama", [prefix(length=2)], "no place for a prefix with offset=True: its positions begin at 0"),
    "a prefix's gate of each token": ("llama", [prefix(length=2, offset=False, gates=1)], "a prefix with a gate of each token"),
    "two activations of a union": ("llama", [pfeiffer(size=2), invertible(activation="tanh")], "one activation for a bottleneck and its"),
    "two kinds of bottleneck": ("llama", [pfeiffer(size=2), compacter(size=4, sites=("attn_out",))], "one kind of bottleneck"),
    "IA3 and LoRA": ("llama", [ia3(targets="k_proj", feedforward=()), lora(targets="v_proj")], "one kind of LoRA .* here are LoRA, IA3"),
    "DiReFT with an activation": ("llama", [direft(rank=2, activation="relu")], "no place for DiReFT, whose files it loads as NoReFT"),
    "too many rows": ("llama", [loreft(rank=32)], "no place for this ReFT: r 32: as many orthonormal rows"),
    "a prompt on a decoder": ("llama", [prompt_tuning(length=2)], "this prompt: it has prompts on encoders alone"),
    "a prompt with positions": ("bert", [prompt_tuning(length=2)], "this prompt: .* without positions, offset=False"),
    "P-tuning": ("bert", [p_tuning(length=2, offset=False)], r"no place for prompt \(PromptEncoder\)"),
    "a prompt beside ReFT": ("bert", [prompt_tuning(length=2, offset=False), noreft(rank=2, prefix_positions=1)], "ReFT beside a prompt"),
    "another family": ("qwen2", [pfeiffer(size=3)], "what AdapterHub computes on qwen2 is not known here"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOMELESS)
def test_what_adapterhub_has_no_place_for_is_refused_and_nothing_is_written(case, tmp_path):
    name, methods, message = HOMELESS[case]
    adapter = extract(attach(base(name).params, methods, jax.random.key(0)), methods)
    with pytest.raises(ValueError, match=message):
        write_adapterhub(tmp_path / "out", adapter, base(name).config)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["", "a.b"])
def test_a_name_that_would_break_a_key_is_refused(name, tmp_path):
    there = loaded("adapterhub", "seq_bn")
    with pytest.raises(ValueError, match="an adapter cannot be called"):
        write_adapterhub(tmp_path, there.adapter, base("llama").config, name)
