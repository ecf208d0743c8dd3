"""Tiny encoders: one with random weights for properties, and the golden BERT and RoBERTa with their tokenizers for everything else."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tiny import noise

from peftjax.interop import base, hf
from peftjax.models.encoder import Encoder, abstract_params
from peftjax.models.encoder_config import EncoderConfig
from peftjax.nn.tree import path_of
from peftjax.peft import classifier, pfeiffer
from peftjax.train.config import default_config, methods

GOLDEN = Path(__file__).parent / "golden"
BARE = EncoderConfig(vocab_size=40, width=16, layers=3, heads=4, ff=28, max_length=13, position_offset=2, types=3, pooled=False)
TINY = dataclasses.replace(BARE, pooled=True, labels=("no", "perhaps", "yes", "never", "?"))
LENGTH = 6


@functools.cache
def params(config: EncoderConfig = TINY, segments: tuple[int, ...] = ()) -> dict:
    """Random parameters in which no leaf is constant, as `tiny.base`."""

    def draw(keys, like):
        path = path_of(keys)
        if path.endswith("/kernel"):
            return noise(path, like) / like.shape[-2] ** 0.5
        return 0.1 * noise(path, like) + (1.0 if path.endswith("/scale") else 0.0)

    return jax.tree_util.tree_map_with_path(draw, abstract_params(config, segments=segments))


def tokens(batch: int = 3, length: int = LENGTH, seed: int = 0) -> jax.Array:
    """Random ids [B, T]."""
    return jax.random.randint(jax.random.key(seed), (batch, length), 0, TINY.vocab_size)


@functools.partial(jax.jit, static_argnames=("model", "method", "texts"))
def run(tree, ids, model: Encoder, method: str | None = None, texts: int | None = None, **inputs):
    """Logits [B, C], or what another method gives, under jit."""
    inputs |= {} if texts is None else {"texts": texts}
    return model.apply({"params": tree}, ids, method=method, **inputs)


def hidden(tree, ids, config: EncoderConfig = TINY, options=(), **inputs) -> np.ndarray:
    """Final hidden states [B, T, D] on the host."""
    return np.asarray(run(tree, ids, Encoder(config, **dict(options)), "hidden", **inputs)[0])


@functools.cache
def golden(name: str):
    """(config, params, golden.npz) of "bert" or "roberta"."""
    opened = hf.open_directory(GOLDEN / name)
    return opened.config, base.load_params(opened.config, opened.family, "hf", opened.sources, name), np.load(GOLDEN / name / "golden.npz")


def golden_inputs(found) -> dict:
    """Arguments of the encoder for the golden tokens."""
    return {"segments": jnp.asarray(found["attention_mask"]), "types": jnp.asarray(found["token_type_ids"])}


def write_task(path: Path) -> Path:
    """90 rows whose label is the light's state; each noun is a group, and nouns fall into fixed splits."""
    nouns = [letter + vowel for letter in "bdfgklmnprst" for vowel in "aeiou"][:30]
    rows = []
    for number, noun in enumerate(nouns):
        split = {0: "test", 1: "validation"}.get(number % 6, "train")
        for text, label in ((f"the {noun} is on", "on"), (f"the {noun} is off", "off"), (f"is the {noun} in", "question")):
            rows.append({"prompt": text, "response": label, "group": noun, "split": split, "other": f"turn {noun} off"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tiny_config(folder: Path):
    """A config of 24 steps on the golden BERT; the task is written into `folder` where it is not there."""
    task = folder / "task.jsonl"
    if not task.exists():
        write_task(task)
    config = default_config()
    config.base.uri, config.data.name = str(GOLDEN / "bert"), str(task)
    config.data.length = 32
    config.peft = methods(pfeiffer(size=4), classifier())
    config.train.steps, config.train.batch_size = 24, 4
    config.optimizer.learning_rate, config.optimizer.warmup = 2e-2, 2
    config.eval.metrics, config.eval.every = ("accuracy",), 8
    config.checkpoint.every = 4
    config.log.tensorboard = False
    return config
