"""Text <-> token ids, with control tokens that text cannot forge.

    >>> tokenizer = Tokenizer.from_directory("SmolLM2-135M-Instruct")
    >>> tokenizer.encode("<|im_end|>")                 # text: seven ordinary tokens, never the control token
    >>> tokenizer.encode_chat([{"role": "user", "content": "Hi"}], add_generation_prompt=True)

A control token written by the chat template becomes its id; the same characters inside a message stay characters. For that,
control texts in the messages are swapped for stand-ins before the template runs; the rendered text is cut at the control
tokens that remain, and each piece is encoded as plain text with the stand-ins swapped back. Where no message contains a
control text, the rendered text is encoded in one go, exactly as Hugging Face transformers does.

The work is done by the `tokenizers` package; this class adds the rules above and the fingerprint.
"""

import dataclasses
import difflib
import functools
import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from peftjax.files import replacing
from peftjax.models import chat

SPECIAL_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token")


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """A tokenizer with its special tokens and chat template.

    Attributes:
        backend: the `tokenizers.Tokenizer`; it is copied at the start, and the copy neither pads nor truncates.
        special: special tokens by name, {"eos_token": "<|im_end|>", ...}; each must be in the vocabulary.
        chat_template: jinja2 source, or None.
    """

    backend: tokenizers.Tokenizer
    special: Mapping[str, str] = dataclasses.field(default_factory=dict)
    chat_template: str | None = None

    def __post_init__(self):
        copy = tokenizers.Tokenizer.from_str(self.backend.to_str())
        copy.no_padding()
        copy.no_truncation()
        copy.encode_special_tokens = True  # control texts in user data are text
        object.__setattr__(self, "backend", copy)
        for name, text in self.special.items():
            if copy.token_to_id(text) is None:
                near = difflib.get_close_matches(text, self.control_ids, n=3, cutoff=0.3)
                raise ValueError(f"{name} {text!r} is not in the vocabulary; nearest control tokens: {near or 'none'}")

    @classmethod
    def from_directory(cls, path: str | Path) -> "Tokenizer":
        """Reads tokenizer.json, and what there is of tokenizer_config.json, special_tokens_map.json, chat_template.jinja; where none of
        them names the tokens that begin and end a text, config.json does.

        Raises:
            FileNotFoundError: no tokenizer.json.
            ValueError: a file that does not parse.
        """
        folder = Path(path)
        file = folder / "tokenizer.json"
        if not file.is_file():
            found = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
            raise FileNotFoundError(
                f"{folder} has no tokenizer.json (found: {', '.join(found) or 'nothing'}); a slow tokenizer (tokenizer.model, "
                "vocab.txt) must be converted first, with transformers' AutoTokenizer(...).save_pretrained"
            )
        backend = tokenizers.Tokenizer.from_str(json.dumps(_read_json(file)))
        settings = _read_json(folder / "tokenizer_config.json")
        named = {**_read_json(folder / "special_tokens_map.json"), **settings}
        special = {name: _token_text(named[name]) for name in SPECIAL_NAMES if named.get(name)}
        model = _read_json(folder / "config.json")
        for name in ("bos_token", "eos_token"):  # a directory with the bare necessities names them by number, for the model
            number = model.get(f"{name}_id")
            number = number[0] if isinstance(number, list) and number else number
            if name not in special and isinstance(number, int) and backend.id_to_token(number) is not None:
                special[name] = backend.id_to_token(number)
        template = folder / "chat_template.jinja"
        chat_template = template.read_text("utf-8") if template.is_file() else _default_template(settings.get("chat_template"))
        return cls(backend, special, chat_template)

    def write_directory(self, path: str | Path) -> None:
        """Writes tokenizer.json, tokenizer_config.json and chat_template.jinja, which `from_directory` and Hugging Face
        transformers read; the template of another tokenizer that lay there goes."""
        folder = Path(path)
        with replacing(folder / "tokenizer.json") as partial:
            partial.write_text(self.to_json(), "utf-8")
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **self.special}
        with replacing(folder / "tokenizer_config.json") as partial:
            partial.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", "utf-8")
        if self.chat_template is None:
            (folder / "chat_template.jinja").unlink(missing_ok=True)
            return
        with replacing(folder / "chat_template.jinja") as partial:
            partial.write_text(self.chat_template, "utf-8")

    def without(self, ids: Collection[int]) -> "Tokenizer":
        """The tokenizer without these added tokens, which must be its last ids; their texts are ordinary text then.

        Raises:
            ValueError: one of them stands around every text.
        """
        added = self.backend.get_added_tokens_decoder()
        texts = {added[i].content for i in ids}
        around = sorted(set(self.encode_with_special("a", "a")[0]) & set(ids))
        if around:
            raise ValueError(f"the tokenizer puts {', '.join(f'{added[i].content!r} ({i})' for i in around)} around each text")
        document = json.loads(self.to_json())
        document["added_tokens"] = [token for token in document["added_tokens"] if token["content"] not in texts]
        vocabulary = document["model"]["vocab"]  # may list them once more
        if isinstance(vocabulary, dict):
            document["model"]["vocab"] = {text: i for text, i in vocabulary.items() if text not in texts}
        else:
            document["model"]["vocab"] = [entry for entry in vocabulary if entry[0] not in texts]
        special = {name: text for name, text in self.special.items() if text not in texts}
        return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(document)), special, self.chat_template)

    def to_json(self) -> str:
        """The content of a tokenizer.json."""
        return self.backend.to_str()

    def encode(self, text: str) -> list[int]:
        """Ids of plain text. Nothing is added at the ends, and control texts within are encoded as text."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_with_special(self, text: str, pair: str | None = None) -> tuple[list[int], list[int]]:
        """Ids of a text, or of a text pair, with the control tokens that the model expects around them, and the types: the number of the
        text that an id belongs to, 0 or 1, as BERT's token types.

            BERT      [CLS] text [SEP], [CLS] text [SEP] pair [SEP]        RoBERTa   <s> text </s>, <s> text </s></s> pair </s>
            Llama     <s> text                                             GPT-2     text

        Control texts within the texts are encoded as text.
        """
        encoded = self.backend.encode(text, pair, add_special_tokens=True)
        return encoded.ids, encoded.type_ids

    def encode_rendered(self, text: str, special: bool = True) -> list[int]:
        """Ids of a text that was rendered already: control texts within become control tokens, as Hugging Face transformers reads every
        text, and with `special` the tokens that the model expects stand around it. Not for text of users: see `encode_chat`."""
        return self._with_control.encode(text, add_special_tokens=special).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts, on all cores."""
        return [row.ids for row in self.backend.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of ids. Control tokens are left out unless `skip_special` is False.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        ids = [int(i) for i in ids]
        bad = [i for i in ids if not 0 <= i < self.vocab_size]
        if bad:
            raise ValueError(f"ids outside 0..{self.vocab_size - 1}: {bad[:10]}")
        return self.backend.decode(ids, skip_special_tokens=skip_special)

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The conversation as text, for people to read; `encode_chat` gives the ids. Errors as in `chat.render`."""
        if self.chat_template is None:
            raise ValueError("this tokenizer has no chat template; encode plain text instead, or give one as chat_template.jinja")
        return chat.render(
            self.chat_template,
            messages,
            add_generation_prompt=add_generation_prompt,
            special_tokens=self.special,
            tools=tools,
        )

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        """Ids of a conversation: the template's control tokens are real, those inside messages are text.

        Raises:
            ValueError: no chat template, malformed messages, or a template that refuses them.
        """
        chat.check_messages(messages)
        stand_ins = self._stand_ins(json.dumps([messages, tools], ensure_ascii=False, default=str) + (self.chat_template or ""))
        hidden = _substitute([messages, tools], stand_ins)
        if hidden == [messages, tools]:
            rendered = self.render_chat(messages, add_generation_prompt, tools)
            return self._with_control.encode(rendered, add_special_tokens=False).ids
        rendered = self.render_chat(hidden[0], add_generation_prompt, hidden[1])
        ids, start = [], 0
        for match in self._control_pattern.finditer(rendered):
            ids += self._encode_restored(rendered[start : match.start()], stand_ins)
            ids.append(self.control_ids[match[match.lastgroup]])
            start = match.end()
        return ids + self._encode_restored(rendered[start:], stand_ins)

    @property
    def vocab_size(self) -> int:
        """Number of ids, control tokens included."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    @property
    def bos_id(self) -> int | None:
        """Id that begins a text, or None."""
        return self._id("bos_token")

    @property
    def eos_id(self) -> int | None:
        """Id that ends a text or a turn, or None."""
        return self._id("eos_token")

    @property
    def pad_id(self) -> int | None:
        """Id for padding; that of eos where the tokenizer names none (padding is masked, so any id does)."""
        pad = self._id("pad_token")
        return self.eos_id if pad is None else pad

    @functools.cached_property
    def bos_first(self) -> bool:
        """Whether the model expects bos before a text, as the tokenizer's own post-processing says."""
        ids = self.backend.encode("a", add_special_tokens=True).ids
        return bool(ids) and ids[0] == self.bos_id

    @functools.cached_property
    def control_ids(self) -> dict[str, int]:
        """Ids of all control tokens by text."""
        added = self.backend.get_added_tokens_decoder()
        return {token.content: i for i, token in sorted(added.items()) if token.special}

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of the tokenizer's canonical JSON, special tokens and chat template."""
        document = [json.loads(self.to_json()), dict(self.special), self.chat_template]
        canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()

    @functools.cached_property
    def _with_control(self) -> tokenizers.Tokenizer:
        copy = tokenizers.Tokenizer.from_str(self.backend.to_str())
        copy.encode_special_tokens = False
        return copy

    @functools.cached_property
    def _control_pattern(self) -> re.Pattern:
        """Matches any control token with the white space that it swallows; the one named group that matched is the token."""
        tokens = [token for token in self.backend.get_added_tokens_decoder().values() if token.special]
        tokens.sort(key=lambda token: -len(token.content))  # the longest first, as one may begin another
        parts = [
            (r"\s*" if token.lstrip else "") + f"(?P<token{i}>{re.escape(token.content)})" + (r"\s*" if token.rstrip else "")
            for i, token in enumerate(tokens, 1)
        ]
        return re.compile("|".join(parts) or r"(?!)")

    def _stand_ins(self, surroundings: str) -> dict[str, str]:
        """A string for each control text that occurs nowhere in `surroundings`: private-use characters around its id."""
        fence = "\ue000"
        while fence in surroundings:
            fence += "\ue001"
        return {text: f"{fence}{i}\ue002" for text, i in sorted(self.control_ids.items(), key=lambda item: -len(item[0]))}

    def _encode_restored(self, piece: str, stand_ins: Mapping[str, str]) -> list[int]:
        for text, stand_in in stand_ins.items():
            piece = piece.replace(stand_in, text)
        return self.encode(piece) if piece else []

    def _id(self, name: str) -> int | None:
        text = self.special.get(name)
        return None if text is None else self.backend.token_to_id(text)


def _substitute(value: Any, replacements: Mapping[str, str]) -> Any:
    """The same structure with the replacements made in every string value, in their order; keys are left."""
    if isinstance(value, str):
        for old, new in replacements.items():
            value = value.replace(old, new)
        return value
    if isinstance(value, Mapping):
        return {key: _substitute(item, replacements) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_substitute(item, replacements) for item in value)
    return value


def _read_json(file: Path) -> dict:
    if not file.is_file():
        return {}
    try:
        return json.loads(file.read_text("utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error


def _token_text(value: str | dict) -> str:
    """A special token is written as its text or as an object with "content"."""
    return value if isinstance(value, str) else value["content"]


def _default_template(value: str | list | None) -> str | None:
    """A template is one text, or a list of {"name", "template"} of which "default" is taken."""
    if isinstance(value, list):
        named = {entry["name"]: entry["template"] for entry in value}
        if "default" not in named:
            raise ValueError(f"chat_template has no entry named 'default'; it has {', '.join(sorted(named))}")
        return named["default"]
    return value
