"""The Hugging Face layout: written and read back, shards, and what is missing."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tiny_checkpoint
from safetensors.numpy import load_file

from peftjax.interop import hf, weights
from peftjax.nn.tree import flatten

CONFIGS = [tiny_checkpoint.CONFIG, tiny_checkpoint.BIASED, tiny_checkpoint.WINDOWED]
GOLDEN = Path(__file__).parent.parent / "golden"


def read(folder, dtype=np.float32):
    opened = hf.open_directory(folder)
    weights.check(opened.config, opened.family, "hf", opened.sources, "x")
    return opened.config, dict(weights.leaves(opened.config, opened.family, "hf", opened.sources, dtype))


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shard_bytes", [1, 20_000, 1 << 30])
def test_written_and_read_back_bit_for_bit(config, dtype, shard_bytes, tmp_path):
    params = flatten(tiny_checkpoint.write(tmp_path, config, dtype=dtype, shard_bytes=shard_bytes))
    found_config, found = read(tmp_path, dtype)
    assert found_config == config
    assert found.keys() == params.keys()
    for path in params:
        assert found[path].dtype == dtype
        np.testing.assert_array_equal(found[path], params[path], err_msg=path)
    shards = len(list(tmp_path.glob("model-*.safetensors")))
    assert (shards == 0) == (shard_bytes == 1 << 30) and (tmp_path / hf.INDEX).is_file() == bool(shards)


def test_a_smaller_export_over_a_larger_one_is_what_is_read(tmp_path):
    tiny_checkpoint.write(tmp_path, tiny_checkpoint.BIASED, shard_bytes=20_000)
    params = flatten(tiny_checkpoint.write(tmp_path, tiny_checkpoint.CONFIG))
    assert read(tmp_path)[1].keys() == params.keys()


def test_files_that_transformers_wrote_are_read_tensor_for_tensor():
    config, found = read(GOLDEN / "llama_tied")
    tensors = load_file(GOLDEN / "llama_tied" / "model.safetensors")
    assert (config.head_size, config.rope_base, config.tied, config.qkv_bias) == (12, 500.0, True, True)
    np.testing.assert_array_equal(found["blocks/attn/k/kernel"][1], tensors["model.layers.1.self_attn.k_proj.weight"].T)
    np.testing.assert_array_equal(found["blocks/mlp/down/bias"][0], tensors["model.layers.0.mlp.down_proj.bias"])


def test_missing_files_are_named_with_what_is_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config.json \(found: nothing\)"):
        hf.open_directory(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(hf.document_from_config(tiny_checkpoint.CONFIG, "float32")))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="neither model.safetensors nor .*; weight files there: pytorch_model.bin"):
        hf.open_directory(tmp_path)
    tiny_checkpoint.write(tmp_path, shard_bytes=20_000)
    victim = sorted(tmp_path.glob("model-*"))[1]
    victim.unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks 1 of the .* shards .*: {victim.name}"):
        hf.open_directory(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json is not JSON"):
        hf.open_directory(tmp_path)


def test_only_a_plain_base_is_written(tmp_path):
    params = tiny_checkpoint.random_params(tiny_checkpoint.CONFIG)
    bad = params | {"prompt": np.zeros((1, 2), np.float32), "final_norm": {"scale": np.zeros(7, np.float32)}}
    with pytest.raises(ValueError, match=r"(?s)merge or detach.*extra prompt.*misshapen final_norm/scale: \[7\], the config wants \[32\]"):
        hf.write_directory(tmp_path, tiny_checkpoint.CONFIG, bad)
    mixed = params | {"final_norm": {"scale": np.ones(32, np.float16)}}
    with pytest.raises(ValueError, match="these have float16, float32"):
        hf.write_directory(tmp_path, tiny_checkpoint.CONFIG, mixed)
    assert list(tmp_path.iterdir()) == []
