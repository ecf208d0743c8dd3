"""What a directory says of its adapter, and whom it lets in: the base and tokenizer it was made for, and nobody else unasked."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest
import tiny_tokenizer
from golden_bases import base, read

from peftjax.interop.base import Base
from peftjax.interop.exchange.manifest import FILE, check_identity, manifest, read_manifest, write_manifest
from peftjax.interop.fingerprint import fingerprint
from peftjax.models.tokenizer import Tokenizer
from peftjax.nn.quant import quantise
from peftjax.nn.tree import get, put
from peftjax.peft.spec import from_data


def other_tokenizer() -> Tokenizer:
    return Tokenizer(tiny_tokenizer.backend(), {"eos_token": "<|endoftext|>"})


def held(on: Base) -> Base:
    params = put(on.params, "blocks/attn/q/kernel", quantise(get(on.params, "blocks/attn/q/kernel"), "int8"))
    return dataclasses.replace(on, params=params, fingerprint=fingerprint(params), quantise=[["q_proj", "int8"]])


def in_half(on: Base) -> Base:
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), on.params)
    return dataclasses.replace(on, params=params, fingerprint=fingerprint(params), dtype="bfloat16")


def test_it_says_what_the_adapter_is():
    adapter, on = read("peft", "patterns"), base("llama")
    content = json.loads(json.dumps(manifest(adapter, on)))
    assert tuple(from_data(method) for method in content["methods"]) == adapter.methods
    assert content["pieces"] == {path: "LoRA" for path in adapter.pieces}
    assert content["scales"]["blocks/1/attn/v/kernel"] == 8.0  # alpha 32, rank 4
    factors = sum(piece.arrays["a"].size + piece.arrays["b"].size for piece in adapter.pieces.values())
    assert (content["parameters"], content["bytes"]) == (factors, 4 * factors)
    assert content["base"]["fingerprint"] == on.fingerprint and content["base"]["config"]["width"] == 32
    assert content["lineage"]["format"] == "HF PEFT"


def test_ids_and_effective_scales_are_no_parameters():
    adapter = read("peft", "tokens")
    content = manifest(adapter, base("llama"))
    factors = sum(array.size for piece in adapter.pieces.values() for field, array in piece.arrays.items() if field in ("a", "b", "rows"))
    assert content["parameters"] == factors and "embed/embedding" not in content["scales"]


def test_a_known_identity_is_passed_on():
    adapter = dataclasses.replace(read("peft", "plain"), base="b" * 64, tokenizer="t" * 64)
    content = manifest(adapter, base("llama"))
    assert (content["base"]["fingerprint"], content["tokenizer"]["fingerprint"]) == ("b" * 64, "t" * 64)


def test_the_base_it_was_made_for_is_let_in():
    check_identity(manifest(read("peft", "plain"), base("llama")), base("llama"), "here")


@pytest.mark.parametrize(
    ("other", "messages"),
    [
        (base("mistral"), ["base mistral has fingerprint", "made for llama ("]),
        (in_half(base("llama")), ["; it was loaded in bfloat16 here and in float32 there"]),
        (held(base("llama")), ["; it is held q_proj int8 here and was held dense there: say quantise=None"]),
        (dataclasses.replace(base("llama"), tokenizer=other_tokenizer()), ["the tokenizer has fingerprint"]),
        (dataclasses.replace(base("mistral"), tokenizer=other_tokenizer()), ["base mistral has", "the tokenizer has"]),
    ],
    ids=["base", "dtype", "quantised", "tokenizer", "both"],
)
def test_another_base_or_tokenizer_is_refused_unless_asked_for(other, messages):
    content = manifest(read("peft", "plain"), base("llama"))
    with pytest.raises(ValueError, match="here was made for another base: .*To use it all the same, say other_base") as error:
        check_identity(content, other, "here")
    assert all(message in str(error.value) for message in messages)
    check_identity(content, other, "here", other_base=True)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.txt").write_text("abc")
    write_manifest(tmp_path, manifest(read("peft", "mistral"), base("mistral")), ["a.txt"])
    return tmp_path


def test_files_are_listed_with_their_bytes(folder):
    assert read_manifest(folder)["files"] == {
        "a.txt": {"bytes": 3, "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}
    }


@pytest.mark.parametrize("content", ["abd", "abcd", ""])
def test_a_changed_file_is_refused(content, folder):
    (folder / "a.txt").write_text(content)
    with pytest.raises(ValueError, match=r"a.txt is not the file that peftjax.json lists: [034] bytes.*listed 3 bytes, ba7816bf8f01\.\.\."):
        read_manifest(folder)


def test_a_missing_file_is_refused(folder):
    (folder / "a.txt").unlink()
    with pytest.raises(FileNotFoundError, match="lacks a.txt, which its peftjax.json lists"):
        read_manifest(folder)


@pytest.mark.parametrize("change", [{"version": 2}, {"format": "other"}, {"version": None}])
def test_another_version_is_refused(change, folder):
    content = json.loads((folder / FILE).read_text()) | change
    (folder / FILE).write_text(json.dumps(content))
    with pytest.raises(ValueError, match="peftjax.json is .*, version .*; this reads 'peftjax adapter', version 1"):
        read_manifest(folder)


def test_damaged_json_is_refused_and_none_is_none(folder):
    (folder / FILE).write_text((folder / FILE).read_text()[:-10])
    with pytest.raises(ValueError, match="peftjax.json is not JSON"):
        read_manifest(folder)
    (folder / FILE).unlink()
    assert read_manifest(folder) is None
