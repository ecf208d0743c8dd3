"""A tiny base from scratch: a tokenizer trained on the text, random weights, and a run that trains all of them.

    <workdir>/start/       the tokenizer and the random weights, in Hugging Face layout
    <workdir>/run/         the run: method `full`, as any run (checkpoints, metrics, report with the loss on held-out text)
    <cache>/bases/NAME/    the trained base in Hugging Face layout, `tiny:NAME`, with base.json: config, fingerprint, losses

So a base costs no second training loop, and what stops a run is gone on with by the same command. The same config gives the same base on
the same machine and versions: weights and order of the data follow `config.run.train.seed`, the tokenizer is a function of the text.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import tokenizers
from ml_collections import ConfigDict
from tokenizers import decoders, models, pre_tokenizers, trainers

from peftjax.data.sources import load_records
from peftjax.data.splits import split_records
from peftjax.files import replacing_folder
from peftjax.hints import did_you_mean
from peftjax.interop.exchange.merged import write_merged
from peftjax.interop.hf import write_directory
from peftjax.interop.json_file import read_json, write_json
from peftjax.interop.tiny import folder_of
from peftjax.models.config import DecoderConfig
from peftjax.models.decoder import init_params
from peftjax.models.tokenizer import Tokenizer
from peftjax.peft import full
from peftjax.train.adapters import of_run
from peftjax.train.config import default_config, methods, plain
from peftjax.train.loop import run

END, PAD = "<|endoftext|>", "<|pad|>"


def pretrain_config() -> ConfigDict:
    """All fields: `name` of the base, sizes of the `decoder` (see `DecoderConfig`; `vocab_size` is that of the tokenizer, which is trained
    to it), and the `run` that trains it, on the set "prose", without a field for the base."""
    run = default_config()
    run.peft = methods(full())
    run.base.uri = ""  # <workdir>/start
    run.data.name = "prose"
    run.data.fractions = {"train": 0.96, "validation": 0.02, "test": 0.02}
    run.eval.generate, run.eval.metrics, run.eval.rows = False, (), 0
    decoder = {"vocab_size": 2048, "width": 64, "layers": 4, "heads": 4, "kv_heads": 2, "head_size": 16, "ff": 192, "tied": True,
               "max_length": 1024}
    return ConfigDict({"name": "", "decoder": decoder, "run": run})


def pretrain(config: ConfigDict, workdir: str | Path, started: float | None = None) -> Path:
    """Trains the base of `config` and writes it; returns its directory.

    Raises:
        ValueError: a field that does not exist, no name, or sizes that do not fit; else as `peftjax.train.loop.run`.
        FloatingPointError: the loss is not finite.
    """
    architecture = decoder_config(config)
    target, folder = folder_of(config.name), Path(workdir)
    begin(config, architecture, folder / "start")
    asked = config.run.copy_and_resolve_references()
    asked.base.uri = str(folder / "start")
    run(asked, folder / "run", name=f"pretrain-{config.name}", started=started)
    ready = of_run(folder / "run")
    result = read_json(folder / "run" / "result.json")
    with replacing_folder(target) as partial:
        write_merged(partial, ready.base, ready.params, ready.methods, "float32")
        write_json(partial / "base.json", {
            "name": config.name, "config": as_data(config), "records": result["data"]["content_hash"], "versions": result["versions"],
            "losses": [{k: e[k] for k in ("step", "loss", "general_loss") if k in e} for e in result["evaluations"]],
        })
    print(f"tiny:{config.name}: {target}")
    return target


def decoder_config(config: ConfigDict) -> DecoderConfig:
    """The architecture that `config.decoder` asks for. ValueError for a name or a field that is not there."""
    known = [field.name for field in dataclasses.fields(DecoderConfig)]
    for name in config.decoder:
        if name not in known:
            raise ValueError(f"config.decoder.{name} is not a field{did_you_mean(name, known)}")
    return DecoderConfig(**config.decoder.to_dict())


def begin(config: ConfigDict, architecture: DecoderConfig, folder: Path) -> None:
    """Writes the base before training, where it is not there yet: tokenizer and random weights."""
    if (folder / "config.json").exists():
        return
    tokenizer = train_tokenizer(training_texts(config.run), architecture.vocab_size)
    params = init_params(architecture, jax.random.key(config.run.train.seed))
    with replacing_folder(folder) as partial:
        tokenizer.write_directory(partial)
        write_directory(partial, architecture, params)


def training_texts(config: Any) -> list[str]:
    """The texts of the training split of a run's data: the tokenizer sees no other."""
    records, _ = load_records(config.data.name, **config.data.options.to_dict())
    return [record.response for record in split_records(records, config.data.fractions.to_dict(), salt=config.data.salt)["train"]]


def train_tokenizer(texts: list[str], size: int) -> Tokenizer:
    """A byte-level BPE of `size` tokens, digits apart (Sennrich et al., 1508.07909, 2016; Radford et al., 2019), no template for chats.

    Raises:
        ValueError: the text is too short for so many tokens.
    """
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END, PAD], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    found = backend.get_vocab_size()
    if found != size:
        raise ValueError(f"{len(texts)} texts make {found} tokens; config.decoder.vocab_size is {size}: give more text, or ask for fewer")
    return Tokenizer(backend, {"bos_token": END, "eos_token": END, "pad_token": PAD}, None)


def as_data(config: ConfigDict) -> dict[str, Any]:
    """The config as JSON-able plain data."""
    return {"name": config.name, "decoder": config.decoder.to_dict(), "run": plain(config.run)}
