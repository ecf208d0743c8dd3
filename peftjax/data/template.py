"""How a record becomes text: the prompt and the response apart, so that their boundary is the same in training and generation.

    >>> Template(prompt="Command: {prompt}\\nJSON:").texts(Record(prompt="Lamp on", response="{}"))
    ('Command: Lamp on\\nJSON:', ' {}')

`{name}` stands for a record's field or one of its `extra` fields; a literal brace is written twice. With `chat=True` the prompt is
rendered through the tokenizer's chat template (up to where the assistant begins) and the response follows as it is.
"""

import dataclasses
import difflib
import string
from typing import Any

from peftjax.data.records import Record

_FIELDS = ("prompt", "response", "id", "group", "lang", "source", "split")


@dataclasses.dataclass(frozen=True)
class Template:
    """The text form of records. `response=None` is " {response}" after a plain prompt and "{response}" in a chat.

    Raises ValueError for a format that is not made of text and plain `{name}` fields.
    """

    prompt: str = "{prompt}"
    response: str | None = None
    chat: bool = False

    def __post_init__(self):
        if self.response is None:
            object.__setattr__(self, "response", "{response}" if self.chat else " {response}")
        _field_names(self.prompt), _field_names(self.response)

    def texts(self, record: Record) -> tuple[str, str]:
        """(prompt text, response text) without any chat markup. ValueError for a field that the record has not."""
        if record.messages and not self.chat:
            raise ValueError(f"record {record.id!r} is a chat; its template needs chat=True")
        if record.messages:
            return "", record.response
        return _fill(self.prompt, record), _fill(self.response, record)

    def prompt_text(self, record: Record, tokenizer: Any = None) -> str:
        """The whole prompt as text, in a chat with the tokenizer's markup; for reading, `prompt_ids` is what the model sees."""
        if not self.chat:
            return self.texts(record)[0]
        return tokenizer.render_chat(self._turns(record), add_generation_prompt=True)

    def prompt_ids(self, record: Record, tokenizer: Any) -> list[int]:
        """The prompt's token ids; only the chat template's own markup becomes control tokens, never text of the record."""
        if not self.chat:
            return [*self.first_ids(tokenizer), *tokenizer.encode(self.texts(record)[0])]
        return tokenizer.encode_chat(self._turns(record), add_generation_prompt=True)

    def first_ids(self, tokenizer: Any) -> list[int]:
        """What stands before every plain prompt: the begin-of-text token of tokenizers that put one first; a chat template has its own."""
        return [tokenizer.bos_id] if tokenizer.bos_first and not self.chat else []

    def _turns(self, record: Record) -> list[dict[str, str]]:
        """The messages before the assistant's last one."""
        if record.messages:
            return [dict(message) for message in record.messages[:-1]]
        prompt = _fill(self.prompt, record)
        return [{"role": "user", "content": prompt}] if prompt else []


def _field_names(text: str) -> list[str]:
    try:
        pieces = list(string.Formatter().parse(text))
    except ValueError as error:
        raise ValueError(f"template {text!r}: {error}; a literal brace is written twice") from error
    names = [(name, spec, conversion) for _, name, spec, conversion in pieces if name is not None]
    for name, spec, conversion in names:
        if not name.isidentifier() or spec or conversion:
            raise ValueError(f"template {text!r}: {{{name}}} is not a plain field name; a literal brace is written twice")
    return [name for name, _, _ in names]


def _fill(text: str, record: Record) -> str:
    values = {name: getattr(record, name) for name in _FIELDS} | dict(record.extra)
    for name in _field_names(text):
        if name not in values:
            nearest = difflib.get_close_matches(name, values, n=1)
            hint = f"; did you mean {{{nearest[0]}}}?" if nearest else ""
            raise ValueError(f"template {text!r}: record {record.id!r} has no field {name!r}, it has {', '.join(values)}{hint}")
        if not isinstance(values[name], (str, int, float)):
            raise ValueError(f"template {text!r}: field {name!r} of record {record.id!r} is {type(values[name]).__name__}, not text")
    return text.format_map(values)
