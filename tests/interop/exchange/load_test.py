"""Any form is known by what lies there, is put on its base, and a manifest beside it is heeded."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from golden_bases import GOLDEN, base, forward, golden, loaded

from peftjax.interop.exchange.adapter import digest
from peftjax.interop.exchange.load import form_of, load_adapter, read_adapter
from peftjax.interop.exchange.manifest import manifest, write_manifest
from peftjax.interop.exchange.native import write_native
from peftjax.interop.exchange.peft_write import write_peft
from peftjax.peft import adapters

HUB = GOLDEN / "adapterhub" / "seq_bn"
PEFT = GOLDEN / "peft" / "plain"


def with_manifest(folder, adapter, on):
    """A manifest of ours beside the files of another form."""
    write_manifest(folder, manifest(adapter, on), [file.name for file in folder.iterdir() if "adapter" in file.name])


@pytest.fixture
def own(tmp_path):
    write_native(tmp_path / "own", loaded("peft", "plain").adapter, base("llama"))
    return tmp_path / "own"


def test_the_form_is_known_by_what_lies_there(own):
    assert [form_of(folder) for folder in (own, PEFT, HUB)] == ["peftjax", "HF PEFT", "AdapterHub"]


@pytest.mark.parametrize("which", ["own", "peft", "hub"])
def test_every_form_gives_its_logits_under_the_name_asked_for(which, own):
    folder, peer, variant = {"own": (own, "peft", "plain"), "peft": (PEFT, "peft", "plain"), "hub": (HUB, "adapterhub", "seq_bn")}[which]
    on, found = base("llama"), golden(peer, variant)
    there = load_adapter(folder, on, "task")
    assert adapters(there.params) == ["task"] and {method.name for method in there.methods} == {"task"}
    np.testing.assert_allclose(forward(on.config, there.params, found, there.segments), found["logits"], atol=1e-4)


def test_an_adapter_on_some_layers_cuts_the_stack():
    there = load_adapter(GOLDEN / "peft" / "layers", base("llama"))
    assert there.segments == (1, 1) and "blocks_1_2" in there.params and "blocks" not in there.params


def test_no_adapter_is_answered_with_the_forms(tmp_path):
    with pytest.raises(FileNotFoundError, match="(?s)no directory .*our own form.*HF PEFT.*AdapterHub"):
        form_of(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"has no adapter_config.json \(found: nothing\)"):
        form_of(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"neither HF PEFT's \(no peft_type\) nor AdapterHub's \(no config\)"):
        form_of(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        form_of(tmp_path)


@pytest.mark.parametrize("form", ["peftjax", "HF PEFT"])
def test_the_same_shapes_of_another_base_are_refused_unless_asked_for(form, tmp_path):
    """Mistral's shapes are Llama's here: names and shapes fit, and only the fingerprint tells."""
    adapter = loaded("peft", "mistral").adapter
    if form == "peftjax":
        write_native(tmp_path, adapter, base("mistral"))
    else:
        write_peft(tmp_path, adapter, base("mistral").config)
        assert read_adapter(tmp_path, base("llama")).base is None  # PEFT's files do not say
        with_manifest(tmp_path, adapter, base("mistral"))
    assert form_of(tmp_path) == form
    with pytest.raises(ValueError, match="was made for another base: base llama has fingerprint .*made for mistral"):
        load_adapter(tmp_path, base("llama"))
    assert load_adapter(tmp_path, base("llama"), other_base=True).adapter.base == base("mistral").fingerprint
    assert load_adapter(tmp_path, base("mistral")).adapter.base == base("mistral").fingerprint


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("qwen2", r"(?s)does not fit this base.*misshapen blocks/0/mlp/up/kernel b: stored \[4, 64\], this base wants \[4, 48\]"),
        ("llama_tied", r"misshapen blocks/0/attn/q/kernel b: stored \[4, 32\], this base wants \[4, 48\]"),
        ("gpt2", "target 'gate_proj' matches no kernel; did you mean 'v_proj'"),
    ],
)  # fmt: skip
def test_other_shapes_are_refused_even_where_another_base_was_asked_for(name, message, own):
    with pytest.raises(ValueError, match=message):
        load_adapter(own, base(name), other_base=True)


def test_a_manifest_beside_another_form_is_heeded_and_its_lineage_kept(tmp_path):
    folder = tmp_path / "hub"
    shutil.copytree(HUB, folder)
    adapter = dataclasses.replace(loaded("adapterhub", "seq_bn").adapter, lineage={"run": "r1"})
    with_manifest(folder, adapter, base("llama"))
    again = read_adapter(folder, base("llama"))
    assert again.lineage["run"] == "r1" and again.lineage["format"] == "AdapterHub"
    assert again.tokenizer == base("llama").tokenizer.fingerprint and digest(again) == digest(adapter)
    document = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(document | {"name": "x"}))
    with pytest.raises(ValueError, match="adapter_config.json is not the file that peftjax.json lists"):
        read_adapter(folder, base("llama"))
