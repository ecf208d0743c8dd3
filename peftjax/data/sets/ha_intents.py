"""Home Assistant intents: a smart-home sentence -> compact JSON of the intent and its slots, in 8 languages.

    prompt    "set brightness to 40 percent in the kitchen"
    response  {"intent":"HassLightSet","slots":{"area":"kitchen","brightness":40,"domain":"light"}}
    group     switch/HassLightSet:area_brightness:en:1f2e3d4c        domain/intent:slot combination:language:template

From the sentence templates of the package home-assistant-intents (Apache-2.0), parsed by hassil: alternatives, optional parts and
permutations are drawn at random, lists filled in; areas, devices and titles come from ha_names. Templates with free text
(message, zone, timer_command) are left out. A sentence with two different answers is left out.
"""

import collections
import hashlib
import json
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from peftjax.data.records import Record
from peftjax.data.sets.cached import cached
from peftjax.data.sets.ha_names import LANGUAGES, names
from peftjax.hints import did_you_mean
from peftjax.interop.pypi import fetch

_PACKAGE = "2026.10.27"
VERSION = f"{_PACKAGE}-1"
_SHA256 = {
    "en": "0b9d606a216b1712409a3d822a8edfb9ff4458e51e421792882ea24e0ce1d456",
    "de": "e4f72dde27bee2f04225ec5716c8776c5f95310022cb7668af5929e0056df7a7",
    "fr": "1bf13b8ca7d92e0793ea098e22ffe2ed440d640e8320dc367d71efe9804b947f",
    "es": "41d6be5446d7dd2cfa20f0ee355a158d6f8a408340214c4cbd6ce0f00cacb4ba",
    "it": "89e8a04536434f4bc4a6088076eac42fbaf766d6884715edc392a5e4c43a5134",
    "nl": "533294a216a24bc11c90dff2bddac09819827cad7345b7358bf537d7d84e87da",
    "pl": "a7b831c4071c00e933865a0a81ff1f41ee9122edea8541c94d792a73e5620bd0",
    "pt-BR": "597a558a373a0ecd4b467a556c0389bfd5b7733457d20ddb5e6c87cfa4646504",
}
DOMAINS = {
    "chat": ("HassNevermind", "HassRespond"),
    "clean": ("HassLawnMower.*", "HassVacuum.*"),
    "climate": ("HassClimate.*",),
    "list": ("HassList.*", "HassShoppingList.*"),
    "media": ("HassMedia.*", "HassSetVolume.*"),
    "query": ("HassGet.*",),
    "switch": ("HassTurnOn", "HassTurnOff", "HassLightSet", "HassFanSetSpeed", "HassSetPosition"),
    "timer": (".*Timers?", "HassTimerStatus"),
}
_FREE_TEXT = {"message", "zone", "timer_command"}
_OWN_LISTS = {
    "area": "area",
    "floor": "floor",
    "todo_list_item": "item",
    "shopping_list_item": "item",
    "timer_name": "timer",
    "search_query": "query",
}
_MAX_CHARACTERS = 160


def build(
    languages: Sequence[str] = ("en",), cap: int = 36, cap_other: int = 18, seed: int = 0, domains: Sequence[str] = ()
) -> list[Record]:
    """The records of these languages, shuffled; of these domains alone (names in `DOMAINS`) where any are given. At most `cap` per intent
    and slot combination in English, `cap_other` elsewhere, half of it for timers, whose combinations are many. Downloads one file a
    language at the first call (0.8 MB each time).

    Raises:
        ValueError: a language or a domain that there is not.
    """
    if strange := [domain for domain in domains if domain not in DOMAINS]:
        raise ValueError(f"domains {strange}{did_you_mean(strange[0], DOMAINS)}; there are {', '.join(DOMAINS)}")
    unknown = [language for language in languages if language not in LANGUAGES]
    if unknown or not languages:
        raise ValueError(f"languages {list(languages)}: choose some of {', '.join(LANGUAGES)}")
    options = {"languages": sorted(set(languages)), "cap": cap, "cap_other": cap_other, "seed": seed}

    def make() -> list[Record]:
        answers: dict[str, set[str]] = collections.defaultdict(set)
        rows: dict[str, Record] = {}
        for language in options["languages"]:
            for record in _drawn(language, cap if language == "en" else cap_other, seed):
                answers[record.prompt].add(record.response)
                rows.setdefault(record.prompt, record)
        records = [record for prompt, record in rows.items() if len(answers[prompt]) == 1]
        random.Random(f"ha_intents/{seed}").shuffle(records)
        return records

    records = cached("ha_intents", VERSION, options, make)
    return [record for record in records if not domains or record.group.partition("/")[0] in domains]


def package_file(language: str) -> Path:
    """The package's intents of a language, as JSON."""
    path = f"home_assistant_intents/data/{language}.json"
    return fetch(f"pypi:home-assistant-intents=={_PACKAGE}/{path}#sha256={_SHA256[language]}")


def load_intents(language: str):
    """The package's intents of a language as hassil's object of templates, lists and rules."""
    from hassil.intents import Intents

    return Intents.from_dict(json.loads(package_file(language).read_text(encoding="utf-8")))


def _drawn(language: str, cap: int, seed: int) -> Iterator[Record]:
    """Records of a language, combination by combination; a sentence may come more than once."""
    intents = load_intents(language)
    for (intent, combination), templates in sorted(_templates(intents).items(), key=lambda item: item[0]):
        domain = _domain(intent)
        limit = max(1, cap // 2) if domain == "timer" else cap
        for prompt, response, template in _sentences(intents, language, intent, templates, limit, seed):
            digest = hashlib.sha256(template.encode()).hexdigest()[:8]
            group = f"{domain}/{intent}:{combination}:{language}:{digest}"
            source = f"home-assistant-intents=={_PACKAGE}"
            yield Record(prompt=prompt, response=response, group=group, lang=language, source=source)


def _templates(intents) -> dict[tuple[str, str], list[tuple[Any, Any]]]:
    """(intent, slot combination) -> (block, parsed sentence) pairs whose every list can be filled."""
    found = collections.defaultdict(list)
    for intent in intents.intents.values():
        for block in intent.data:
            for sentence in block.sentences:
                lists = set(sentence.list_names(intents.expansion_rules))
                fillable = all(name in intents.slot_lists or name in _OWN_LISTS or name == "name" for name in lists)
                if fillable and not lists & _FREE_TEXT:
                    found[intent.name, block.metadata["slot_combination"]].append((block, sentence))
    return found


def _sentences(
    intents, language: str, intent: str, templates: list[tuple[Any, Any]], limit: int, seed: int
) -> Iterator[tuple[str, str, str]]:
    """At most `limit` different (sentence, answer, template), the templates taking turns."""
    seen: set[str] = set()
    drawn = random.Random(f"ha_intents/{seed}/{language}/{intent}/{templates[0][0].metadata['slot_combination']}")
    for _ in range(4 * limit):
        for block, sentence in drawn.sample(templates, len(templates)):
            if len(seen) >= limit:
                return
            slots: dict[str, Any] = dict(block.slots)
            walk = _Walk(drawn, intents, language, block.requires_context.get("domain"), slots)
            text = re.sub(r"\s+", " ", walk.text(sentence.expression)).strip()
            if text in seen or walk.clashed or not 0 < len(text) <= _MAX_CHARACTERS:
                continue
            seen.add(text)
            answer = {"intent": intent} | ({"slots": dict(sorted(slots.items()))} if slots else {})
            yield text, json.dumps(answer, ensure_ascii=False, separators=(",", ":")), sentence.text


class _Walk:
    """One random walk through a parsed template; the values of its lists are put into `slots`."""

    def __init__(self, drawn: random.Random, intents, language: str, domains, slots: dict[str, Any]):
        self._random, self._intents, self._language, self._slots = drawn, intents, language, slots
        self._domains = [domains] if isinstance(domains, str) else domains
        self.clashed = False  # One slot was given two values, e.g. by a template that names an area twice.

    def text(self, expression) -> str:
        from hassil import expression as parts

        if isinstance(expression, parts.TextChunk):
            return expression.original_text
        if isinstance(expression, parts.RuleReference):
            return self.text(self._intents.expansion_rules[expression.rule_name].expression)
        if isinstance(expression, parts.ListReference):
            return self._list(expression.list_name, expression.slot_name)
        if isinstance(expression, parts.Alternative):
            return self.text(self._random.choice(expression.items))
        if isinstance(expression, parts.Permutation):
            return " ".join(self.text(item) for item in self._random.sample(expression.items, len(expression.items)))
        return "".join(self.text(item) for item in expression.items)

    def _list(self, name: str, slot: str) -> str:
        from hassil.intents import RangeSlotList

        if name == "name":
            text = value = self._random.choice(names(self._language, self._random.choice(self._domains)))
        elif name in _OWN_LISTS:
            text = value = self._random.choice(names(self._language, _OWN_LISTS[name]))
        elif isinstance(self._intents.slot_lists[name], RangeSlotList):
            text, value = self._number(self._intents.slot_lists[name])
        else:
            entry = self._random.choice(self._intents.slot_lists[name].values)
            text, value = self.text(entry.text_in), entry.value_out
        self.clashed |= self._slots.setdefault(slot, value) != value
        return text

    def _number(self, numbers) -> tuple[str, int]:
        """A number of the list, mostly in digits, some in words; those that people say (comfortable degrees, tens) more often."""
        from hassil.numbers import get_rbnf_engine

        low, high = (max(numbers.start, 10), min(numbers.stop, 35)) if numbers.type == "temperature" else (numbers.start, numbers.stop)
        choices = range(low, high + 1, numbers.step)
        tens = [number for number in choices if number % 10 == 0]
        number = self._random.choice(tens if tens and self._random.random() < 0.4 else choices)
        text = str(number)
        # Lists with a multiplier ("down by ten": -10) stay in digits: hassil itself reads their words without it.
        if number <= 100 and numbers.multiplier is None and self._random.random() < 0.2:
            text = get_rbnf_engine(self._language).format_number(number).text
        value = number if numbers.multiplier is None else number * numbers.multiplier
        return text, int(value) if value == int(value) else value


def _domain(intent: str) -> str:
    for domain, patterns in DOMAINS.items():
        if any(re.fullmatch(pattern, intent) for pattern in patterns):
            return domain
    return "other"
