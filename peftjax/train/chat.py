"""Talking to a base, to a run's adapter, or to its merged weights."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from peftjax.data.records import Record
from peftjax.data.template import Template
from peftjax.interop.base import Base, load_base
from peftjax.models.decoder import Decoder, cut
from peftjax.models.generate import stream
from peftjax.nn.tree import flatten, unflatten_like
from peftjax.peft.attach import attach
from peftjax.peft.merge import merge
from peftjax.peft.partition import combine, partition
from peftjax.peft.spec import from_data
from peftjax.train.checkpoint import Checkpoints, stored_specification, stored_target
from peftjax.train.config import SMOLLM2, default_config
from peftjax.train.prepare import segments_of
from peftjax.train.startup import make_model, precision, use_compilation_cache


@dataclasses.dataclass(frozen=True)
class Speaker:
    """A model that answers: `template` is the run's, or None for the base's own chat template (or plain text)."""

    model: Decoder
    params: Any
    tokenizer: Any
    template: Template | None
    plain: bool

    @classmethod
    def load(
        cls, run: str | None, base_uri: str | None, *, merged: bool = False, plain: bool = False, step: int | None = None
    ) -> "Speaker":
        """A base by URI, or the base and adapter of a run.

        Raises:
            ValueError: both or an unusable run, merging without a run, or a base that is not the one the adapter was trained on.
        """
        use_compilation_cache()
        if run is None:
            if merged or step is not None:
                raise ValueError("--merged and --step belong to a run: name its folder with --run")
            base = load_base(base_uri or SMOLLM2, dtype=precision("auto").name)
            return cls(make_model(base.config, default_config().model, ()), base.params, base.tokenizer, None, plain)
        if base_uri is not None:
            raise ValueError("--base and --run exclude each other: a run names its own base")
        config, checkpoints = _config_of(Path(run)), Path(run) / "checkpoints"
        # In the dtype it was trained with: another is another base, wherever the adapter is used.
        base = load_base(config.base.uri, dtype=stored_specification(checkpoints, step)["base"]["dtype"])
        segments, params = _with_adapter(config, base, checkpoints, step)
        if merged:
            params = merge(params, strict=False)
        template = Template(prompt=config.data.prompt, response=config.data.response, chat=config.data.chat)
        return cls(make_model(base.config, config.model, segments), params, base.tokenizer, template, plain)

    def prompt_ids(self, text: str) -> list[int]:
        """The ids that the model sees for what a person typed."""
        if self.plain:
            return [*Template().first_ids(self.tokenizer), *self.tokenizer.encode(text)]
        if self.template is not None:
            unanswered = Record(prompt=text, response="?")  # a record has a response; the prompt's ids do not depend on it
            return self.template.prompt_ids(unanswered, self.tokenizer)
        return self.tokenizer.encode_chat([{"role": "user", "content": text}], True)

    def answer(self, text: str, **options) -> Iterator[str]:
        """Pieces of the answer as they come; see `peftjax.models.generate.stream` for the options."""
        prompt = self.prompt_ids(text)
        ids: list[int] = []
        said = ""
        for token in stream(self.model, self.params, prompt, self.tokenizer.eos_id, vocab=self.tokenizer.vocab_size, **options):
            ids.append(token)
            # Decoded whole each time: one character may be several tokens, and is shown when it is complete.
            now = self.tokenizer.decode(ids)
            if not now.endswith("\ufffd"):
                yield now[len(said):]
                said = now
        rest = self.tokenizer.decode(ids)
        if rest != said:  # ends within a character
            yield rest[len(said):]


def _config_of(run: Path) -> ConfigDict:
    stored = run / "config.json"
    if not stored.exists():
        raise ValueError(f"{run} is no work directory of a run: it has no config.json")
    config = ConfigDict(json.loads(stored.read_text()))
    config.peft = [ConfigDict(method) for method in config.peft]
    return config


def _with_adapter(config: ConfigDict, base: Base, checkpoints: Path, step: int | None) -> tuple[tuple[int, ...], Any]:
    specification = stored_specification(checkpoints, step)
    if specification["base"]["fingerprint"] != base.fingerprint:
        raise ValueError(f"the adapter in {checkpoints} was trained on a base with fingerprint {specification['base']['fingerprint']}, "
                         f"{base.uri} has {base.fingerprint}")
    if specification["tokenizer"] != base.tokenizer.fingerprint:
        raise ValueError(f"the adapter in {checkpoints} was trained with a tokenizer of fingerprint {specification['tokenizer']}, "
                         f"that of {base.uri} has {base.tokenizer.fingerprint}")
    methods = [from_data(dict(method)) for method in specification["methods"]]
    segments = segments_of(config.model.segments, methods, base.config.layers)
    params = attach(cut(base.params, base.config, segments), methods, jax.random.key(0))
    trainable, frozen = partition(params)
    with Checkpoints(checkpoints, specification) as store:
        _, arrays = store.restore(stored_target(checkpoints, step), step)
    values = {path.removeprefix("trainable/"): array for path, array in arrays.items() if path.startswith("trainable/")}
    missing = set(flatten(trainable)) ^ set(values)
    if missing:
        raise ValueError(f"the checkpoint in {checkpoints} does not hold the adapter its methods describe: {sorted(missing)[:10]}")
    return segments, combine(unflatten_like(trainable, values), frozen)


def converse(speaker: Speaker, prompt: str | None, **options) -> None:
    """Answers one prompt, or prompts from the terminal until an empty line; each is answered without memory of the last."""
    for text in [prompt] if prompt is not None else _lines():
        for piece in speaker.answer(text, **options):
            print(piece, end="", flush=True)
        print()


def _lines() -> Iterator[str]:
    """What a person types, until an empty line or the end of the input."""
    while True:
        try:
            text = input("> ")
        except EOFError:
            return
        if not text:
            return
        yield text
