"""Into AdapterHub's form: what was read is written byte for byte, what was trained here is read again, and what has no place is refused."""

import json

import jax
import numpy as np
import pytest
from golden_bases import GOLDEN, base, base_of, forward, golden, loaded
from golden_bases import tensors as held
from tiny import equal_trees, moved

from peftjax.interop.exchange.adapter import extract
from peftjax.interop.exchange.adapterhub_read import read_adapterhub
from peftjax.interop.exchange.adapterhub_write import write_adapterhub
from peftjax.interop.exchange.load import adapt
from peftjax.interop.exchange.native import read_native, write_native
from peftjax.models.decoder import cut
from peftjax.peft import attach, bottleneck, classifier, cut_points, full, houlsby, lora, norm_only, parallel, pfeiffer, scaled_parallel

FILES = ("adapter.safetensors", "adapter_config.json", "model_head.safetensors", "head_config.json")
ROUND = (
    *(f"{encoder}_{flavour}" for encoder in ("bert", "roberta") for flavour in ("adapter_plus", "flex_lora", "flex_seq_bn", "ln_before",
                                                                                 "lora", "lora_all", "par_bn", "seq_bn")),
    "adapter_plus", "adapter_plus_ln", "double_seq_bn", "gelu", "gelu_new", "gelu_without_version", "gpt2_lora_all", "gpt2_lora_k",
    "gpt2_par_bn", "gpt2_seq_bn", "head", "leakyrelu", "leave_out", "ln_after", "ln_before", "lora", "lora_1.0.0", "lora_mlp",
    "lora_qkv", "lora_tied", "mistral", "named", "par_bn_attention", "reduction_fraction", "reduction_map", "scaled_par_bn",
    "scaled_seq_bn", "seq_bn", "tied", "union", "dora",
)  # fmt: skip
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
    assert written.pop("config") == document.pop("config") | OTHERWISE.get(variant, {})
    assert written == document | {"version": "adapters.1.3.0"}
    if "head_config.json" in wanted:
        assert json.loads((tmp_path / "1" / "head_config.json").read_text()) == json.loads((theirs / "head_config.json").read_text())

    again = read_adapterhub(tmp_path / "1", on.config, on.params)
    write_adapterhub(tmp_path / "2", again, on.config, document["name"], document["model_name"])
    write_native(tmp_path / "3", again, on)
    write_adapterhub(tmp_path / "4", read_native(tmp_path / "3"), on.config, document["name"], document["model_name"])
    for other in ("2", "4"):
        for name in wanted:
            assert (tmp_path / other / name).read_bytes() == (tmp_path / "1" / name).read_bytes(), (other, name)


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
