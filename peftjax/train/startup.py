"""What a process settles before it computes: what is logged, the compilation cache and the precision."""

import os
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags, logging

from peftjax.cache import cache_dir
from peftjax.models.decoder import Decoder
from peftjax.models.encoder import Encoder
from peftjax.models.encoder_config import EncoderConfig


def log_warnings_only() -> None:
    """Libraries log warnings and errors alone, unless --verbosity says otherwise: the checkpoint library tells every file it touches, and
    JAX each accelerator that is not there."""
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)


def use_compilation_cache() -> None:
    """Compiled programs are kept in the user's cache folder, so that the next process starts sooner.

    A folder that the user chose (`JAX_COMPILATION_CACHE_DIR`) is left alone.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def precision(name: str) -> jnp.dtype:
    """The dtype that "auto", "float32" or "bfloat16" means here: auto is float32 on CPU, which has no fast bfloat16, else bfloat16."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)


def make_model(architecture: Any, options: Any, segments: tuple[int, ...]) -> Decoder | Encoder:
    """The decoder or encoder of `config.model`. "auto" remat is "dots": writing every activation out for the backward pass costs more than
    computing the cheap ones again (SmolLM2-135M on two cores, 4 x 128 tokens: 207 tokens/s and 0.54 GB of temporaries against 189 and
    1.32)."""
    remat = "dots" if options.remat == "auto" else options.remat
    kind = Encoder if isinstance(architecture, EncoderConfig) else Decoder
    return kind(architecture, segments=segments, remat=remat, unroll=options.unroll, dtype=precision(options.compute))
