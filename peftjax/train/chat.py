"""Talking to a base, to a run's adapter, or to its merged weights."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from peftjax.data.records import Record
from peftjax.data.template import Template
from peftjax.models.decoder import Decoder, unrolled
from peftjax.models.encoder_config import EncoderConfig
from peftjax.models.generate import stream
from peftjax.models.stop import StopStrings, pieces
from peftjax.peft.dora import settle
from peftjax.peft.folded import folded
from peftjax.peft.merge import merge
from peftjax.peft.route import routed_by
from peftjax.train.adapters import ready
from peftjax.train.config import composition
from peftjax.train.routes import for_row
from peftjax.train.startup import use_compilation_cache


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
        cls, run: str | None, base_uri: str | None, adapter: str | None = None, *, merged: bool = False, plain: bool = False,
        step: int | None = None, other_base: bool = False, unroll: bool = False, row: Mapping[str, str] = {},  # noqa: B006 (read only)
        drop_layers: Sequence[int] = (),
    ) -> "Speaker":
        """A base by URI, with the adapter of a directory where one is named, or the base and adapter of a run.

        Args:
            row: what is asked is like a row with these fields, {"lang": "de"}, in a run that routes rows (`peftjax.train.routes`).
            drop_layers: layers on which the adapter is off.
            unroll: compile for longer and answer faster (`peftjax.models.decoder.unrolled`).

        Raises:
            ValueError: an unusable run or adapter, merging without an adapter, a base that the adapter was not made for, or a run that
                routes rows by a field that is not said.
        """
        use_compilation_cache()
        if merged and run is None and adapter is None:
            raise ValueError("--merged and --step belong to a run (--run), --merged also to an adapter (--adapter); none is named")
        found = ready(run, base_uri, adapter, step=step, other_base=other_base, drop_layers=drop_layers)
        if isinstance(found.base.config, EncoderConfig):
            raise ValueError(f"{found.origin} is an encoder, which classifies texts and writes none; see scripts/evaluate.py")
        params = for_row(found.params, composition(found.config), row) if row else found.params
        if left := routed_by(params):
            raise ValueError(f"{found.origin} routes rows by {', '.join(left)}; say what is asked for, as in --row {left[0]}=...")
        params = folded(settle(merge(params, strict=False) if merged else params))
        data = found.config.data
        template = None if run is None else Template(prompt=data.prompt, response=data.response, chat=data.chat)
        model, params = unrolled(found.model(), params) if unroll else (found.model(), params)
        return cls(model, params, found.base.tokenizer, template, plain)

    def prompt_ids(self, text: str) -> list[int]:
        """The ids that the model sees for what a person typed."""
        if self.plain:
            return [*Template().first_ids(self.tokenizer), *self.tokenizer.encode(text)]
        if self.template is not None:
            unanswered = Record(prompt=text, response="?")  # a record has a response; the prompt's ids do not depend on it
            return self.template.prompt_ids(unanswered, self.tokenizer)
        return self.tokenizer.encode_chat([{"role": "user", "content": text}], True)

    def answer(self, text: str, *, stop: str | Sequence[str] = (), **options) -> Iterator[str]:
        """Pieces of the answer as they come, up to the first of the strings `stop`; see `peftjax.models.generate.stream` for options."""
        stops = StopStrings(self.tokenizer, stop)
        ids = stream(
            self.model, self.params, self.prompt_ids(text), self.tokenizer.eos_id, vocab=self.tokenizer.vocab_size, ends=stops.length,
            **options,
        )
        yield from pieces(ids, self.tokenizer, stops)


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
