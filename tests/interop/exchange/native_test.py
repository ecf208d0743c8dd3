"""Our own directory: every method there and back bit for bit, and a folder that was changed is refused."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from golden_bases import base, loaded, read
from safetensors.numpy import load_file
from tiny import equal_trees, moved

from peftjax.interop.exchange.adapter import Adapter, digest, extract
from peftjax.interop.exchange.load import adapt
from peftjax.interop.exchange.native import read_native, write_native
from peftjax.models.decoder import cut
from peftjax.peft import attach, bitfit, bottleneck, classifier, cut_points, full, head_only, lora, norm_only, spec
from peftjax.peft.across_layers import across_layers
from peftjax.peft.adalora import adalora
from peftjax.peft.boft import boft
from peftjax.peft.compacter import compacter
from peftjax.peft.delora import delora
from peftjax.peft.dense_delta import dense_delta
from peftjax.peft.fourierft import fourierft
from peftjax.peft.gated_lora import gated_lora
from peftjax.peft.gralora import gralora
from peftjax.peft.hira import hira
from peftjax.peft.hra import hra
from peftjax.peft.ia3 import ia3
from peftjax.peft.invertible import invertible
from peftjax.peft.loha import loha
from peftjax.peft.lokr import lokr
from peftjax.peft.miss import miss
from peftjax.peft.oft import oft
from peftjax.peft.prefix import prefix
from peftjax.peft.prompt import p_tuning, prompt_tuning
from peftjax.peft.randlora import randlora
from peftjax.peft.reft import direft
from peftjax.peft.road import road
from peftjax.peft.shira import shira
from peftjax.peft.tokens import trainable_tokens
from peftjax.peft.vera import vera

METHODS = {
    "lora": ("llama_tied", [lora(rank=2, alpha=0.3, targets=["all-linear", "embed_tokens", "lm_head"], lora_bias=True, dropout=0.1)]),
    "patterns": ("llama", [lora(rank=2, rank_pattern={"blocks/1/.*": 3}, alpha_pattern={"v_proj": 7.5}, rslora=True)]),
    "layers": ("gpt2", [lora(rank=2, targets="q_proj", layers=[1]), bottleneck(size=3, layers=[0, 2])]),
    "everywhere": ("llama", [bottleneck(size=3, sites=("embed_out", "block_out"), reads="output", norm="both", scale="learned")]),
    "parts": ("llama", [bitfit(add=True), norm_only()]),
    "full": ("llama_tied", [full()]),
    "head": ("llama_tied", [head_only()]),
    "tokens": ("llama", [trainable_tokens(ids=(9, 3), targets=["embed_tokens", "lm_head"])]),
    "shared matrices": ("llama", [vera(rank=3, targets=["q_proj", "down_proj", "lm_head"])]),
    "shared bases": ("llama", [randlora(rank=12, targets=["q_proj", "v_proj"])]),
    "whole numbers": ("llama", [shira(rank=1, targets="q_proj"), fourierft(frequencies=5, targets="v_proj")]),
    "optional factors": ("llama", [lokr(rank=1, targets="q_proj"), gralora(rank=4, hybrid_rank=2, targets="v_proj")]),
    "ranks": ("llama", [adalora(rank=3, target_rank=2, targets="q_proj"), loha(rank=2, rank_pattern={"blocks/1/.*": 3}, targets="v_proj")]),
    "transforms": ("llama", [ia3(), oft(block_size=4, targets="q_proj"), hra(rank=2, targets="o_proj"), road(group=8, targets="up_proj")]),
    "a prompt's encoder": ("llama", [p_tuning(length=2, hidden=3)]),
    "a prompt's LSTM": ("llama", [p_tuning(length=2, hidden=3, encoder="lstm", depth=1)]),
    "a prefix's encoder": ("llama", [prefix(length=2, hidden=3, gates=2)]),
    "DiReFT": ("llama", [direft(rank=2, prefix_positions=2, suffix_positions=1)]),
    "other deltas": ("llama", [
        hira(rank=2, targets="q_proj"), miss(rank=4, targets="k_proj"), delora(rank=2, targets="v_proj"), dense_delta(targets="o_proj"),
        gated_lora(rank=2, targets="up_proj"), boft(targets="down_proj"),
    ]),
    "shared by layers": ("llama", [across_layers(lora(rank=2)), prompt_tuning(length=2)]),
    "PHM": ("llama", [compacter(size=8), invertible()]),
    "classifier": ("bert", [lora(rank=2), classifier(labels=("no", "yes"))]),
}  # fmt: skip


def test_every_method_there_is_can_be_stored():
    found = {type(method).__name__ for _, row in METHODS.values() for method in row}
    assert found | {"fusion"} == set(spec.METHODS)  # that is beside others: tests/peft/fusion_test.py


@pytest.mark.parametrize("case", METHODS)
def test_every_method_there_and_back(case, tmp_path):
    name, methods = METHODS[case]
    on, segments = base(name), cut_points(methods, base(name).config.layers)
    params = moved(attach(cut(on.params, on.config, segments), methods, jax.random.key(0)))
    adapter = extract(params, methods, lineage={"run": "x", "steps": 3})
    write_native(tmp_path, adapter, on)
    again = read_native(tmp_path)
    assert digest(again) == digest(adapter) and again.methods == tuple(_plain(method) for method in methods)
    assert (again.base, again.tokenizer, again.lineage) == (on.fingerprint, on.tokenizer.fingerprint, {"run": "x", "steps": 3})
    there = adapt(on, again)
    assert there.segments == segments
    equal_trees(there.params, params)


def _plain(method):
    """A method as it comes back from JSON: lists are tuples."""
    fields = {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}
    return dataclasses.replace(method, **{name: tuple(value) for name, value in fields.items() if isinstance(value, list)})


def test_tensors_are_called_by_place_and_field_and_kept_in_float32(tmp_path):
    """The dtype of an import is kept as that of a later export; what is stored here are the masters."""
    write_native(tmp_path, read("peft", "bfloat16"), base("llama"))
    held = load_file(tmp_path / "peftjax.safetensors")
    assert {array.dtype.name for array in held.values()} == {"float32"}
    assert held["blocks/1/attn/q/kernel/a"].shape == (4, 32) and held["blocks/1/attn/q/kernel/scale"] == 2
    assert read_native(tmp_path).dtype == "bfloat16"


def test_whole_numbers_stay_whole(tmp_path):
    write_native(tmp_path, read("peft", "tokens"), base("llama"))
    ids = read_native(tmp_path).pieces["embed/embedding"].arrays["ids"]
    assert ids.dtype == np.int32 and ids.tolist() == [3, 50, 96]


@pytest.fixture
def folder(tmp_path):
    write_native(tmp_path / "own", loaded("peft", "mistral").adapter, base("mistral"))
    return tmp_path / "own"


def test_writing_again_is_byte_for_byte_the_same(folder, tmp_path):
    write_native(tmp_path / "again", read_native(folder), base("mistral"))
    for file in ("peftjax.safetensors", "peftjax.json"):
        assert (tmp_path / "again" / file).read_bytes() == (folder / file).read_bytes()


def test_a_changed_file_is_refused(folder):
    file = folder / "peftjax.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="peftjax.safetensors is not the file that peftjax.json lists: .* bytes, sha256"):
        read_native(folder)
    file.unlink()
    with pytest.raises(FileNotFoundError, match="lacks peftjax.safetensors, which its peftjax.json lists"):
        read_native(folder)


def test_a_folder_without_its_manifest_is_refused(folder):
    (folder / "peftjax.json").unlink()
    with pytest.raises(FileNotFoundError, match="has no peftjax.json"):
        read_native(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda pieces: pieces.pop("blocks/0/attn/q/kernel"), "holds blocks/0/attn/q/kernel/., which is no piece of peftjax.json"),
        (lambda pieces: pieces.update({"blocks/9/attn/q/kernel": "LoRA"}), "lacks blocks/9/attn/q/kernel"),
    ],
)
def test_pieces_and_tensors_must_be_the_same(change, message, folder):
    content = json.loads((folder / "peftjax.json").read_text())
    change(content["pieces"])
    (folder / "peftjax.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_native(folder)


def test_nothing_of_another_folder_is_needed(folder, tmp_path):
    shutil.move(folder, tmp_path / "moved")
    assert isinstance(read_native(tmp_path / "moved"), Adapter)
