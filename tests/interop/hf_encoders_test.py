"""Encoders in the Hugging Face layout: read, written back byte for byte, and the names that checkpoints have in the wild."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny import equal_trees
from tiny_encoder import GOLDEN

from peftjax.interop import base, hf, hf_encoders
from peftjax.interop.base import load_base
from peftjax.nn.tree import flatten


def read(folder):
    opened = hf.open_directory(folder)
    return opened.config, base.load_params(opened.config, opened.family, "hf", opened.sources, str(folder))


def variant(folder, name, change, rename=lambda key: key, drop=(), extra=None):
    """A copy of a golden base with another config.json and other names of tensors."""
    shutil.copytree(GOLDEN / name, folder)
    document = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps({key: value for key, value in document.items() if value is not None}))
    tensors = {rename(key): value for key, value in load_file(folder / "model.safetensors").items() if not key.startswith(tuple(drop))}
    save_file(tensors | (extra or {}), folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_what_is_written_is_what_was_read(name, tmp_path):
    config, params = read(GOLDEN / name)
    hf.write_directory(tmp_path, config, params)
    theirs, ours = load_file(GOLDEN / name / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert theirs.keys() == ours.keys()
    assert all(theirs[key].tobytes() == ours[key].tobytes() for key in theirs)
    written, original = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, GOLDEN / name))
    assert {key: original[key] for key in written if key in original} == {key: value for key, value in written.items() if key in original}
    assert read(tmp_path)[0] == config


def test_xlm_roberta_is_roberta_under_its_own_name(tmp_path):
    folder = variant(tmp_path / "xlm", "roberta", {"architectures": ["XLMRobertaForSequenceClassification"], "model_type": "xlm-roberta"})
    config, params = read(folder)
    assert config.family == "xlm-roberta" and config.position_offset == 2
    equal_trees(params, read(GOLDEN / "roberta")[1])
    hf.write_directory(tmp_path / "written", config, params)
    document = json.loads((tmp_path / "written" / "config.json").read_text())
    assert document["architectures"] == ["XLMRobertaForSequenceClassification"] and document["model_type"] == "xlm-roberta"


@pytest.mark.parametrize("name, bare", [("bert", "BertModel"), ("roberta", "RobertaModel")])
def test_a_bare_model_is_read_without_its_prefix(name, bare, tmp_path):
    pooler = {"pooler.dense.weight": np.eye(32, dtype=np.float32), "pooler.dense.bias": np.ones(32, np.float32)}
    folder = variant(
        tmp_path / "bare", name, {"architectures": [bare]}, lambda key: key.removeprefix(f"{name}."), drop=("classifier", "bert.pooler"),
        extra=pooler | {"embeddings.position_ids": np.arange(64)[None]},
    )
    config, params = read(folder)
    assert config.labels == () and config.pooled
    assert not {"head/kernel", "head/bias"} & set(flatten(params))
    np.testing.assert_array_equal(params["pool"]["kernel"], np.eye(32))
    whole = read(GOLDEN / name)[1]
    equal_trees(params["blocks"], whole["blocks"])
    hf.write_directory(tmp_path / "written", config, params)
    assert json.loads((tmp_path / "written" / "config.json").read_text())["architectures"] == [bare]
    equal_trees(read(tmp_path / "written")[1], params)


@pytest.mark.parametrize("name, masked, aside", [
    ("bert", "BertForMaskedLM", {"cls.predictions.bias": np.zeros(97, np.float32), "bert.pooler.dense.bias": np.zeros(32, np.float32)}),
    ("roberta", "RobertaForMaskedLM", {"lm_head.bias": np.zeros(270, np.float32)}),
])
def test_a_masked_language_model_gives_its_trunk(name, masked, aside, tmp_path):
    old = lambda key: key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")  # noqa: E731
    folder = variant(tmp_path / "mlm", name, {"architectures": [masked]}, old, drop=("classifier", "bert.pooler"), extra=aside)
    config, params = read(folder)
    assert config.labels == () and not config.pooled and "pool" not in params
    equal_trees(params["embed_norm"], read(GOLDEN / name)[1]["embed_norm"])


def test_a_classifier_with_tensors_that_it_does_not_use(tmp_path):
    """RoBERTa's pooler of old checkpoints is left aside; another head beside a classifier is not."""
    pooler = {"roberta.pooler.dense.weight": np.eye(32, dtype=np.float32), "roberta.pooler.dense.bias": np.ones(32, np.float32)}
    equal_trees(read(variant(tmp_path / "old", "roberta", {}, extra=pooler))[1], read(GOLDEN / "roberta")[1])
    with pytest.raises(ValueError, match="extra     cls.predictions.bias"):
        read(variant(tmp_path / "two", "bert", {}, extra={"cls.predictions.bias": np.zeros(97, np.float32)}))


def test_labels_have_the_names_of_the_file(tmp_path):
    named = {"id2label": {"0": "bad", "2": "good", "1": "so-so"}}
    assert read(variant(tmp_path / "named", "bert", named))[0].labels == ("bad", "so-so", "good")
    assert read(variant(tmp_path / "counted", "bert", {"id2label": None, "num_labels": 3}))[0].labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    with pytest.raises(ValueError, match="numbers of id2label are"):
        read(variant(tmp_path / "gap", "bert", {"id2label": {"0": "a", "2": "b"}}))
    with pytest.raises(ValueError, match=r"misshapen classifier.weight: found \[3, 32\], head/kernel wants \[2, 32\]"):
        read(variant(tmp_path / "two", "bert", {"id2label": {"0": "a", "1": "b"}}))


@pytest.mark.parametrize("change, message", [
    ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
    ({"is_decoder": True}, "used as a decoder"),
    ({"problem_type": "regression"}, "problem_type 'regression'"),
    ({"hidden_act": "gelo"}, "hidden_act 'gelo' .*did you mean 'gelu'"),
    ({"max_position_embeddings": None}, "lacks max_position_embeddings"),
])
def test_what_is_not_supported_is_named(change, message):
    document = json.loads((GOLDEN / "bert" / "config.json").read_text()) | change
    with pytest.raises(ValueError, match=message):
        hf_encoders.config_from_document(document, "bert", "here")


def test_a_base_of_an_encoder_needs_no_token_that_ends_a_text():
    loaded = load_base(GOLDEN / "bert")
    assert loaded.tokenizer.eos_id is None and loaded.config.longest == 64
    assert load_base(GOLDEN / "roberta").config.longest == 64  # 66 rows, of which text never takes the first two
