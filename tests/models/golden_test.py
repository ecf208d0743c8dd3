"""The decoder against Hugging Face transformers: tiny random checkpoints, read from the Hugging Face layout and from GGUF.

The golden files are made by tests/golden/make_llama_golden.py.
"""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_gguf import write_llama_gguf

from peftjax.interop import base, gguf, hf
from peftjax.models.decoder import Decoder

GOLDEN = Path(__file__).parent.parent / "golden"
VARIANTS = ("llama", "llama_tied", "mistral")
TOLERANCE = 1e-4


@functools.cache
def read(name):
    opened = hf.open_directory(GOLDEN / name)
    params = base.load_params(opened.config, opened.family, "hf", opened.sources, name)
    return opened.config, params, np.load(GOLDEN / name / "golden.npz")


def logits(config, params, tokens, **arguments):
    run = jax.jit(lambda p, t, kw: Decoder(config).apply({"params": p}, t, **kw))
    return np.asarray(run(params, tokens, arguments))


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_equal_transformers(name):
    config, params, golden = read(name)
    assert golden["logits"].std() > 0.5  # else any model would pass
    np.testing.assert_allclose(logits(config, params, golden["tokens"]), golden["logits"], atol=TOLERANCE)


@pytest.mark.parametrize("name", VARIANTS)
def test_left_padded_logits_equal_transformers(name):
    config, params, golden = read(name)
    mask = golden["padded_mask"].astype(bool)
    found = logits(config, params, golden["padded_tokens"], segments=golden["padded_mask"])
    np.testing.assert_allclose(found[mask], golden["padded_logits"][mask], atol=TOLERANCE)


@pytest.mark.parametrize("name", VARIANTS)
def test_padding_on_the_left_equals_padding_on_the_right(name):
    config, params, golden = read(name)
    mask = golden["padded_mask"].astype(bool)
    right_mask = np.sort(golden["padded_mask"], axis=1)[:, ::-1]
    right = np.zeros_like(golden["padded_tokens"])
    right[right_mask.astype(bool)] = golden["padded_tokens"][mask]
    found = logits(config, params, right, segments=right_mask)
    np.testing.assert_allclose(found[right_mask.astype(bool)], golden["padded_logits"][mask], atol=TOLERANCE)


@pytest.mark.parametrize("name", VARIANTS)
def test_gguf_with_permuted_rows_gives_the_same_logits(name, tmp_path):
    config, params, golden = read(name)
    opened = gguf.open_gguf(write_llama_gguf(tmp_path / "tiny.gguf", GOLDEN / name))
    assert opened.config == config
    from_gguf = base.load_params(opened.config, opened.family, "gguf", opened.sources, name)
    np.testing.assert_allclose(logits(config, from_gguf, golden["tokens"]), golden["logits"], atol=TOLERANCE)


def test_rows_left_in_ggufs_order_are_noticed(tmp_path):
    """The trap: with q and k rows read as they stand, the model still runs, and is wrong."""
    config, _, golden = read("llama")
    opened = gguf.open_gguf(write_llama_gguf(tmp_path / "tiny.gguf", GOLDEN / "llama", interleave=False))
    wrong = base.load_params(opened.config, opened.family, "gguf", opened.sources, "llama")
    assert np.abs(logits(config, wrong, golden["tokens"]) - golden["logits"]).max() > 0.1
