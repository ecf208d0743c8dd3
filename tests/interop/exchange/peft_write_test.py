"""Into HF PEFT's form: what was read is written byte for byte, what was trained here is read again, and what has no place is refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from golden_bases import GOLDEN, base, base_of, forward, golden, loaded, read, tensors
from tiny import equal_trees, moved

from peftjax.interop.exchange.adapter import Adapter, Piece, extract
from peftjax.interop.exchange.load import adapt
from peftjax.interop.exchange.modules import Modules
from peftjax.interop.exchange.native import read_native, write_native
from peftjax.interop.exchange.peft_methods import ADALORA, LORA_IDLE
from peftjax.interop.exchange.peft_read import read_peft
from peftjax.interop.exchange.peft_rules import pattern_value, saved, targeted
from peftjax.interop.exchange.peft_write import peft_content, write_peft
from peftjax.models.decoder import cut
from peftjax.nn.tree import flatten, get
from peftjax.peft import attach, bitfit, classifier, cut_points, full, lora, merge, norm_only, pfeiffer
from peftjax.peft.adalora import adalora
from peftjax.peft.boft import boft
from peftjax.peft.delora import delora
from peftjax.peft.hira import hira
from peftjax.peft.hra import hra
from peftjax.peft.loha import loha
from peftjax.peft.lokr import lokr
from peftjax.peft.miss import miss
from peftjax.peft.oft import oft
from peftjax.peft.prefix import prefix
from peftjax.peft.prompt import p_tuning, prompt_tuning
from peftjax.peft.road import road
from peftjax.peft.shira import shira
from peftjax.peft.tokens import trainable_tokens

ROUND = (
    "plain", "all_linear", "mistral", "rslora", "patterns", "patterns_rslora", "layers", "regex", "excluded", "excluded_regex", "embed",
    "embed_tied", "embed_tied_ensured", "head_tied", "embed_head_tied", "embed_head_tied_ensured", "saved_head", "saved_head_tied",
    "saved_embed_tied", "saved_embed_tied_ensured", "saved_embed_head", "saved_norm", "lora_bias", "bias_lora_only", "bias_all",
    "tokens", "tokens_tied", "tokens_head", "float16", "bfloat16", "gpt2_attn", "gpt2_all", "gpt2_embed", "phi3", "qwen2", "gemma2",
    "bert", "roberta", "dora", "dora_patterns", "dora_biased", "dora_embed", "gpt2_dora", "phi3_dora",
)  # fmt: skip
ALIKE = (
    "task_type", "base_model_name_or_path", "bias", "lora_bias", "use_rslora", "use_dora", "lora_dropout", "fan_in_fan_out",
    "ensure_weight_tying",
)  # fmt: skip


def meaning(config: dict, modules: Modules) -> dict:
    """What a config says, by PEFT's own rules: ranks, alphas and places by module, and what is plain."""
    adapted = targeted(list(modules.ours), modules.linear, config)
    tokens = config.get("trainable_token_indices") or {}
    return {name: config[name] for name in ALIKE} | {
        "tokens": tokens if isinstance(tokens, dict) else {"embed_tokens": tokens},
        "ranks": {name: pattern_value(config["rank_pattern"], name, config["r"]) for name in adapted},
        "alphas": {name: float(pattern_value(config["alpha_pattern"], name, config["lora_alpha"])) for name in adapted},
        "saved": {name for name in modules.ours if saved(config["modules_to_save"], name)},
    }


def of_the_tree(peer, variant) -> Adapter:
    """A golden adapter as it comes out of the tree it was inserted into."""
    there = loaded(peer, variant)
    return extract(there.params, there.methods, dtype=there.adapter.dtype, lineage=there.adapter.lineage)


@pytest.mark.parametrize("variant", ROUND)
def test_what_was_read_is_written_byte_for_byte(variant, tmp_path):
    """Copies of the base's own weights are left out; the second round is the first; through our own form nothing changes."""
    theirs, on = GOLDEN / "peft" / variant, base_of("peft", variant)
    document = json.loads((theirs / "adapter_config.json").read_text())
    write_peft(tmp_path / "1", of_the_tree("peft", variant), on.config, on.uri, document["task_type"])
    wanted = {key: tensor for key, tensor in tensors(theirs / "adapter_model.safetensors").items() if "base_layer.weight" not in key}
    assert tensors(tmp_path / "1" / "adapter_model.safetensors") == wanted
    written, modules = json.loads((tmp_path / "1" / "adapter_config.json").read_text()), Modules.of(on.config)
    assert meaning(written, modules) == meaning(document, modules)

    again = read_peft(tmp_path / "1", on.config, on.params)
    write_peft(tmp_path / "2", again, on.config, on.uri, document["task_type"])
    write_native(tmp_path / "3", again, on)
    write_peft(tmp_path / "4", read_native(tmp_path / "3"), on.config, on.uri, document["task_type"])
    for other in ("2", "4"):
        for file in ("adapter_model.safetensors", "adapter_config.json"):
            assert (tmp_path / other / file).read_bytes() == (tmp_path / "1" / file).read_bytes(), (other, file)


# As of LoRA above; what else the config says of a method is compared field by field.
OTHERS = (
    "loha", "lokr", "lokr_both", "lokr_dense", "hira", "vera", "randlora", "randlora_sparse", "delora", "gralora", "gralora_hybrid",
    "fourierft", "shira", "miss", "miss_bat", "miss_mini", "ia3", "ia3_attention", "oft", "oft_neumann", "oft_shared", "boft", "hra",
    "hra_gs", "road_1", "road_2", "road_4", "ln_tuning", "prompt_tuning", "prefix_tuning", "trainable_tokens", "trainable_tokens_tied",
    "bert_prompt_tuning", "roberta_prompt_tuning", "bert_prefix_tuning",
    "gpt2_ia3", "phi3_ia3", "phi3_oft", "phi3_loha", "phi3_road", "bias_oft", "saved_loha",
)  # fmt: skip
# Said module by module, in the words of either; compared by what they mean.
BY_MODULE = ("target_modules", "feedforward_modules", "rank_pattern", "alpha_pattern", "lambda_pattern", "n_frequency_pattern")


@pytest.mark.parametrize("variant", OTHERS)
def test_other_methods_are_written_byte_for_byte(variant, tmp_path):
    theirs, on = GOLDEN / "peft" / variant, base_of("peft", variant)
    document = json.loads((theirs / "adapter_config.json").read_text())
    write_peft(tmp_path / "1", of_the_tree("peft", variant), on.config, on.uri, document["task_type"])
    assert tensors(tmp_path / "1" / "adapter_model.safetensors") == tensors(theirs / "adapter_model.safetensors")
    written, modules = json.loads((tmp_path / "1" / "adapter_config.json").read_text()), Modules.of(on.config)
    assert written.keys() == document.keys()
    if document["task_type"] == "SEQ_CLS":  # PEFT names each of them twice
        assert set(written["modules_to_save"]) == set(document.pop("modules_to_save")) and written.pop("modules_to_save")
    assert {name: value for name, value in written.items() if name not in BY_MODULE} == {
        name: value for name, value in document.items() if name not in BY_MODULE
    }
    names = list(modules.ours)
    assert set(written.get("feedforward_modules", ())) <= set(written["target_modules"] if "target_modules" in written else ())
    assert not any(key.startswith("^") for key in written.get("n_frequency_pattern", ()))  # PEFT looks for these behind a dot
    for name in {"target_modules", "feedforward_modules"} & set(document):
        hit = [set(targeted(names, modules.linear, {"target_modules": config[name]})) for config in (written, document)]
        assert hit[0] == hit[1], name
    for name in {*BY_MODULE[2:]} & set(document) if variant != "hira" else ():  # whose exceptions PEFT does not heed
        for module in targeted(names, modules.linear, document):
            assert pattern_value(written[name], module, None) == pattern_value(document[name], module, None), (name, module)
    again = read_peft(tmp_path / "1", on.config, on.params)
    write_native(tmp_path / "3", again, on)
    write_peft(tmp_path / "4", read_native(tmp_path / "3"), on.config, on.uri, document["task_type"])
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "4" / file).read_bytes() == (tmp_path / "1" / file).read_bytes()


@pytest.mark.parametrize("variant", ["adalora", "adalora_pruned"])
def test_ranks_that_were_pruned_are_left_out_as_peft_leaves_them_out(variant, tmp_path):
    theirs, on = GOLDEN / "peft" / variant, base_of("peft", variant)
    document = json.loads((theirs / "adapter_config.json").read_text())
    write_peft(tmp_path / "1", of_the_tree("peft", variant), on.config, on.uri, document["task_type"])
    assert tensors(tmp_path / "1" / "adapter_model.safetensors") == tensors(theirs / "adapter_model.safetensors")
    written = json.loads((tmp_path / "1" / "adapter_config.json").read_text())
    unsaid = {*LORA_IDLE, *ADALORA.refused, "trainable_token_indices"}  # of LoRA's config, and off
    assert document.keys() - written.keys() <= unsaid
    assert {**document, **written, "target_modules": None} == {**document, "target_modules": None}
    assert set(written["target_modules"]) == set(document["target_modules"])
    write_native(tmp_path / "3", read_peft(tmp_path / "1", on.config, on.params), on)
    write_peft(tmp_path / "4", read_native(tmp_path / "3"), on.config, on.uri, document["task_type"])
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "4" / file).read_bytes() == (tmp_path / "1" / file).read_bytes()


def test_what_an_lstm_computed_is_written(tmp_path):
    on, method = base("llama"), p_tuning(length=3, hidden=5, encoder="lstm")
    params = moved(attach(on.params, [method], jax.random.key(0)))
    write_peft(tmp_path, extract(params, [method]), on.config, on.uri)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["encoder_reparameterization_type"], config["encoder_num_layers"]) == ("LSTM", 2)
    there = adapt(on, read_peft(tmp_path, on.config, on.params))
    np.testing.assert_allclose(there.params["prompt"]["default"].embedding, params["prompt"]["default"].folded().embedding, atol=1e-6)


def test_what_was_computed_is_written_of_an_encoder(tmp_path):
    """Prompts and prefixes of an encoder: PEFT's file has what it computes, and says that there was one."""
    on, found = base("llama"), {"tokens": np.arange(12).reshape(2, 6)}
    for method, kind in ((p_tuning(length=3, hidden=5), "P_TUNING"), (prefix(length=3, hidden=5), "PREFIX_TUNING")):
        params = moved(attach(on.params, [method], jax.random.key(0)))
        write_peft(tmp_path / kind, extract(params, [method]), on.config, on.uri)
        config = json.loads((tmp_path / kind / "adapter_config.json").read_text())
        assert (config["peft_type"], config["encoder_hidden_size"]) == (kind, 5)
        there = adapt(on, read_peft(tmp_path / kind, on.config, on.params))
        assert len(there.adapter.notes) == 1
        np.testing.assert_allclose(forward(on.config, there.params, found), forward(on.config, params, found), atol=1e-5)


TRAINED = {
    "lora on everything": ("llama", [lora(rank=2, alpha=3, targets=["all-linear", "embed_tokens", "lm_head"])]),
    "an alpha that is no whole number": ("llama", [lora(rank=3, alpha=0.7, rslora=True, targets="q_proj")]),
    "patterns by layer": ("llama", [lora(rank=2, alpha=8, rank_pattern={"blocks/1/.*": 3}, alpha_pattern={"blocks/0/attn/v": 5})]),
    "layers": ("llama", [lora(rank=2, targets=["q_proj", "lm_head"]), lora(rank=3, targets="v_proj", layers=[1])]),
    "orthogonal": ("llama", [lora(rank=2, init="orthogonal", targets=["q_proj"])]),
    "lora and its biases": ("llama_tied", [lora(rank=2, targets=["q_proj", "up_proj"]), bitfit(targets=["q_proj", "up_proj"])]),
    "every bias": ("gpt2", [lora(rank=2, targets=["q_proj", "k_proj", "v_proj"]), bitfit(targets="all")]),
    "lora bias": ("mistral", [lora(rank=2, alpha=6, lora_bias=True, targets=["k_proj", "down_proj"])]),
    "tokens and a saved head": ("llama", [lora(rank=2), trainable_tokens(ids=(5, 1)), full(targets=["lm_head"])]),
    "a tied head follows": ("llama_tied", [lora(rank=2, targets=["embed_tokens"])]),
    "a tied head stays": ("llama_tied", [lora(rank=2, targets=["embed_tokens"], ensure_weight_tying=False)]),
    "a saved embedding": ("llama_tied", [lora(rank=2, targets="q_proj", ensure_weight_tying=False),
                                         full(targets=["embed_tokens"], ensure_weight_tying=False)]),
    "norms": ("qwen2", [lora(rank=2, targets="o_proj"), norm_only()]),
    "biases of fused modules": ("phi3", [lora(rank=2, targets=["q_proj", "v_proj"], alpha_pattern={"v_proj": 5}, lora_bias=True)]),
    "parts of fused modules": ("phi3", [lora(rank=2, targets=["q_proj", "gate_proj", "up_proj"])]),
    "DoRA": ("llama", [lora(rank=2, alpha=3, dora=True, targets=["all-linear", "embed_tokens", "lm_head"],
                            rank_pattern={"blocks/1/.*": 3})]),
    "AdaLoRA": ("llama", [adalora(rank=3, target_rank=2, warmup=2, targets=["q_proj", "down_proj"])]),
    "DoRA of fused modules": ("phi3", [lora(rank=2, dora=True, alpha_pattern={"v_proj": 5})]),
    "DoRA on an encoder": ("roberta", [lora(rank=2, dora=True, targets=["query"])]),
    "a classifier": ("bert", [lora(rank=2, targets=["query"]), classifier(labels=("a", "b", "c"), hidden=False)]),
    "a classifier with a layer": ("roberta", [lora(rank=2, targets=["query"]), classifier(labels=4)]),
}  # fmt: skip


@pytest.mark.slow  # a program for each method: half a minute
@pytest.mark.parametrize("case", TRAINED)
def test_what_was_trained_here_is_read_again(case, tmp_path):
    name, methods = TRAINED[case]
    on = base(name)
    segments = cut_points(methods, on.config.layers)
    params = moved(attach(cut(on.params, on.config, segments), methods, jax.random.key(0)))
    task = "SEQ_CLS" if hasattr(on.config, "labels") else "CAUSAL_LM"
    write_peft(tmp_path, extract(params, methods), on.config, on.uri, task)
    there = adapt(on, read_peft(tmp_path, on.config, on.params))
    if name in ("phi3", "gpt2"):  # fused modules get another factorisation of the same products
        ours, theirs = merge(cut(params, on.config, ())), merge(cut(there.params, on.config, ()))
        for path, leaf in flatten(ours).items():
            np.testing.assert_allclose(leaf, get(theirs, path), rtol=1e-5, atol=1e-5, err_msg=path)
    elif segments == there.segments:
        equal_trees(there.params, params)
    found = golden("peft", "bert") | ({} if task == "SEQ_CLS" else {"tokens": np.arange(12).reshape(2, 6)})
    np.testing.assert_allclose(
        forward(on.config, there.params, found, there.segments), forward(on.config, params, found, segments), atol=1e-5
    )


# ---- fused modules -------------------------------------------------------------------------------------------------------------------


def fused_parts(name, cases):
    """Pieces of q, k, v of layer 1: by part (rank, scale, seed of `a`)."""
    modules, pieces = Modules.of(base(name).config), {}
    for letter, (rank, scale, seed) in cases.items():
        inputs, outputs = modules.sizes(f"blocks/1/attn/{letter}")
        a = np.random.default_rng(seed).standard_normal((rank, inputs)).astype(np.float32)
        b = np.random.default_rng(ord(letter)).standard_normal((rank, outputs)).astype(np.float32)
        pieces[f"blocks/1/attn/{letter}/kernel"] = Piece("LoRA", {"a": a, "b": b, "scale": np.float32(scale)})
    return pieces


@pytest.mark.parametrize("name", ["phi3", "gpt2"])
@pytest.mark.parametrize(
    ("parts", "rank"),
    [
        ({"q": (2, 1.5, 0)}, 2), ({"v": (3, 0.5, 0)}, 3), ({"q": (2, 1.5, 0), "k": (2, 0.25, 1)}, 4),
        ({"q": (2, 1.5, 0), "k": (1, 1.5, 1), "v": (3, 4.0, 2)}, 6), ({"q": (2, 1.5, 0), "k": (2, 1.5, 0), "v": (2, 1.5, 0)}, 2),
    ],
    ids=["q", "v", "two scales", "three ranks", "shared"],
)  # fmt: skip
def test_a_fused_module_changes_by_what_its_parts_change_by(name, parts, rank):
    config, pieces = base(name).config, fused_parts(name, parts)
    written, document = peft_content(Adapter((lora(rank=2),), pieces), config)
    (module,) = {key.partition(".lora_")[0] for key in written}
    a, b = written[f"{module}.lora_A.weight"], written[f"{module}.lora_B.weight"]
    assert a.shape[0] == rank == document["r"]
    modules = Modules.of(config)
    wanted = []
    for letter in "qkv":
        piece = pieces.get(f"blocks/1/attn/{letter}/kernel")
        size = modules.sizes(f"blocks/1/attn/{letter}")
        wanted.append(np.zeros(size) if piece is None else piece.arrays["scale"] * piece.arrays["a"].T @ piece.arrays["b"])
    np.testing.assert_allclose(document["lora_alpha"] / rank * (b @ a), np.concatenate(wanted, axis=1).T, rtol=1e-5, atol=1e-5)


# ---- what has no place ---------------------------------------------------------------------------------------------------------------

HOMELESS = {
    "a bottleneck": ("llama", [lora(rank=2), pfeiffer(size=3)],
                     r"HF PEFT has no place for blocks/0/mlp_out \(Bottleneck\).*AdapterHub's form"),
    "two dropouts": ("llama", [lora(targets="q_proj", dropout=0.1), lora(targets="v_proj")], "one dropout for all modules.*0.1 and 0.0"),
    "DoRA and not": ("llama", [lora(targets="q_proj", dora=True), lora(targets="v_proj")], "one dora for all modules.*True and False"),
    "DoRA on a part": ("phi3", [lora(rank=2, dora=True, targets=["q_proj", "v_proj"])],
                       "DoRA on model.layers.0.self_attn.qkv_proj as a whole, and here it stands on blocks/0/attn/q, .*/v alone"),
    "DoRA that a tied head follows": ("llama_tied", [lora(rank=2, dora=True, targets="embed_tokens")],
                                      "no place for DoRA on model.embed_tokens that the tied lm_head follows"),
    "rsLoRA and not": ("llama", [lora(targets="q_proj", rslora=True), lora(targets="v_proj")], "one rslora for all modules"),
    "a third of a fused weight": ("gpt2", [full(targets=["q_proj"])], "saves transformer.h.0.attn.c_attn as a whole; only blocks/0/attn/q"),
    "some biases": ("llama_tied", [lora(targets=["q_proj"]), bitfit(targets=["up_proj"])], "biases of none, of all modules or of those"),
    "two methods": ("llama", [lora(rank=2, targets="q_proj"), loha(rank=2, targets="v_proj")], "one method a file; here are LORA, LOHA"),
    "tokens beside another method": ("llama", [loha(rank=2), trainable_tokens(ids=(3,))], "trains token rows beside LoRA, not beside LOHA"),
    "two ranks of HiRA": ("llama", [hira(rank=2, rank_pattern={"q_proj": 3})], r"one rank for all modules of HIRA; here are \[2, 3\]"),
    "biases beside LoHa": ("llama_tied", [loha(rank=2, targets="q_proj"), bitfit(targets=["q_proj"])], "no bias beside LOHA"),
    "LoKr on a part": ("phi3", [lokr(rank=2, targets=["q_proj"])], "LoKr on model.layers.0.self_attn.qkv_proj as a whole"),
    **{f"{type(method).__name__} on a Conv1D": ("gpt2", [dataclasses.replace(method, targets=["o_proj"])],
                                                "no .* on transformer.h.0.attn.c_proj, a Conv1D there")
       for method in (boft(), delora(), hra(), loha(), lokr(), miss(rank=4), oft(block_size=4), road(group=4), shira(rank=2))},
    "a prompt beside LoRA": ("llama", [lora(rank=2), prompt_tuning(length=2)], "one method a file where that method stands before"),
    "a classifier that reads the text": ("bert", [prompt_tuning(length=2), classifier(labels=2, hidden=False)],
                                         "no place for virtual tokens with offset=True, reads='text': .*reads='prompt'"),
    "virtual tokens behind the norm": ("roberta", [p_tuning(length=2, offset=False, reads="prompt"), classifier(labels=2)],
                                       "no place for .*offset=False"),
    "a prefix without a classifier": ("bert", [prefix(length=2)], "only with the classifier beside them; attach classifier"),
    "a pooler beside a prompt": ("bert", [prompt_tuning(length=2, reads="prompt"), classifier(labels=2)],
                                 "saves classifier and score, and bert.pooler.dense is neither"),
    "a gated prefix": ("llama", [prefix(length=2, gates=1)], "no place for a prefix with gates"),
    "a prefix at position 0": ("llama", [prefix(length=2, offset=False)], "no place for a prefix with offset=False"),
    "added biases": ("llama", [lora(targets=["q_proj", "k_proj"]), bitfit(targets=["q_proj"], add=True)], "biases of none"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOMELESS)
def test_what_peft_has_no_place_for_is_refused_and_nothing_is_written(case, tmp_path):
    name, methods, message = HOMELESS[case]
    adapter = extract(attach(base(name).params, methods, jax.random.key(0)), methods)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        write_peft(tmp_path / "out", adapter, base(name).config)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_an_export_may_be_in_half_precision(dtype, tmp_path):
    on, adapter = base("mistral"), dataclasses.replace(read("peft", "mistral"), dtype=dtype)
    write_peft(tmp_path, adapter, on.config)
    again = read_peft(tmp_path, on.config)
    assert again.dtype == dtype
    for path, piece in adapter.pieces.items():
        for field in ("a", "b"):
            rounded = np.asarray(jax.numpy.asarray(piece.arrays[field]).astype(dtype).astype("float32"))
            np.testing.assert_array_equal(again.pieces[path].arrays[field], rounded)
