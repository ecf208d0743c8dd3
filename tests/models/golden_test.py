"""The decoder against Hugging Face transformers: tiny random checkpoints, read from the Hugging Face layout and from GGUF.

The golden files are made by tests/golden/make_llama_golden.py and make_decoder_golden.py.
"""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny import run
from tiny_gguf import write_gguf

from peftjax.interop import base, gguf, hf
from peftjax.models.attention import empty_cache
from peftjax.models.decoder import Decoder, cut

GOLDEN = Path(__file__).parent.parent / "golden"
FAMILIES = ("llama3", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt2")
VARIANTS = ("llama", "llama_tied", "mistral", *FAMILIES)
TOLERANCE = 1e-4


@functools.cache
def read(name):
    opened = hf.open_directory(GOLDEN / name)
    params = base.load_params(opened.config, opened.family, "hf", opened.sources, name)
    return opened.config, params, np.load(GOLDEN / name / "golden.npz")


def logits(config, params, tokens, model=None, **arguments):
    return np.asarray(run(params, tokens, model or Decoder(config), **arguments))


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


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_is_as_near_to_float32_as_transformers_is(name):
    """Both round to 8 bits after every operation, and not always the same ones: so neither is the truth, and what can be asked is
    that ours is no further from the float32 logits than theirs by more than half, and no further from theirs than twice that."""
    config, params, golden = read(name)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    found = logits(config, half, golden["tokens"], Decoder(config, dtype=jnp.bfloat16)).astype(np.float32)

    def distance(a, b):
        return np.sqrt(np.mean(np.square(a - b)))

    theirs = distance(golden["bf16_logits"], golden["logits"])
    assert 0 < theirs < 0.1 * golden["logits"].std()
    assert distance(found, golden["logits"]) < 1.5 * theirs
    assert distance(found, golden["bf16_logits"]) < 2 * theirs


@pytest.mark.slow  # a backward pass for each family: fifteen seconds
@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_equal_transformers(name, tmp_path):
    """Of the mean next-token cross-entropy, tensor by tensor in their layout."""
    config, params, golden = read(name)
    tokens = jnp.asarray(golden["tokens"])

    def loss(params):
        scores = jax.nn.log_softmax(Decoder(config).apply({"params": params}, tokens)[:, :-1])
        return -jnp.mean(jnp.take_along_axis(scores, tokens[:, 1:, None], axis=-1))

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(value, golden["loss"], rtol=1e-5)
    hf.write_directory(tmp_path, config, grads)
    found = load_file(tmp_path / "model.safetensors")
    wanted = {key.removeprefix("grad:"): golden[key] for key in golden.files if key.startswith("grad:")}
    assert len(wanted) >= 9
    for path, gradient in wanted.items():
        error = np.linalg.norm(found[path] - gradient) / np.linalg.norm(gradient)
        # A bias of k moves all scores of a query alike, so that its gradient is zero but for rounding.
        assert error < 1e-3 or np.linalg.norm(gradient) < 1e-6, f"{path}: {error}"


@pytest.mark.parametrize("name", FAMILIES)
def test_scanned_unrolled_and_cut_stacks_agree(name):
    config, params, golden = read(name)
    segments = (1, config.layers - 1)
    np.testing.assert_allclose(
        logits(config, params, golden["tokens"], Decoder(config, unroll=True)), golden["logits"], atol=TOLERANCE
    )
    found = logits(config, cut(params, config, segments), golden["tokens"], Decoder(config, segments=segments, remat="block"))
    np.testing.assert_allclose(found, golden["logits"], atol=TOLERANCE)


@pytest.mark.slow  # a program more for each family: ten seconds
@pytest.mark.parametrize("name", FAMILIES)
def test_the_cache_gives_what_a_full_pass_gives(name):
    """A cut stack, left-padded rows: 17 tokens at once, the others one by one. Beyond 16 Phi-3's longrope turns all by its long factors."""
    config, params, golden = read(name)
    segments, first = (1, config.layers - 1), 17
    model, params = Decoder(config, segments=segments), cut(params, config, segments)
    ids, parts = golden["padded_tokens"], golden["padded_mask"]

    @jax.jit
    def step(params, ids, parts, cache):
        hidden, cache = model.apply({"params": params}, ids, segments=parts, cache=cache, method="hidden")
        return model.apply({"params": params}, hidden, method="logits"), cache

    cache, pieces = empty_cache(config, ids.shape[0], 32), []
    for start, stop in ((0, first), *((n, n + 1) for n in range(first, ids.shape[1]))):
        found, cache = step(params, ids[:, start:stop], parts[:, start:stop], cache)
        pieces.append(found)
    mask = parts.astype(bool)
    np.testing.assert_allclose(np.concatenate(pieces, axis=1)[mask], golden["padded_logits"][mask], atol=TOLERANCE)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_written_is_what_was_read(name, tmp_path):
    """Byte-equal tensors under the same names, and a config.json that says the same."""
    config, params, _ = read(name)
    hf.write_directory(tmp_path, config, params)
    theirs, ours = load_file(GOLDEN / name / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for tensor in theirs:
        assert (ours[tensor].dtype, ours[tensor].shape) == (theirs[tensor].dtype, theirs[tensor].shape)
        assert ours[tensor].tobytes() == theirs[tensor].tobytes(), tensor
    assert hf.open_directory(tmp_path).config == config


@pytest.mark.parametrize("name", VARIANTS)
def test_gguf_as_llama_cpp_writes_it_gives_the_same_logits(name, tmp_path):
    """Gemma's query scale and local base are in llama.cpp's code and not in the file, and Qwen 2's windows it does not know at all:
    those are set here."""
    config, params, golden = read(name)
    opened = gguf.open_gguf(write_gguf(tmp_path / "tiny.gguf", GOLDEN / name))
    unsaid = {"gemma2": ("query_scalar",), "gemma3": ("local_rope_base",), "qwen2": ("window", "full_layers")}.get(name, ())
    changes = {field: getattr(config, field) for field in unsaid}
    opened = dataclasses.replace(opened, config=dataclasses.replace(opened.config, **changes))
    from_gguf = base.load_params(opened.config, opened.family, "gguf", opened.sources, name)
    found = logits(opened.config, from_gguf, golden["tokens"])
    np.testing.assert_allclose(found, golden["logits"], atol=TOLERANCE)


def test_rows_left_in_ggufs_order_are_noticed(tmp_path):
    """The trap: with q and k rows read as they stand, the model still runs, and is wrong."""
    config, _, golden = read("llama")
    opened = gguf.open_gguf(write_gguf(tmp_path / "tiny.gguf", GOLDEN / "llama", interleave=False))
    wrong = base.load_params(opened.config, opened.family, "gguf", opened.sources, "llama")
    assert np.abs(logits(config, wrong, golden["tokens"]) - golden["logits"]).max() > 0.1
