"""A whole run in miniature: a base of 40 thousand weights in Hugging Face layout with a tokenizer of its own, and a JSONL task."""

import json
from pathlib import Path

import jax
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from peftjax.interop.hf import write_directory
from peftjax.models.config import DecoderConfig
from peftjax.models.decoder import init_params
from peftjax.models.tokenizer import Tokenizer
from peftjax.peft import lora
from peftjax.train.config import default_config, methods

ANIMALS = ["cat", "dog", "owl", "fox", "hen", "bee", "ant", "cow", "emu", "yak", "eel", "bat", "rat", "elk", "hog", "jay"]
COLOURS = ["red", "blue", "green", "black", "white"]


def write_base(folder: Path) -> Path:
    """A tiny base with random weights, and a byte-level tokenizer."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(["paint the cat red"], trainer)
    config = DecoderConfig(vocab_size=300, width=32, layers=2, heads=4, kv_heads=2, head_size=8, ff=64, tied=True, max_length=128)
    write_directory(folder, config, init_params(config, jax.random.key(0)))
    Tokenizer(backend, {"bos_token": "<s>", "eos_token": "</s>"}, None).write_directory(folder)
    return folder


def write_task(path: Path) -> Path:
    """80 rows, `paint the cat red` -> `red cat`, in a group for each animal; animals fall into fixed splits."""
    rows = []
    for number, animal in enumerate(ANIMALS):
        split = {14: "validation", 15: "test"}.get(number, "train")
        for colour in COLOURS:
            rows.append({"prompt": f"paint the {animal} {colour}", "response": f"{colour} {animal}", "group": animal, "split": split})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_text(path: Path) -> Path:
    """Plain text, to measure forgetting on."""
    path.write_text("".join(json.dumps({"response": f"the {animal} is an animal"}) + "\n" for animal in ANIMALS))
    return path


def tiny_config(folder: Path):
    """A config of 12 steps on the tiny base, task and text, which are written into `folder` where they are not there."""
    base, task, text = folder / "base", folder / "task.jsonl", folder / "text.jsonl"
    if not base.exists():
        write_base(base), write_task(task), write_text(text)
    config = default_config()
    config.base.uri, config.data.name = str(base), str(task)
    config.data.length = 32
    config.peft = methods(lora(rank=4, dropout=0.1))
    config.train.steps, config.train.batch_size = 12, 4
    config.optimizer.learning_rate, config.optimizer.warmup = 1e-2, 2
    config.eval.max_new, config.eval.every = 8, 6
    config.eval.general.name, config.eval.general.rows = str(text), 4
    config.checkpoint.every = 2
    config.log.tensorboard = False
    return config
