"""Chat templates: messages -> the text that a chat model was trained on.

    >>> render("{% for m in messages %}<|im_start|>{{ m['role'] }}\\n{{ m['content'] }}<|im_end|>\\n{% endfor %}",
    ...        [{"role": "user", "content": "Hi"}])
    '<|im_start|>user\\nHi<|im_end|>\\n'

A template is a jinja2 program that comes with a model, so it runs in jinja2's immutable sandbox. The surroundings are those
that Hugging Face transformers gives it (utils/chat_template_utils.py, version 5): `trim_blocks`, `lstrip_blocks`, loop
controls, `raise_exception`, `strftime_now`, a `tojson` that does not escape HTML, and the `generation` block, whose body is
rendered as it stands.
"""

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox


class _Generation(jinja2.ext.Extension):
    """`{% generation %} body {% endgeneration %}` marks what the model wrote; here it is only the body."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


class _Refusal(jinja2.TemplateError):
    """What a template says through `raise_exception`."""


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = False,
    special_tokens: Mapping[str, str] | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> str:
    """The text of a conversation.

    Args:
        template: jinja2 source.
        messages: mappings with "role" and, as a rule, "content".
        add_generation_prompt: whether the text ends where the assistant would start to write.
        special_tokens: names that the template may use, such as {"bos_token": "<s>"}.
        tools: function descriptions, for templates that know them.

    Raises:
        ValueError: malformed messages, a template that does not parse or fails, or one that refuses these messages.
    """
    check_messages(messages)
    try:
        return _compiled(template).render(
            messages=messages, add_generation_prompt=add_generation_prompt, tools=tools, documents=None, **special_tokens or {}
        )
    except _Refusal as error:
        raise ValueError(f"the chat template refuses these messages: {error.message}") from error
    except (jinja2.TemplateError, TypeError, KeyError) as error:  # a template may add a string to a missing field
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise ValueError(f"the chat template fails on messages with roles [{roles}]: {error}") from error


def check_messages(messages: Sequence[Mapping[str, Any]]) -> None:
    """Raises ValueError unless `messages` is a non-empty sequence of mappings with a string "role"."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise ValueError(f'messages must be a list like [{{"role": "user", "content": "Hi"}}], not {type(messages).__name__}')
    if not messages:
        raise ValueError("messages is empty; a conversation has at least one message")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise ValueError(f"messages[{i}] must be a mapping with 'role' and 'content', not {type(message).__name__}")
        if not isinstance(message.get("role"), str):
            raise ValueError(f"messages[{i}] has no 'role'; its keys are {', '.join(map(str, message)) or 'none'}")
        if "content" not in message and len(message) == 1:
            raise ValueError(f"messages[{i}] (role {message['role']!r}) has no 'content'")


@functools.lru_cache(maxsize=16)
def _compiled(template: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _now
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"the chat template does not parse: line {error.lineno}: {error.message}") from error


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str):
    raise _Refusal(message)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
