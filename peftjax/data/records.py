"""A record: one example for training or evaluation, and its JSONL form.

    {"prompt": "Turn on the lamp", "response": "{\\"intent\\":\\"HassTurnOn\\"}", "group": "switch/lamp", "lang": "en"}
    {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}], "id": "chat-1"}

Known fields are id, prompt, response, messages, group, lang, source and split; every other one is kept in `extra` (aliases,
accept, ...). An empty prompt means plain text. Text is brought to Unicode's NFC form, so that equal text is equal.
`group` is the unit that must not be divided between training and evaluation; it is the id unless given.
"""

import collections
import dataclasses
import hashlib
import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from peftjax.files import replacing

ROLES = ("system", "user", "assistant", "tool")
_KNOWN = ("id", "prompt", "response", "messages", "group", "lang", "source", "split")
_TEXTS = tuple(name for name in _KNOWN if name != "messages")


class BadRow(ValueError):
    """A row that is no record. `reason` is one of a few fixed phrases, to count by; `detail` says what was found."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class Record:
    """One example: `prompt` -> `response`, or chat `messages` of which the last is the assistant's (then `response` is its text).

    `id` defaults to a hash of prompt, response and messages, `group` to the id. Raises BadRow if a field is not text, the
    response is empty, or the messages are malformed.
    """

    prompt: str = ""
    response: str = ""
    messages: tuple[Mapping[str, str], ...] = ()
    id: str = ""
    group: str = ""
    lang: str = ""
    source: str = ""
    split: str = ""
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        messages = tuple(_message(message) for message in _as_messages(self.messages))
        response = self.response
        if messages:
            if messages[-1]["role"] != "assistant":
                raise BadRow("the last message is not the assistant's", f"its role is {messages[-1]['role']!r}")
            if self.prompt or response not in ("", messages[-1]["content"]):
                raise BadRow("prompt or response beside messages", "a record is one or the other")
            response = messages[-1]["content"]
        for name in _TEXTS:
            object.__setattr__(self, name, _text(name, response if name == "response" else getattr(self, name)))
        object.__setattr__(self, "messages", messages)
        object.__setattr__(self, "extra", _extra(self.extra))
        if not self.response.strip():
            raise BadRow("the response is empty")
        object.__setattr__(self, "id", self.id or _digest([self.prompt, self.response, messages])[:16])
        object.__setattr__(self, "group", self.group or self.id)

    @property
    def conversation(self) -> tuple[Mapping[str, str], ...]:
        """The chat messages; made from prompt and response where the record has none."""
        if self.messages:
            return self.messages
        user = ({"role": "user", "content": self.prompt},) if self.prompt else ()
        return (*user, {"role": "assistant", "content": self.response})


@dataclasses.dataclass(frozen=True)
class ReadReport:
    """What became of the rows of a file: `rows` read, `kept`, exact `doubles` dropped, `skipped` counted by reason."""

    rows: int
    kept: int
    doubles: int
    skipped: Mapping[str, int]

    def __str__(self) -> str:
        skipped = "".join(f", {count} skipped: {reason}" for reason, count in sorted(self.skipped.items()))
        return f"{self.rows} rows: {self.kept} kept, {self.doubles} exact doubles dropped{skipped}"


def from_row(row: Any) -> Record:
    """The record of a decoded JSON object; null is as good as absent, a whole-number id is as good as text."""
    if not isinstance(row, dict):
        raise BadRow("not a JSON object", f"found {type(row).__name__}")
    fields = {name: value for name, value in row.items() if value is not None}
    for name in ("id", "group"):
        if isinstance(fields.get(name), int) and not isinstance(fields[name], bool):
            fields[name] = str(fields[name])
    if "messages" in fields and not fields["messages"]:
        raise BadRow("messages are malformed", "the list is empty")
    if "messages" not in fields and "response" not in fields:
        raise BadRow("no response", f"fields are {', '.join(map(str, row)) or '(none)'}")
    known = {name: fields.pop(name) for name in _KNOWN if name in fields}
    return Record(**known, extra=fields)


def to_row(record: Record) -> dict[str, Any]:
    """The JSON object of a record; `from_row(to_row(record)) == record`. Empty fields are left out."""
    if record.messages:
        row: dict[str, Any] = {"id": record.id, "messages": [dict(message) for message in record.messages]}
    else:
        row = {"id": record.id, "prompt": record.prompt, "response": record.response}
    row |= {name: getattr(record, name) for name in ("group", "lang", "source", "split") if getattr(record, name)}
    return row | dict(record.extra)


def read_jsonl(path: str | Path, on_bad_row: str = "error") -> tuple[list[Record], ReadReport]:
    """The records of a JSONL file (UTF-8, one object a line, empty lines allowed) in file order, and what was dropped.

    A broken row raises ValueError with file, line and reason, or with `on_bad_row="skip"` is counted by reason. Exact doubles
    are dropped and counted; one id on two different rows is a broken row, its error names both lines.
    """
    if on_bad_row not in ("error", "skip"):
        raise ValueError(f"on_bad_row is {on_bad_row!r}; it is 'error' or 'skip'")
    kept: dict[str, tuple[int, Record]] = {}
    skipped: collections.Counter[str] = collections.Counter()
    rows = doubles = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            rows += 1
            try:
                record = from_row(_parse(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line))
                earlier, same_id = kept.get(record.id, (number, record))
                if same_id != record:
                    raise BadRow("one id on two different rows", f"id {record.id!r} is also on line {earlier}")
            except BadRow as bad:
                if on_bad_row == "error":
                    raise ValueError(f"{path}, line {number}: {bad}") from bad
                skipped[bad.reason] += 1
                continue
            doubles += record.id in kept
            kept.setdefault(record.id, (number, record))
    return [record for _, record in kept.values()], ReadReport(rows, len(kept), doubles, dict(skipped))


def write_jsonl(path: str | Path, records: Iterable[Record]) -> None:
    """Writes one object a line, whole or not at all; `read_jsonl` gives the same records back."""
    with replacing(Path(path)) as partial, open(partial, "w", encoding="utf-8", newline="\n") as file:
        for record in records:
            file.write(json.dumps(to_row(record), ensure_ascii=False) + "\n")


def content_hash(records: Sequence[Record]) -> str:
    """sha256 (hex) of all fields of all records in their order; a stored source knows its own without being read."""
    known = getattr(records, "content_hash", None)
    if known is not None:
        return known
    digest = hashlib.sha256()
    for record in records:
        digest.update(_digest(to_row(record)).encode())
    return digest.hexdigest()


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8"), object_pairs_hook=_object, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise BadRow("not UTF-8", str(error)) from error
    except json.JSONDecodeError as error:
        raise BadRow("not JSON", f"{error.msg} at column {error.colno}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        raise BadRow("a field is given twice", ", ".join(sorted({name for name in names if names.count(name) > 1})))
    return dict(pairs)


def _no_constant(constant: str):
    raise BadRow("not JSON", f"{constant} is no JSON number")


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise BadRow("a field is not text", f"{name} is {type(value).__name__}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRow("text holds half a surrogate pair", name) from error
    return unicodedata.normalize("NFC", value)


def _as_messages(messages: Any) -> Sequence[Any]:
    if not isinstance(messages, (list, tuple)):
        raise BadRow("messages are malformed", f"found {type(messages).__name__}, not a list")
    return messages


def _message(message: Any) -> dict[str, str]:
    if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
        raise BadRow("messages are malformed", f"each has 'role' and 'content' alone, found {message!r:.80}")
    if message["role"] not in ROLES:
        raise BadRow("messages are malformed", f"role {message['role']!r} is none of {', '.join(ROLES)}")
    return {"role": message["role"], "content": _text("a message's content", message["content"])}


def _extra(extra: Mapping[str, Any]) -> dict[str, Any]:
    taken = [name for name in extra if name in _KNOWN]
    if taken:
        raise BadRow("a field is given twice", ", ".join(taken))
    return {name: value for name, value in extra.items() if value is not None}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False, sort_keys=True).encode()).hexdigest()
