"""What a PEFT directory says is held against its base: saved modules, biases, token rows, copies of base weights, and the base's name."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_bases import GOLDEN, base, base_of, forward, golden, read
from safetensors.numpy import load_file, save_file
from tiny import moved

from peftjax.interop.exchange.adapter import digest, extract
from peftjax.interop.exchange.load import adapt
from peftjax.interop.exchange.modules import Modules
from peftjax.interop.exchange.peft_checks import is_copy
from peftjax.interop.exchange.peft_read import read_peft
from peftjax.interop.exchange.peft_rules import NOTHING, targeted
from peftjax.interop.exchange.peft_write import peft_content, write_peft
from peftjax.models.decoder import cut
from peftjax.peft import attach, bitfit, cut_points, full, lora, merge
from peftjax.peft.tokens import trainable_tokens

START = "base_model.model.model"
EMBED, HEAD = f"{START}.embed_tokens.weight", "base_model.model.lm_head.weight"
COPY = f"{START}.embed_tokens.base_layer.weight"
DELTA = f"{START}.embed_tokens.token_adapter.trainable_tokens_delta"


@pytest.fixture
def edited(tmp_path):
    """edited(variant, config changes, tensor changes) -> a folder; a change of None removes."""

    def edit(variant, config=None, arrays=None):
        folder, arrays = tmp_path / variant, arrays or {}
        shutil.copytree(GOLDEN / "peft" / variant, folder)
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | (config or {})))
        held = load_file(folder / "adapter_model.safetensors") | arrays
        save_file({key: array for key, array in held.items() if array is not None}, folder / "adapter_model.safetensors")
        return folder

    return edit


def keys(variant, part):
    """Keys of a golden adapter that hold `part`."""
    return [key for key in load_file(GOLDEN / "peft" / variant / "adapter_model.safetensors") if part in key]


def trained(name, methods):
    """(the base's tree with these methods, moved off their initial values; how it is cut)."""
    on = base(name)
    segments = cut_points(methods, on.config.layers)
    return moved(attach(cut(on.params, on.config, segments), methods, jax.random.key(0))), segments


def logits_after(adapter, name):
    """Logits of an adapter on a golden base."""
    there = adapt(base(name), adapter)
    return forward(base(name).config, there.params, golden("peft", "plain"), there.segments)


# ---- saved modules -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "left"),
    [
        (None, {"q_proj", "norm", "lm_head"}), (["lm_head"], {"q_proj", "norm"}), (["head"], {"q_proj", "norm", "lm_head"}),
        (["layers.1"], {"norm", "lm_head"}), (["layers.2"], {"q_proj", "norm", "lm_head"}), (["model"], {"lm_head"}),
        (["self_attn"], {"norm", "lm_head"}), (["norm", "lm_head"], {"q_proj"}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("wanted", [["q_proj", "norm", "lm_head"], r".*(q_proj|norm|lm_head)"], ids=["list", "regex"])
def test_a_module_saved_whole_is_no_target(entries, left, wanted):
    """An entry of modules_to_save keeps what it names, and all inside, by whole parts of a name."""
    names = ["model.layers.1.self_attn.q_proj", "model.norm", "lm_head"]
    hit = targeted(names, names, {"target_modules": wanted, "modules_to_save": entries})
    assert {name.rpartition(".")[2] for name in hit} == left


def test_a_target_that_is_saved_whole_is_read_as_saved(edited):
    folder = edited("saved_head", {"target_modules": ["q_proj", "lm_head"]})
    assert json.loads((folder / "adapter_config.json").read_text())["modules_to_save"] == ["lm_head"]
    adapter, plain = read_peft(folder, base("llama").config, base("llama").params), read("peft", "saved_head")
    assert digest(adapter) == digest(plain) and adapter.methods == plain.methods


@pytest.mark.parametrize("targets", ["down_proj", ("down_proj", "blocks/attn_norm"), ("o_proj", "blocks/mlp_norm")])
@pytest.mark.parametrize("layer", [0, 1])
def test_modules_saved_on_some_layers_go_through_peft_and_back(targets, layer, tmp_path):
    methods = [lora(rank=2, targets="q_proj"), full(targets=targets, layers=(layer,))]
    params, segments = trained("llama", methods)
    adapter = extract(params, methods)
    write_peft(tmp_path, adapter, base("llama").config, "llama")
    again = read_peft(tmp_path, base("llama").config, base("llama").params)
    saved = [method for method in again.methods if isinstance(method, full)]
    assert [method.layers for method in saved] == [(layer,)]
    assert digest(again) == digest(adapter)
    found = golden("peft", "plain")
    np.testing.assert_allclose(logits_after(again, "llama"), forward(base("llama").config, params, found, segments), atol=1e-5)


# ---- biases --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["all", "lora_only"])
def test_a_base_without_biases_has_none_to_hold(mode, edited):
    on = base("llama")
    adapter = read_peft(edited("plain", {"bias": mode}), on.config, on.params)
    assert digest(adapter) == digest(read("peft", "plain"))
    assert not any(isinstance(method, bitfit) for method in adapter.methods)


def test_lora_only_asks_for_no_bias_where_no_target_has_one(edited):
    """Qwen2 has biases on q, k and v, and a LoRA on o alone trains none of them; "all" would."""
    assert {Modules.of(base("qwen2").config).has_bias(f"blocks/0/attn/{letter}") for letter in "qkv"} == {True}
    on = base("qwen2")
    adapter = extract(trained("qwen2", [lora(rank=2, targets="o_proj")])[0], [lora(rank=2, targets="o_proj")])
    tensors, config = peft_content(adapter, on.config)
    folder = edited("qwen2", config | {"bias": "lora_only"}, dict.fromkeys(keys("qwen2", "")) | tensors)
    assert digest(read_peft(folder, on.config, on.params)) == digest(adapter)
    (folder / "adapter_config.json").write_text(json.dumps(config | {"bias": "all"}))
    with pytest.raises(ValueError, match="bias is 'all', and the file holds 0 biases"):
        read_peft(folder, on.config, on.params)


@pytest.mark.parametrize(("variant", "mode"), [("bias_all", "all"), ("bias_lora_only", "lora_only")])
def test_a_base_with_biases_wants_those_asked_for(variant, mode, edited):
    on, folder = base_of("peft", variant), edited(variant, {}, dict.fromkeys(keys(variant, "bias")))
    with pytest.raises(ValueError, match=f"bias is '{mode}', and the file holds 0 biases"):
        read_peft(folder, on.config, on.params)


# ---- token rows ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("indices", [[3, 50, 96], {"embed_tokens": [3, 50, 96]}], ids=["list", "by module"])
def test_token_rows_that_are_asked_for_must_be_there(indices, edited):
    on = base("llama")
    with pytest.raises(ValueError, match=f"missing   {DELTA}, which trainable_token_indices asks for"):
        read_peft(edited("tokens", {"trainable_token_indices": indices}, {DELTA: None}), on.config, on.params)


def test_token_rows_of_a_module_that_is_not_there(edited):
    on, folder = base("llama"), edited("tokens", {"trainable_token_indices": {"embed_tokens": [3, 50, 96], "wte": [3]}})
    with pytest.raises(ValueError, match="missing   wte, which trainable_token_indices names: this base has no such module"):
        read_peft(folder, on.config, on.params)


# ---- copies of base weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_copy_is_compared_in_the_dtype_of_the_base(dtype):
    """A file in float32 beside a base that was loaded in half precision is still that base's."""
    on = base("llama")
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.dtype(dtype)), on.params)
    adapter = read_peft(GOLDEN / "peft" / "embed", on.config, params)
    assert adapter.notes == ("model.embed_tokens.base_layer.weight is this base's own weight and was left out",)


@pytest.mark.parametrize("path", ["embed", "head"])
@pytest.mark.parametrize("name", ["llama", "llama_tied"])
def test_a_weight_is_a_copy_and_its_neighbour_is_not(name, path):
    on, modules = base(name), Modules.of(base(name).config)
    tree = on.params
    own = np.asarray(tree["embed"]["embedding"] if path == "embed" or name == "llama_tied" else tree["head"]["kernel"].T)
    assert is_copy(own, path, modules, tree)
    other = own.copy()
    other[3, 4] += 1
    assert not is_copy(other, path, modules, tree) and not is_copy(own[:-1], path, modules, tree)


def test_a_copy_of_another_base_is_refused_or_noted(edited):
    on, folder = base("llama"), edited("embed", {}, {COPY: np.asarray(base("mistral").params["embed"]["embedding"])})
    with pytest.raises(ValueError, match="embed_tokens.base_layer.weight differs from this base's weight: it is of another base"):
        read_peft(folder, on.config, on.params)
    adapter = read_peft(folder, on.config, on.params, other_base=True)
    assert adapter.notes == ("model.embed_tokens.base_layer.weight is another base's weight and was left out",)
    assert digest(adapter) == digest(read("peft", "embed"))


@pytest.mark.parametrize("key", [EMBED, HEAD])
def test_a_table_beside_the_adapter_is_the_bases_or_refused(key, edited):
    """save_embedding_layers leaves tables in the file that modules_to_save does not name."""
    on, name = base("llama"), key.removeprefix("base_model.model.").removesuffix(".weight")
    own = np.array(on.params["embed"]["embedding"] if key == EMBED else on.params["head"]["kernel"].T)
    folder = edited("plain", {}, {key: own})
    adapter = read_peft(folder, on.config, on.params)
    assert adapter.notes == (f"{name}.weight is this base's own weight and was left out",)
    assert digest(adapter) == digest(read("peft", "plain"))
    for other in (own + 1, np.concatenate([own, own[:3]])):  # retrained, resized
        save_file(load_file(GOLDEN / "peft" / "plain" / "adapter_model.safetensors") | {key: other}, folder / "adapter_model.safetensors")
        with pytest.raises(ValueError, match=rf"other     {key} \[{len(other)}, 32\]: a resized or retrained table saved beside"):
            read_peft(folder, on.config, on.params)


# ---- the whole -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "noted"),
    [("", False), ("llama", False), ("/models/Llama/", False), ("/models/llama-1-q8_0.gguf", False), ("org/llama#main", False),
     ("/models/mistral-7b", True), ("org/qwen2#main", True)],
)  # fmt: skip
def test_another_name_of_the_base_is_noted(uri, noted):
    notes = read_peft(GOLDEN / "peft" / "plain", base("llama").config, base("llama").params, uri).notes
    name = uri.rpartition("/")[2].partition("#")[0]
    assert notes == ((f"it names llama as its base, this is {name}",) if noted else ())


@pytest.mark.parametrize(("variant", "other"), [("plain", "gpt2"), ("gpt2_all", "llama"), ("bert", "roberta")])
def test_a_file_of_which_nothing_has_a_place_is_refused_in_one_sentence(variant, other):
    count = len(keys(variant, ""))
    with pytest.raises(ValueError, match=f"does not fit this base: none of its {count} tensors has a place; the first is ") as error:
        read_peft(GOLDEN / "peft" / variant, base(other).config, base(other).params)
    assert "\n" not in str(error.value)


def test_a_file_without_tensors_is_refused(edited):
    folder = edited("plain", {}, dict.fromkeys(keys("plain", "")))
    with pytest.raises(ValueError, match="adapter_model.safetensors holds no tensors"):
        read_peft(folder, base("llama").config, base("llama").params)


# ---- what is written ----------------------------------------------------------------------------------------------------------------

ALONE = {
    "token rows": ("llama", trainable_tokens(ids=(1, 5, 40))),
    "token rows of a tied base": ("llama_tied", trainable_tokens(ids=(5, 1))),
    "the head": ("llama", full(targets="lm_head")),
    "the head of a tied base": ("llama_tied", full(targets="lm_head")),
}


@pytest.mark.parametrize("case", ALONE)
def test_an_adapter_without_lora_targets_nothing(case, tmp_path):
    name, method = ALONE[case]
    on = base(name)
    params, _ = trained(name, [method])
    adapter = extract(params, [method])
    write_peft(tmp_path, adapter, on.config, on.uri)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    if isinstance(method, trainable_tokens):  # a type of its own
        assert config["peft_type"] == "TRAINABLE_TOKENS" and config["target_modules"] == ["embed_tokens"]
    else:
        assert config["target_modules"] == NOTHING == "dummy-target-modules"
    again = read_peft(tmp_path, on.config, on.params)
    assert digest(again) == digest(adapter) and [type(m) for m in again.methods] == [type(method)]
    np.testing.assert_array_equal(logits_after(again, name), forward(on.config, params, golden("peft", "plain")))


@pytest.mark.parametrize("target", ["embed_tokens", "embed", "emb.*"])
@pytest.mark.parametrize("ensured", [True, False])
def test_a_tied_head_follows_the_embedding_however_it_is_named(target, ensured, tmp_path):
    on, methods = base("llama_tied"), [lora(rank=2, targets=("q_proj", target), ensure_weight_tying=ensured)]
    params, _ = trained("llama_tied", methods)
    write_peft(tmp_path, extract(params, methods), on.config, on.uri)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["ensure_weight_tying"] is ensured
    again = read_peft(tmp_path, on.config, on.params)
    np.testing.assert_allclose(logits_after(again, "llama_tied"), forward(on.config, params, golden("peft", "plain")), atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "llama_tied"])
@pytest.mark.parametrize("order", [1, -1], ids=["rows over lora", "lora over rows"])
def test_token_rows_and_a_lora_with_a_bias_on_the_head_merge_to_the_same_logits(name, order):
    """The rows replace whole columns, the bias of the LoRA among them, where they lie above it."""
    methods = [lora(rank=2, lora_bias=True, targets="lm_head"), trainable_tokens(ids=(3, 50, 96), targets="lm_head")][::order]
    params, _ = trained(name, methods)
    found = golden("peft", "plain")
    whole = merge(params)
    assert np.any(np.asarray(whole["head"]["bias"]))
    np.testing.assert_allclose(forward(base(name).config, whole, found), forward(base(name).config, params, found), atol=1e-4)


# ---- every bias beside a saved head --------------------------------------------------------------------------------------------------


def every_bias(change=0.1):
    """What PEFT adds to a BERT classifier's file with bias "all": each bias, and that of the saved head under its wrapper's names too."""
    modules, held = Modules.of(base("bert").config), load_file(GOLDEN / "peft" / "bert" / "adapter_model.safetensors")
    added = {}
    for name, (path, *_) in modules.ours.items():
        if modules.has_bias(path) and name != "classifier":
            under = f"base_model.model.{name}.lora_A.weight" in held
            shape = modules.sizes(path)[-1:]
            added[f"base_model.model.{name}.{'base_layer.' if under else ''}bias"] = np.full(shape, change, np.float32)
    head = held["base_model.model.classifier.bias"]
    return added | {"base_model.model.classifier.modules_to_save.bias": head, "base_model.model.classifier.original_module.bias": head + 1}


def test_every_bias_beside_a_saved_head_is_read(edited):
    """Seen in a file of peft 0.21.2; the wrapper's original is read by nothing."""
    on, added = base("bert"), every_bias()
    adapter = read_peft(edited("bert", {"bias": "all"}, added), on.config, on.params)
    assert [type(method).__name__ for method in adapter.methods] == ["lora", "classifier", "bitfit"]
    biases = {path: piece.arrays["value"] for path, piece in adapter.pieces.items() if path.endswith("/bias")}
    assert len(biases) == len(added) - 2 + 1 and all(np.all(v == np.float32(0.1)) for path, v in biases.items() if path != "head/bias")
    assert any("original_module" in note for note in adapter.notes)
    there, plain = adapt(on, adapter), adapt(on, read("peft", "bert"))
    found = golden("peft", "bert")
    assert np.abs(forward(on.config, there.params, found) - forward(on.config, plain.params, found)).max() > 1e-2


def test_a_bias_under_two_names_must_be_one(edited):
    added = every_bias() | {"base_model.model.classifier.modules_to_save.bias": np.zeros(3, np.float32)}
    with pytest.raises(ValueError, match="classifier.bias is there twice, with different values"):
        read_peft(edited("bert", {"bias": "all"}, added), base("bert").config, base("bert").params)
