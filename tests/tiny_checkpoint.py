"""Tiny checkpoints in Hugging Face layout with random weights, as test material of the readers."""

import dataclasses
import itertools

import numpy as np
import tiny_tokenizer

from peftjax.interop import hf
from peftjax.interop.families import family_named
from peftjax.models.config import DecoderConfig

CONFIG = DecoderConfig(vocab_size=300, width=32, layers=3, heads=4, kv_heads=2, head_size=6, ff=64, tied=True)
BIASED = dataclasses.replace(CONFIG, qkv_bias=True, out_bias=True, mlp_bias=True, tied=False)
WINDOWED = dataclasses.replace(CONFIG, window=4, rope_base=500.0, max_length=77, activation="gelu_tanh")


def random_params(config: DecoderConfig, dtype=np.float32) -> dict:
    """A tree of numpy arrays in which no two elements of a leaf are likely to be equal."""
    tree, seeds = {}, itertools.count()
    for weight in family_named(config.family).present(config):
        shape = ((config.layers,) if weight.stacked else ()) + weight.sizes(config)
        *parents, name = weight.path.split("/")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[name] = np.random.default_rng(next(seeds)).normal(size=shape).astype(dtype)
    return tree


def write(folder, config: DecoderConfig = CONFIG, **options) -> dict:
    """Writes weights and the tiny tokenizer; returns the parameters."""
    params = random_params(config, options.pop("dtype", np.float32))
    hf.write_directory(folder, config, params, tiny_tokenizer.tokenizer().to_json(), **options)
    tiny_tokenizer.tokenizer().write_directory(folder)
    return params
