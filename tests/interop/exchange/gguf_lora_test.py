"""LoRA in GGUF form: read with the gguf package alone and added to the base's GGUF file as llama.cpp does, it computes what ours does."""

import dataclasses
import functools
from pathlib import Path

import gguf
import jax
import numpy as np
import pytest
import tiny
import tiny_gguf

from peftjax.interop import base, hf
from peftjax.interop import gguf as base_gguf
from peftjax.interop.exchange.adapter import extract
from peftjax.interop.exchange.gguf_lora import gguf_lora_content, write_gguf_lora
from peftjax.models.decoder import cut
from peftjax.peft.attach import attach
from peftjax.peft.bottleneck import bottleneck
from peftjax.peft.lora import lora
from peftjax.peft.merge import merge
from peftjax.peft.parts import bitfit, full
from peftjax.peft.tokens import trainable_tokens

GOLDEN = Path(__file__).parents[2] / "golden"
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt2")
STRAIGHT = {"attn/v": "attn_v", "attn/o": "attn_output", "mlp/gate": "ffn_gate", "mlp/up": "ffn_up", "mlp/down": "ffn_down"}
ALL = lora(rank=3, alpha=7.0)
PATTERNS = lora(rank=4, alpha=4.0, rank_pattern={"v_proj": 2, "blocks/0/attn/q": 3}, alpha_pattern={"down_proj": 10.0})
SILENT = lora(rank=4, alpha=0.0, alpha_pattern={"v_proj": 3.0})


@functools.cache
def read(name):
    opened = hf.open_directory(GOLDEN / name)
    return opened.config, base.load_params(opened.config, opened.family, "hf", opened.sources, name)


def adapted(name, *methods, segments=()):
    """(config, tree with the methods attached and moved, adapter)."""
    config, params = read(name)
    params = tiny.moved(attach(cut(params, config, segments) if segments else params, methods, jax.random.key(0)), 0.3)
    return config, params, extract(params, methods)


def read_file(file):
    """(alpha, architecture, {base tensor: (A, B)}) by the gguf package's reader, with what llama.cpp demands of the file checked."""
    reader = gguf.GGUFReader(file)
    field = {name: reader.get_field(name).contents() for name in reader.fields if not name.startswith("GGUF.")}
    assert field["general.type"] == "adapter" and field["adapter.type"] == "lora"
    assert reader.fields["adapter.lora.alpha"].types == [gguf.GGUFValueType.FLOAT32]
    tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    names = {name.removesuffix(".lora_a").removesuffix(".lora_b") for name in tensors}
    assert tensors.keys() == {f"{name}.lora_{factor}" for name in names for factor in "ab"}
    return field, {name: (tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]) for name in names}


def deltas(file):
    """What llama.cpp adds to each of the base's tensors, [out, in], or [V, D] for the embedding."""
    field, pairs = read_file(file)
    alpha = field["adapter.lora.alpha"]
    found = {}
    for name, (a, b) in pairs.items():
        rank = b.shape[1]  # ggml's ne[0]
        scale = alpha / rank if alpha else 1.0
        found[name] = scale * (a @ b.T if name == "token_embd.weight" else b @ a)
    return found


def with_deltas(name, tmp_path, found):
    """The base out of a GGUF file whose tensors the deltas were added to."""
    opened = base_gguf.open_gguf(tiny_gguf.write_gguf(tmp_path / "base.gguf", GOLDEN / name))
    assert found.keys() <= opened.sources.keys()
    sources = dict(opened.sources)
    for tensor, delta in found.items():
        source = sources[tensor]
        assert delta.shape == source.shape
        sources[tensor] = dataclasses.replace(source, read=lambda rows, s=source, d=delta: s.read(rows) + d[rows].astype(np.float32))
    return base.load_params(opened.config, opened.family, "gguf", sources, name)


@pytest.mark.slow  # a program for each base and method: twenty seconds
@pytest.mark.parametrize("name, method", [*((name, ALL) for name in FAMILIES), ("llama", PATTERNS), ("phi3", PATTERNS), ("gpt2", SILENT)])
def test_the_base_with_the_files_deltas_computes_what_the_adapter_does(name, method, tmp_path):
    """Patterns where they meet one tensor a module, and where they meet fused ones, of which a part may have a scale of zero."""
    config, params, adapter = adapted(name, method)
    write_gguf_lora(tmp_path / "a.gguf", adapter, config)
    merged = with_deltas(name, tmp_path, deltas(tmp_path / "a.gguf"))
    ids = tiny.tokens(vocab=config.vocab_size)
    ours, theirs, plain = (tiny.logits(p, config, ids) for p in (params, merged, read(name)[1]))
    assert np.abs(ours - plain).max() > 0.1
    np.testing.assert_allclose(theirs, ours, atol=1e-4)


def test_rows_of_q_and_k_are_interleaved_as_the_bases_are(tmp_path):
    """Against llama.cpp's own permutation of the merged weight minus the base's."""
    config, params, adapter = adapted("llama", ALL)
    write_gguf_lora(tmp_path / "a.gguf", adapter, config)
    found, merged, plain = deltas(tmp_path / "a.gguf"), merge(params), read("llama")[1]
    for module, heads in (("q", config.heads), ("k", config.kv_heads), ("v", None)):
        for layer in range(config.layers):
            delta = (np.asarray(merged["blocks"]["attn"][module]["kernel"]) - plain["blocks"]["attn"][module]["kernel"])[layer].T
            want = tiny_gguf.permute(delta, heads) if heads else delta
            np.testing.assert_allclose(found[f"blk.{layer}.attn_{module}.weight"], want, atol=1e-5)


def test_embedding_and_head_of_an_untied_base(tmp_path):
    config, params, adapter = adapted("llama", lora(rank=3, targets=("embed_tokens", "lm_head", "q_proj")))
    write_gguf_lora(tmp_path / "a.gguf", adapter, config)
    a, b = read_file(tmp_path / "a.gguf")[1]["token_embd.weight"]
    assert a.shape == (config.vocab_size, 3) and b.shape == (config.width, 3)
    merged = with_deltas("llama", tmp_path, deltas(tmp_path / "a.gguf"))
    ids = tiny.tokens(vocab=config.vocab_size)
    np.testing.assert_allclose(tiny.logits(merged, config, ids), tiny.logits(params, config, ids), atol=1e-4)


@pytest.mark.parametrize(
    "method, alpha, folded",
    [
        (lora(rank=4, alpha=6.0), 6.0, 0),
        (lora(rank=4, alpha=6.0, rslora=True), 12.0, 0),
        (lora(rank=4, alpha=6.0, rank_pattern={"v_proj": 2}), 6.0, 0),
        (lora(rank=4, alpha=6.0, rank_pattern={"v_proj": 2}, rslora=True), 12.0, 2),
        (lora(rank=4, alpha=6.0, alpha_pattern={"blocks/1/mlp/up": 3.0}), 6.0, 1),
        (lora(rank=4, alpha=0.0, alpha_pattern={"v_proj": 3.0}), 3.0, 8),
        (lora(rank=4, alpha=0.0), 1.0, 10),
    ],
)
def test_one_alpha_serves_most_modules_and_the_rest_is_folded(method, alpha, folded):
    """Counted where rows are not permuted: five modules of two layers. Zero rows of a stack's rank are left out, and a scale of zero is not
    written as an alpha of zero, which llama.cpp reads as a scale of one."""
    config, params, adapter = adapted("llama", method)
    tensors, found = gguf_lora_content(adapter, config)
    assert found == np.float32(alpha)
    touched = 0
    for ours, theirs in STRAIGHT.items():
        for layer in range(config.layers):
            stored = adapter.pieces[f"blocks/{layer}/{ours}/kernel"].arrays["b"].T
            written = tensors[f"blk.{layer}.{theirs}.weight.lora_b"]
            assert written.shape[1] == (2 if ours == "attn/v" and method.rank_pattern else 4)
            touched += not np.array_equal(written, stored[:, : written.shape[1]])
    assert touched == folded
    merged = merge(params)
    delta = np.asarray(merged["blocks"]["mlp"]["up"]["kernel"]) - np.asarray(read("llama")[1]["blocks"]["mlp"]["up"]["kernel"])
    a, b = tensors["blk.1.ffn_up.weight.lora_a"], tensors["blk.1.ffn_up.weight.lora_b"]
    np.testing.assert_allclose(found / b.shape[1] * b @ a, delta[1].T, atol=1e-5)


def test_a_layer_alone_and_a_cut_stack(tmp_path):
    config, params, adapter = adapted("llama", lora(rank=2, targets="q_proj", layers=(1,)), segments=(1, 1))
    tensors, _ = gguf_lora_content(adapter, config)
    assert set(tensors) == {"blk.1.attn_q.weight.lora_a", "blk.1.attn_q.weight.lora_b"}


def test_names_and_half_precision(tmp_path):
    config, _, adapter = adapted("phi3", ALL)
    write_gguf_lora(tmp_path / "a.gguf", adapter, config, name="tone", base_uri="microsoft/Phi-3-mini-4k-instruct", dtype="float16")
    field, pairs = read_file(tmp_path / "a.gguf")
    assert field["general.architecture"] == "phi3" and field["general.name"] == "tone"
    assert field["general.base_model.0.name"] == "microsoft/Phi-3-mini-4k-instruct"
    assert {array.dtype for pair in pairs.values() for array in pair} == {np.dtype(np.float16)}
    with pytest.raises(ValueError, match="'int8' .* float32, float16"):
        write_gguf_lora(tmp_path / "b.gguf", adapter, config, dtype="int8")


@pytest.mark.parametrize(
    "name, method, reason",
    [
        ("llama", bottleneck(size=4), "nonlinear bottleneck"),
        ("llama", full(targets="lm_head"), "head/kernel: it has no weights trained whole; merge"),
        ("qwen2", bitfit(), "attn/k/bias: it has no weights trained whole"),
        ("llama", trainable_tokens(ids=(1, 2)), "rows of the embedding"),
        ("llama", lora(dora=True), "columns of a trained length are no product of two matrices; merge it"),
        ("llama", lora(lora_bias=True), "no bias behind B"),
        ("llama_tied", lora(targets="lm_head"), "no output.weight.*9065"),
        ("llama_tied", lora(targets="embed_tokens"), "token_embd.weight too"),
        ("gpt2", lora(targets="pos_embed"), "positions are looked up"),
    ],
)
def test_what_llama_cpp_has_no_place_for_is_refused_and_nothing_is_written(name, method, reason, tmp_path):
    config, _, adapter = adapted(name, method)
    with pytest.raises(ValueError, match=f"llama.cpp has no place for this adapter:\n.*{reason}"):
        write_gguf_lora(tmp_path / "a.gguf", adapter, config)
    assert not list(tmp_path.iterdir())


def test_encoders_have_no_gguf_form():
    config, _, adapter = adapted("bert", lora(targets="query"))
    with pytest.raises(ValueError, match="bert is not"):
        gguf_lora_content(adapter, config)
