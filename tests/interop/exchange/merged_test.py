"""Merged bases: any loader reads them, they compute what base and adapter do, and what has no dense form is refused."""

import json

import jax
import numpy as np
import pytest
import tiny_checkpoint
from golden_bases import base, base_of, forward, golden, loaded
from tiny import moved

from peftjax.interop import hf
from peftjax.interop.base import Base, load_base, load_params
from peftjax.interop.exchange.merged import write_merged
from peftjax.models.decoder import cut
from peftjax.peft import attach, bitfit, classifier, full, lora, pfeiffer
from peftjax.peft.tokens import trainable_tokens

MERGED = (
    "plain", "embed_tied", "embed_tied_ensured", "head_tied", "saved_head_tied", "saved_norm", "lora_bias", "bias_all", "tokens_head",
    "tokens_tied", "layers", "patterns", "phi3", "gpt2_all", "gemma2", "qwen2",
)  # fmt: skip
UNTIED = ("embed_tied", "head_tied", "saved_head_tied")


def reopened(folder, name) -> Base:
    """What lies in a folder; the golden bases' vocabularies are smaller than the tiny tokenizer's, which is not looked at."""
    opened = hf.open_directory(folder)
    params = load_params(opened.config, opened.family, "hf", opened.sources, name)
    return Base(name, opened.config, params, base(name).tokenizer, "")


@pytest.mark.parametrize("variant", MERGED)
def test_the_written_model_computes_what_base_and_adapter_do(variant, tmp_path):
    on, there, found = base_of("peft", variant), loaded("peft", variant), golden("peft", variant)
    write_merged(tmp_path, on, there.params, there.methods)
    again = reopened(tmp_path, on.uri)
    np.testing.assert_allclose(forward(again.config, again.params, found), found["logits"], atol=1e-4)
    assert again.config.tied == (on.config.tied and variant not in UNTIED)


@pytest.mark.parametrize("variant", ["bert_lora", "roberta_flex_lora"])
def test_a_classifier_is_written_with_its_labels(variant, tmp_path):
    on, there, found = base_of("adapterhub", variant), loaded("adapterhub", variant), golden("adapterhub", variant)
    write_merged(tmp_path, on, there.params, there.methods)
    again = reopened(tmp_path, on.uri)
    np.testing.assert_allclose(forward(again.config, again.params, found), found["logits"], atol=1e-4)
    assert not (tmp_path / "generation_config.json").exists()
    methods = [classifier(labels=("no", "yes"), hidden=False)]
    write_merged(tmp_path / "two", base("bert"), attach(base("bert").params, methods, jax.random.key(0)), tuple(methods))
    assert hf.open_directory(tmp_path / "two").config.labels == ("no", "yes")


@pytest.mark.parametrize("target", ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
def test_a_bias_behind_any_lora_is_a_bias_of_its_group(target, tmp_path):
    """A config.json of Llama knows biases of all attention and of all of the MLP: the others of the group are zero."""
    on = base("llama")
    params = moved(attach(on.params, [lora(rank=2, lora_bias=True, targets=target)], jax.random.key(0)))
    write_merged(tmp_path, on, params)
    document = json.loads((tmp_path / "config.json").read_text())
    attention = target[0] in "qkvo"
    assert (document["attention_bias"], document["mlp_bias"]) == (attention, not attention)
    again, found = reopened(tmp_path, "llama"), golden("peft", "plain")
    np.testing.assert_allclose(forward(again.config, again.params, found), forward(on.config, params, found), atol=1e-4)
    module = ("attn/" if attention else "mlp/") + target.partition("_")[0]
    biases = {p: again.params["blocks"][p.partition("/")[0]][p.partition("/")[2]]["bias"] for p in
              (["attn/q", "attn/k", "attn/v", "attn/o"] if attention else ["mlp/gate", "mlp/up", "mlp/down"])}  # fmt: skip
    assert {path for path, bias in biases.items() if np.any(bias)} == {module}


ON_SOME_LAYERS = (
    lora(rank=2, lora_bias=True, targets="o_proj", layers=(1,)), bitfit(targets="o_proj", add=True, layers=(1,)),
)  # fmt: skip


@pytest.mark.parametrize("method", ON_SOME_LAYERS, ids=lambda method: type(method).__name__)
def test_a_bias_on_some_layers_is_zero_on_the_others(method, tmp_path):
    on, found = base("llama"), golden("peft", "plain")
    llama = moved(attach(cut(on.params, on.config, (1, 1)), [method], jax.random.key(0)))
    write_merged(tmp_path / "out", on, llama)
    again = reopened(tmp_path / "out", "llama")
    wanted = forward(on.config, llama, found, (1, 1))
    np.testing.assert_allclose(forward(again.config, again.params, found), wanted, atol=1e-4)
    assert not np.allclose(wanted, forward(on.config, on.params, found), atol=1e-2)
    bias = again.params["blocks"]["attn"]["o"]["bias"]
    assert [layer for layer in range(on.config.layers) if np.any(bias[layer])] == [1]
    qwen2 = moved(attach(cut(base("qwen2").params, base("qwen2").config, (1, 1, 1)), [method], jax.random.key(0)))
    with pytest.raises(ValueError, match="a config.json of Qwen2ForCausalLM cannot say out_bias=True"):
        write_merged(tmp_path / "qwen2", base("qwen2"), qwen2)


@pytest.mark.parametrize("name", ["gemma2", "qwen3"])
def test_other_families_with_one_attention_bias(name, tmp_path):
    on = base(name)
    params = moved(attach(on.params, [lora(rank=2, lora_bias=True, targets="v_proj")], jax.random.key(0)))
    write_merged(tmp_path, on, params)
    again, found = reopened(tmp_path, name), {"tokens": np.arange(12).reshape(2, 6)}
    np.testing.assert_allclose(forward(again.config, again.params, found), forward(on.config, params, found), atol=1e-4)


@pytest.mark.parametrize(("name", "target"), [("mistral", "q_proj"), ("phi3", "o_proj"), ("gemma2", "up_proj"), ("qwen2", "o_proj")])
def test_a_bias_that_the_family_has_no_word_for_is_refused_and_nothing_is_written(name, target, tmp_path):
    params = moved(attach(base(name).params, [lora(rank=2, lora_bias=True, targets=target)], jax.random.key(0)))
    with pytest.raises(ValueError, match="a config.json of .* cannot say"):
        write_merged(tmp_path / "out", base(name), params)
    assert not (tmp_path / "out").exists()


def test_a_bottleneck_is_refused_by_name(tmp_path):
    params = attach(base("llama").params, [lora(rank=2), pfeiffer(size=3)], jax.random.key(0))
    with pytest.raises(TypeError, match="blocks/mlp_out/default: a network at a site has no dense weight"):
        write_merged(tmp_path / "out", base("llama"), params)
    assert not (tmp_path / "out").exists()


# ---- a base with its own tokenizer ---------------------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path) -> Base:
    tiny_checkpoint.write(tmp_path / "base")
    return load_base(tmp_path / "base")


def trained(on, *methods):
    return moved(attach(on.params, methods or (lora(rank=2),), jax.random.key(0)))


def test_shards_index_tokenizer_and_generation_config(own, tmp_path):
    params = trained(own)
    write_merged(tmp_path / "whole", own, params)
    write_merged(tmp_path / "parts", own, params, shard_bytes=40_000)
    whole, parts = load_base(tmp_path / "whole"), load_base(tmp_path / "parts")
    shards = sorted(file.name for file in (tmp_path / "parts").glob("*.safetensors"))
    assert len(shards) > 2 and [file.name for file in (tmp_path / "whole").glob("*.safetensors")] == ["model.safetensors"]
    index = json.loads((tmp_path / "parts" / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == shards
    assert whole.fingerprint == parts.fingerprint != own.fingerprint and whole.config == own.config
    assert whole.tokenizer.fingerprint == own.tokenizer.fingerprint
    text = "turn <|im_end|> on"
    assert whole.tokenizer.encode(text) == own.tokenizer.encode(text)
    generation = json.loads((tmp_path / "whole" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == own.tokenizer.eos_id and generation["bos_token_id"] == own.tokenizer.bos_id
    write_merged(tmp_path / "parts", own, params)
    assert load_base(tmp_path / "parts").fingerprint == whole.fingerprint  # the index of before is gone


def test_an_adapter_that_does_nothing_merges_into_the_base_bit_for_bit(own, tmp_path):
    write_merged(tmp_path / "out", own, attach(own.params, [lora(rank=2)], jax.random.key(0)))
    assert load_base(tmp_path / "out").fingerprint == own.fingerprint


def test_a_merged_base_may_be_written_in_half_precision(own, tmp_path):
    params = trained(own, lora(rank=2), trainable_tokens(ids=(3,)))
    write_merged(tmp_path / "full", own, params)
    write_merged(tmp_path / "half", own, params, dtype="bfloat16")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    full_size, half_size = (sum(f.stat().st_size for f in (tmp_path / d).glob("*.safetensors")) for d in ("full", "half"))
    assert half_size < 0.55 * full_size
    whole = load_base(tmp_path / "full", dtype="bfloat16")
    assert load_base(tmp_path / "half", dtype="bfloat16").fingerprint == whole.fingerprint


def test_a_head_trained_apart_makes_the_config_untied(own, tmp_path):
    assert own.config.tied
    write_merged(tmp_path / "out", own, trained(own, full(targets="lm_head")))
    again = load_base(tmp_path / "out")
    assert not again.config.tied and "lm_head.weight" in hf.open_directory(tmp_path / "out").sources
    np.testing.assert_array_equal(again.params["embed"]["embedding"], own.params["embed"]["embedding"])
