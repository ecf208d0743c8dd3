"""Heads beside AdapterHub's adapters: what is the base's own is left out, what was trained is kept, what is neither is refused."""

import json
import shutil

import numpy as np
import pytest
from golden_bases import GOLDEN, base, read
from safetensors.numpy import load_file, save_file

from peftjax.interop.exchange.adapter import Adapter, Piece
from peftjax.interop.exchange.heads import head_content, of_head, read_head
from peftjax.interop.exchange.modules import Modules
from peftjax.peft import classifier, full

ABOUT = {"model_name": "x"}


def head_of(variant, name, params=True, folder=None):
    on = base(name)
    return read_head(folder or GOLDEN / "adapterhub" / variant, Modules.of(on.config), on.params if params else None)


@pytest.fixture
def copied(tmp_path):
    """copied(variant, changes of the document, changes of its config, changes of tensors) -> a folder; None removes."""

    def copy(variant, document=None, config=None, arrays=None):
        folder = tmp_path / variant
        shutil.copytree(GOLDEN / "adapterhub" / variant, folder)
        content = json.loads((folder / "head_config.json").read_text()) | (document or {})
        if config:
            content["config"] |= config
        (folder / "head_config.json").write_text(json.dumps(content))
        held = load_file(folder / "model_head.safetensors") | (arrays or {})
        save_file({name: array for name, array in held.items() if array is not None}, folder / "model_head.safetensors")
        return folder

    return copy


@pytest.mark.parametrize(
    ("variant", "name", "form", "hidden", "paths"),
    [
        ("bert_lora", "bert", "static", False, {"head"}), ("bert_flex_lora", "bert", "flexible", True, {"head", "pool"}),
        ("roberta_lora", "roberta", "static", True, {"head", "pool"}), ("roberta_flex_lora", "roberta", "flexible", True, {"head", "pool"}),
    ],
)  # fmt: skip
def test_classification_heads(variant, name, form, hidden, paths):
    head = head_of(variant, name)
    assert head.form == form and head.methods == (classifier(labels=3, hidden=hidden),)
    assert set(head.pieces) == {f"{path}/{leaf}" for path in paths for leaf in ("kernel", "bias")}
    assert all(of_head(path, piece) for path, piece in head.pieces.items())
    stored = load_file(GOLDEN / "adapterhub" / variant / "model_head.safetensors")
    assert any(np.array_equal(head.pieces["head/kernel"].arrays["value"], array.T) for array in stored.values())


def test_a_folder_without_a_head_has_none(tmp_path):
    assert head_of("lora", "llama", folder=tmp_path) == ((), {}, (), "")


def test_labels_are_those_of_the_file_in_their_order(copied):
    ids = {"yes": 2, "no": 0, "perhaps": 1}
    assert head_of("", "bert", folder=copied("bert_lora", {"label2id": ids})).methods[0].labels == ("no", "perhaps", "yes")
    assert head_of("", "bert", folder=copied("bert_flex_lora", {}, {"label2id": ids})).methods[0].labels == ("no", "perhaps", "yes")


def test_a_language_models_head_is_left_out_where_it_is_the_bases(copied):
    assert head_of("head", "llama") == ((), {}, ("lm_head.weight beside the adapter is the base's own and was left out",), "")
    assert "not compared" in head_of("head", "llama", params=False).notes[0]


@pytest.mark.parametrize("name", ["llama", "llama_tied"])
def test_a_language_models_head_that_was_trained_is_kept(name, copied):
    weight = np.random.default_rng(0).standard_normal((97, 32)).astype(np.float32)
    head = head_of("", name, folder=copied("head", arrays={"lm_head.weight": weight}))
    assert head.methods == (full(targets=("lm_head",)),)
    np.testing.assert_array_equal(head.pieces["head/kernel"].arrays["value"], weight.T)


def test_a_tied_bases_head_is_its_embedding(copied):
    own = np.asarray(base("llama_tied").params["embed"]["embedding"])
    assert head_of("", "llama_tied", folder=copied("head", arrays={"lm_head.weight": own})).methods == ()


EDITS = {
    "three layers": ("bert_flex_lora", "bert", {"layers": 3}, {}, r"a head with \{'layers': 3\} is not supported"),
    "a pooler": ("bert_flex_lora", "bert", {"use_pooler": True}, {}, "'use_pooler': True"),
    "another kind": ("bert_flex_lora", "bert", {"head_type": "tagging"}, {}, "'head_type': 'tagging'"),
    "a missing bias": ("bert_lora", "bert", {}, {"classifier.bias": None}, r"missing \['classifier.bias'\], extra none"),
    "a layer of its own": ("bert_lora", "bert", {}, {"dense.weight": np.ones((32, 32), np.float32)}, r"extra \['dense.weight'\]"),
    "a head of BERT's": ("bert_lora", "roberta", {}, {}, "is no classification head of this base"),
    "another vocabulary": ("head", "llama", {}, {"lm_head.weight": np.ones((98, 32), np.float32)},
                           r"\[98, 32\], this base wants \[97, 32\]"),
    "more than a head": ("head", "llama", {}, {"lm_head.bias": np.ones(97, np.float32)}, "holds lm_head.bias, lm_head.weight; a language"),
}  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
def test_what_is_no_head_of_this_base_is_refused(edit, copied):
    variant, name, config, arrays, message = EDITS[edit]
    with pytest.raises(ValueError, match=message):
        head_of("", name, folder=copied(variant, {}, config, arrays))


def content_of(name, *methods, lineage=None, **arrays):
    pieces = {path.replace("_", "/"): Piece("Trained", {"value": array}) for path, array in arrays.items()}
    return head_content("tone", Adapter(methods, pieces, lineage=lineage or {}), Modules.of(base(name).config), ABOUT)


WEIGHTS = {"head_kernel": np.ones((32, 2), np.float32), "head_bias": np.ones(2, np.float32)}
POOL = {"pool_kernel": np.ones((32, 32), np.float32), "pool_bias": np.ones(32, np.float32)}


@pytest.mark.parametrize(
    ("name", "hidden", "lineage", "keys"),
    [
        ("bert", False, {}, {"classifier"}), ("bert", True, {}, {"heads.tone.1", "heads.tone.4"}),
        ("roberta", True, {}, {"heads.tone.1", "heads.tone.4"}),
        ("roberta", True, {"head": "static"}, {"classifier.dense", "classifier.out_proj"}),
    ],
)  # fmt: skip
def test_a_head_is_written_in_the_form_it_came_in(name, hidden, lineage, keys):
    arrays = WEIGHTS | (POOL if hidden else {})
    tensors, document = content_of(name, classifier(labels=("no", "yes"), hidden=hidden), lineage=lineage, **arrays)
    assert set(tensors) == {f"{key}.{leaf}" for key in keys for leaf in ("weight", "bias")}
    ids = (document["config"] or document)["label2id"]
    assert ids == {"no": 0, "yes": 1} and document["model_name"] == "x"
    assert document["name"] == (None if keys & {"classifier", "classifier.dense"} else "tone")


def test_what_is_no_head_is_written_nowhere():
    assert content_of("llama") == ({}, {})
    tensors, document = content_of("llama", full(targets="lm_head"), head_kernel=np.ones((32, 97), np.float32))
    assert tensors["lm_head.weight"].shape == (97, 32) and document["config"] is None
    with pytest.raises(ValueError, match="language-model head is one weight; here are head/bias, head/kernel"):
        content_of("llama", **WEIGHTS)
    assert not of_head("head/kernel", Piece("LoRA", {})) and not of_head("final_norm/scale", Piece("Trained", {}))


def test_the_golden_flexible_head_says_so():
    assert read("adapterhub", "bert_flex_lora").lineage["head"] == "flexible"
    assert read("adapterhub", "bert_lora").lineage["head"] == "static"
