"""User-interface texts and names from English into 12 languages.

    prompt    "Translate to German: Please correct the errors below."
    response  "Bitte die unten aufgeführten Fehler korrigieren."
    group     admin/5e0c1a2b  or  cldr_territory/PT          component/text or kind/code: one English text in all languages is one unit

Messages of Django (BSD-3) and the names of territories, languages and currencies of the Unicode CLDR (Unicode-3.0), which babel brings.
Left out: plural, contextual and fuzzy messages, those with HTML, translations that equal the English text or have other placeholders,
territories that are numbers, languages of three letters, currencies with years. A text of two components belongs to the first by name,
and texts that differ in case or closing punctuation alone ("May", "may") are one unit.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from peftjax.data.placeholders import placeholders
from peftjax.data.records import Record
from peftjax.data.sets.answers import digest, one_line, shuffled, single_answers
from peftjax.data.sets.cached import cached
from peftjax.interop.pypi import fetch_matching

_DJANGO, _BABEL = "5.2.19", "2.18.0"
VERSION = f"{_DJANGO}-{_BABEL}-1"
LANGUAGES = {
    "cs": "Czech", "de": "German", "es": "Spanish", "fr": "French", "it": "Italian", "ja": "Japanese", "nl": "Dutch", "pl": "Polish",
    "pt-BR": "Brazilian Portuguese", "ru": "Russian", "sv": "Swedish", "tr": "Turkish",
}
KINDS = ("message", "territory", "language", "currency")
_FILES = (
    f"pypi:django=={_DJANGO}/"
    + ",".join(f"django/*/locale/{language.replace('-', '_')}/LC_MESSAGES/django*.po" for language in LANGUAGES)
    + "#sha256=cd23e042a08bfce71eecd19bc02fbc9293b873559e6231591c52aafb056af186"
)
_LONGEST = 300


def build(languages: Sequence[str] = tuple(LANGUAGES), kinds: Sequence[str] = KINDS, seed: int = 0) -> list[Record]:
    """The records of these languages and kinds, shuffled. Downloads 8 MB at the first call.

    Raises ImportError if babel is another version than the one whose names the records are made of.
    """
    for what, given, known in (("languages", languages, LANGUAGES), ("kinds", kinds, KINDS)):
        if not given or set(given) - set(known):
            raise ValueError(f"{what} {list(given)}: choose some of {', '.join(known)}")
    options = {"languages": sorted(set(languages)), "kinds": [kind for kind in KINDS if kind in kinds], "seed": seed}

    def make() -> list[Record]:
        pairs = [*(_messages() if "message" in kinds else ()), *_names([kind for kind in KINDS[1:] if kind in kinds])]
        groups: dict[str, str] = {}
        records = []
        for group, english, language, text in sorted(pairs):
            unit = groups.setdefault(english.casefold().strip(" .:!?…"), group)
            if language in options["languages"] and text != english:
                source = f"babel=={_BABEL}" if group.startswith("cldr_") else f"django=={_DJANGO}"
                prompt = f"Translate to {LANGUAGES[language]}: {english}"
                records.append(Record(prompt=prompt, response=text, group=unit, lang=language, source=source))
        return shuffled(single_answers(records), f"i18n/{seed}")

    return cached("i18n", VERSION, options, make)


def _messages() -> Iterator[tuple[str, str, str, str]]:
    """(group, English, language, translation) of Django's messages."""
    from babel.messages.pofile import read_po

    for name, path in fetch_matching(_FILES).items():
        parts = PurePosixPath(name).parts
        component, language = parts[parts.index("locale") - 1], parts[parts.index("locale") + 1].replace("_", "-")
        # babel miscounts the plural forms of some headers and prints so for each plural message; those are not taken anyway.
        with open(path, "rb") as file, contextlib.redirect_stdout(None):
            catalogue = read_po(file)
        for message in catalogue:
            # The header has no id, a plural message has several.
            if not message.id or not isinstance(message.id, str) or message.context or message.fuzzy or "<" in message.id:
                continue
            english, text = one_line(message.id), one_line(message.string)
            if text and len(english) <= _LONGEST and placeholders(english) == placeholders(text):
                yield f"{component}/{digest(english)}", english, language, text


def _names(kinds: Sequence[str]) -> Iterator[tuple[str, str, str, str]]:
    """As `_messages`, for the names of territories, languages and currencies."""
    import babel

    if babel.__version__ != _BABEL:
        raise ImportError(f"the set i18n has the names of babel {_BABEL}, installed is {babel.__version__}: pip install babel=={_BABEL}")
    wanted = {
        "territory": ("territories", lambda code, name: code.isalpha()),
        "language": ("languages", lambda code, name: len(code) == 2),
        "currency": ("currencies", lambda code, name: not any(character.isdigit() for character in name)),
    }
    for kind in kinds:
        table, is_wanted = wanted[kind]
        names = {code: name for code, name in getattr(babel.Locale.parse("en"), table).items() if is_wanted(code, name)}
        for language in LANGUAGES:
            translated = getattr(babel.Locale.parse(language, sep="-"), table)
            for code, name in names.items():
                if code in translated:
                    yield f"cldr_{kind}/{code}", one_line(name), language, one_line(translated[code])
