"""The golden bases, each loaded once, and the adapters that HF PEFT and AdapterHub wrote for them, with the logits they computed."""

import functools
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import tiny
import tiny_encoder
import tiny_tokenizer

from peftjax.interop import hf
from peftjax.interop.base import Base, load_params
from peftjax.interop.exchange.adapter import Adapter
from peftjax.interop.exchange.adapterhub_read import read_adapterhub
from peftjax.interop.exchange.load import Loaded, adapt
from peftjax.interop.exchange.peft_read import read_peft
from peftjax.interop.fingerprint import fingerprint
from peftjax.interop.safetensors_file import open_safetensors
from peftjax.models.decoder import Decoder
from peftjax.models.encoder import Encoder

GOLDEN = Path(__file__).parent / "golden"
READERS = {"peft": read_peft, "adapterhub": read_adapterhub}


@functools.cache
def base(name: str) -> Base:
    """A golden base, with the tiny tokenizer."""
    opened = hf.open_directory(GOLDEN / name)
    params = load_params(opened.config, opened.family, "hf", opened.sources, name)
    return Base(name, opened.config, params, tiny_tokenizer.tokenizer(), fingerprint(params))


def variants(peer: str) -> set[str]:
    """All golden adapters of "peft" or "adapterhub"."""
    return {folder.name for folder in (GOLDEN / peer).iterdir() if folder.is_dir()}


@functools.cache
def golden(peer: str, variant: str) -> dict[str, np.ndarray]:
    """base, tokens, logits, of encoders also attention_mask and token_type_ids."""
    with np.load(GOLDEN / peer / variant / "golden.npz") as found:
        return dict(found)


def base_of(peer: str, variant: str) -> Base:
    """The base that a golden adapter stands on."""
    return base(str(golden(peer, variant)["base"]))


@functools.cache
def read(peer: str, variant: str, inside: str = ".") -> Adapter:
    """A golden adapter."""
    on = base_of(peer, variant)
    return READERS[peer](GOLDEN / peer / variant / inside, on.config, on.params)


@functools.cache
def loaded(peer: str, variant: str) -> Loaded:
    """A golden adapter on its base, under the name "tone"."""
    return adapt(base_of(peer, variant), read(peer, variant), "tone")


def forward(config: Any, params: dict, found: dict[str, np.ndarray], segments: tuple[int, ...] = ()) -> np.ndarray:
    """Logits for the golden inputs, under jit."""
    ids = jnp.asarray(found["tokens"])
    if not hasattr(config, "labels"):
        return np.asarray(tiny.run(params, ids, Decoder(config, segments=segments)))
    inputs = {"segments": jnp.asarray(found["attention_mask"]), "types": jnp.asarray(found["token_type_ids"])}
    return np.asarray(tiny_encoder.run(params, ids, Encoder(config, segments=segments), **inputs))


def tensors(file: Path) -> dict[str, tuple[tuple[int, ...], str, bytes]]:
    """(shape, dtype, bytes) of each tensor of a safetensors file."""
    found = {}
    for name, source in open_safetensors(file, whole_numbers=True).items():
        array = np.asarray(source.read(slice(None)) if source.shape else source.read(Ellipsis))
        found[name] = (array.shape, array.dtype.name, array.tobytes())
    return found
