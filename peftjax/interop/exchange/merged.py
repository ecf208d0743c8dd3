"""A base with its adapters folded in, as a directory in Hugging Face layout that any loader reads: sharded safetensors, config, tokenizer.

    write_merged("out/merged", base, params)

A quantised base is made dense: what is written is its dequantised weights plus what the adapters add. Adapters that have no dense form
(bottlenecks) are an error that names them. A head that was trained or adapted apart from a tied embedding
makes the written config untied.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from peftjax.interop.base import Base
from peftjax.interop.hf import document_from_config, write_directory
from peftjax.interop.json_file import write_json
from peftjax.models.decoder import cut
from peftjax.nn.quant import Quantised
from peftjax.nn.tree import flatten, get, put, unflatten_like, walk
from peftjax.peft.classifier import classifier
from peftjax.peft.merge import dequantised, merge

SHARD_BYTES = 5 << 30
ONE_ATTENTION_BIAS = ("llama", "qwen3", "gemma2", "gemma3")  # families whose config.json has one flag for q, k, v and o


def write_merged(
    folder: str | Path, base: Base, params: Any, methods: tuple[Any, ...] = (), dtype: str | None = None, shard_bytes: int = SHARD_BYTES
) -> None:
    """Merges all adapters of a tree and writes it.

    Args:
        params: the base with adapters, whole or cut.
        methods: those attached; a classifier's labels go into config.json.
        dtype: to write, default that of the base.
        shard_bytes: of a file at most.

    Raises:
        TypeError: something has no dense form, with its path.
        ValueError: the merged tree is none that a config.json of this family can describe.
    """
    tree, config = settled(dequantised(merge(params)), base.config, methods)
    if dtype is not None:
        tree = unflatten_like(tree, {path: leaf.astype(jnp.dtype(dtype)) for path, leaf in flatten(tree).items()})
    document_from_config(config, str(_dtype(tree)))  # refuses before anything is written
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    base.tokenizer.write_directory(folder)
    generation = {
        name: number for name, number in
        (("bos_token_id", base.tokenizer.bos_id), ("eos_token_id", base.tokenizer.eos_id), ("pad_token_id", base.tokenizer.pad_id))
        if number is not None
    }
    if not hasattr(config, "labels"):
        write_json(folder / "generation_config.json", generation)
    write_directory(folder, config, tree, shard_bytes=shard_bytes)


def settled(tree: dict, config: Any, methods: tuple[Any, ...] = ()) -> tuple[dict, Any]:
    """A merged tree in one stack, and the config that describes it: untied where it has a head of its own, with biases in whole groups, and
    with the labels of a classifier."""
    tree = cut(_with_equal_stacks(tree), config, ())
    if getattr(config, "tied", False) and get(tree, "head/kernel") is not None:
        config = dataclasses.replace(config, tied=False)
    tree, config = _with_biases(tree, config)
    heads = [method for method in methods if isinstance(method, classifier)]
    return tree, dataclasses.replace(config, labels=heads[-1].labels) if heads else config


def _with_equal_stacks(tree: dict) -> dict:
    """The tree with zeros for each bias that stands in other parts of a cut stack only, so that the parts can be joined."""
    stacks = {name: flatten(stack) for name, stack in tree.items() if name.startswith("blocks")}
    biases = {path: leaf for flat in stacks.values() for path, leaf in flat.items() if path.endswith("/bias")}
    for name, flat in stacks.items():
        for path in biases.keys() - flat.keys():
            layers = next(iter(flat.values())).shape[0]
            tree = put(tree, f"{name}/{path}", jnp.zeros((layers, *biases[path].shape[1:]), biases[path].dtype))
    return tree


def _with_biases(tree: dict, config: Any) -> tuple[dict, Any]:
    """A merged LoRA bias may stand where the base has none. A config.json knows biases by groups, so the rest of a group gets zeros."""
    groups = {"qkv_bias": ("attn/q", "attn/k", "attn/v"), "out_bias": ("attn/o",), "mlp_bias": ("mlp/gate", "mlp/up", "mlp/down")}
    wanted = {flag for flag, modules in groups.items() if any(get(tree, f"blocks/{module}/bias") is not None for module in modules)}
    if config.family in ONE_ATTENTION_BIAS and wanted & {"qkv_bias", "out_bias"}:
        wanted |= {"qkv_bias", "out_bias"}
    for flag in wanted:
        if not getattr(config, flag, True):
            config = dataclasses.replace(config, **{flag: True})
            for module in groups[flag]:
                kernel = get(tree, f"blocks/{module}/kernel")
                if kernel is not None and get(tree, f"blocks/{module}/bias") is None:
                    tree = put(tree, f"blocks/{module}/bias", jnp.zeros((kernel.shape[0], kernel.shape[-1]), kernel.dtype))
    for path, value in list(walk(tree)):
        if not isinstance(value, Quantised):
            tree = put(tree, path, value.astype(jnp.dtype(_dtype(tree))))
    return tree, config


def _dtype(tree: dict) -> Any:
    """That of the kernels; a bias that came of a merge is brought to it."""
    return get(tree, "embed/embedding").dtype
