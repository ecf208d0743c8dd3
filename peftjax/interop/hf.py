"""Base weights in the Hugging Face layout: a directory of config.json and safetensors, read and written.

    config.json                        -> config         by `peftjax.interop.hf_decoders` or `hf_encoders`
    model.safetensors                  -> sources        or the shards that model.safetensors.index.json lists
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from peftjax.files import replacing
from peftjax.interop import hf_decoders, hf_encoders
from peftjax.interop.families import Family, Weight, family_for, family_named
from peftjax.interop.json_file import read_json, write_json
from peftjax.interop.safetensors_file import open_safetensors
from peftjax.interop.weights import Source
from peftjax.models.config import DecoderConfig
from peftjax.models.encoder_config import EncoderConfig
from peftjax.nn.tree import flatten

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_DTYPES = ("float32", "float16", "bfloat16")


@dataclasses.dataclass(frozen=True)
class OpenedDirectory:
    """A directory in Hugging Face layout, described and not yet read."""

    path: Path
    config: DecoderConfig | EncoderConfig
    family: Family
    sources: dict[str, Source]


def open_directory(path: str | Path) -> OpenedDirectory:
    """Reads config.json and the headers of the weight files.

    Raises:
        FileNotFoundError: no config.json, no safetensors, or a shard that the index names is not there.
        ValueError: an architecture or setting that is not supported, or a damaged file.
    """
    folder = Path(path)
    document = read_json(folder / "config.json")
    config = config_from_document(document, str(folder / "config.json"))
    sources = _settings(config.family).canonical(_sources(folder), config)
    return OpenedDirectory(folder, config, family_named(config.family), sources)


def config_from_document(document: Mapping[str, Any], origin: str) -> DecoderConfig | EncoderConfig:
    """The configuration in the content of a config.json. `origin` is said in errors.

    Raises:
        ValueError: an architecture or setting that is not supported, or a size that is not given.
    """
    architecture = (document.get("architectures") or ["(none named)"])[0]
    family = family_for("hf", architecture, origin)
    return _settings(family.name).config_from_document(document, family.name, origin)


def write_directory(
    path: str | Path, config: DecoderConfig | EncoderConfig, params: Any, tokenizer_json: str | None = None, shard_bytes: int = 5 << 30
) -> None:
    """Writes config.json, safetensors (in shards of at most `shard_bytes`, one tensor at least) and tokenizer.json.

    Args:
        params: a tree of plain arrays in one stack (`blocks/...`), of one dtype among float32, float16 and bfloat16.
        tokenizer_json: content of tokenizer.json; `Tokenizer.write_directory` writes the whole tokenizer instead.

    Raises:
        ValueError: the tree has other paths or shapes than the config says, or another dtype, or the config says what config.json
            cannot.
    """
    folder, family = Path(path), family_named(config.family)
    flat = flatten(params)
    dtypes = {str(leaf.dtype) for leaf in flat.values()}
    if len(dtypes) != 1 or not dtypes <= set(_DTYPES):
        raise ValueError(f"weights are written in one dtype of {', '.join(_DTYPES)}; these have {', '.join(sorted(dtypes))}")
    _check_tree(config, family, flat)
    document = document_from_config(config, dtypes.pop())
    folder.mkdir(parents=True, exist_ok=True)
    shards = list(_shards(config, family, shard_bytes // np.dtype(next(iter(flat.values())).dtype).itemsize))
    index = {}
    for number, names in enumerate(shards, 1):
        file = WEIGHTS if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_safetensors(folder / file, {name: _tensor(flat, *which) for name, which in names.items()})
        index |= dict.fromkeys(names, file)
    if len(shards) == 1:
        (folder / INDEX).unlink(missing_ok=True)  # of an earlier export: it would be read first
    else:
        write_json(folder / INDEX, {"metadata": {"total_size": sum(leaf.nbytes for leaf in flat.values())}, "weight_map": index})
    if tokenizer_json is not None:
        with replacing(folder / "tokenizer.json") as partial:
            partial.write_text(tokenizer_json, "utf-8")
    write_json(folder / "config.json", document)


def document_from_config(config: DecoderConfig | EncoderConfig, dtype: str) -> dict[str, Any]:
    """The content of a config.json that transformers 4 and 5 read.

    Raises:
        ValueError: the config says what a config.json of its family cannot.
    """
    return _settings(config.family).document_from_config(config, dtype)


def _settings(family: str) -> Any:
    """The module that knows the config.json of a family and the names in its checkpoints."""
    return hf_encoders if family in hf_encoders.FAMILIES else hf_decoders


def _sources(folder: Path) -> dict[str, Source]:
    """The tensors of all weight files, index first."""
    if (folder / INDEX).is_file():
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not weight_map:
            raise ValueError(f"{folder / INDEX} has no weight_map")
        files = sorted(set(weight_map.values()))
        absent = [file for file in files if not (folder / file).is_file()]
        if absent:
            raise FileNotFoundError(f"{folder} lacks {len(absent)} of the {len(files)} shards in {INDEX}: {', '.join(absent)}")
        sources = {}
        for file in files:
            sources |= open_safetensors(folder / file)
        return sources
    if (folder / WEIGHTS).is_file():
        return open_safetensors(folder / WEIGHTS)
    found = sorted(p.name for p in folder.iterdir() if p.suffix in (".safetensors", ".bin", ".pt", ".pth", ".gguf"))
    raise FileNotFoundError(f"{folder} has neither {WEIGHTS} nor {INDEX}; weight files there: {', '.join(found) or 'none'}")


def _check_tree(config: Any, family: Family, flat: Mapping[str, Any]) -> None:
    wanted = {w.path: ((config.layers,) if w.stacked else ()) + w.sizes(config) for w in family.present(config)}
    lines = [f"missing {path}" for path in wanted if path not in flat] + [f"extra {path}" for path in flat if path not in wanted]
    for path in wanted.keys() & flat.keys():
        if tuple(flat[path].shape) != wanted[path]:
            lines.append(f"misshapen {path}: {list(flat[path].shape)}, the config wants {list(wanted[path])}")
    if lines:
        listed = "\n  ".join(sorted(lines))
        raise ValueError(f"these parameters are not those of a plain base (merge or detach adapters first):\n  {listed}")


def _shards(config: Any, family: Family, limit: int) -> Iterator[dict[str, tuple]]:
    """Names with (weights, layer), cut so that each part has at most `limit` elements or one tensor."""
    part, elements = {}, 0
    for weights in _fused(config, family):
        size = int(np.prod(weights[0].stored_sizes("hf", config)))
        for layer, name in enumerate(weights[0].names("hf", config)):
            if part and elements + size > limit:
                yield part
                part, elements = {}, 0
            part[name] = (weights, layer)
            elements += size
    yield part


def _fused(config: Any, family: Family) -> list[list[Weight]]:
    """The weights of a model; those that are parts of one tensor together, in the order of the parts."""
    together = {}
    for weight in family.present(config):
        if weight.hf is None:
            raise ValueError(f"the Hugging Face layout of {family.name} has no place for {weight.path}")
        together.setdefault(weight.hf.name, []).append(weight)
    return [sorted(weights, key=lambda weight: weight.hf.part or (0,)) for weights in together.values()]


def _tensor(flat: Mapping[str, Any], weights: Sequence[Weight], layer: int) -> np.ndarray:
    """One tensor as the layout has it: turned, and with its parts joined along the output axis."""
    leaves = [flat[weight.path][layer] if weight.stacked else flat[weight.path] for weight in weights]
    stored = weights[0].hf
    value = np.concatenate([np.asarray(leaf) for leaf in leaves], axis=-1) if stored.part else np.asarray(leaves[0])
    return np.ascontiguousarray(value.T if stored.transpose else value)


def _write_safetensors(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    with replacing(file) as partial:
        save_file(dict(arrays), str(partial), metadata={"format": "pt"})
