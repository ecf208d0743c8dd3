"""Home Assistant intents: the form, the names that stand in both sentence and answer, hassil's own reading of each language."""

import collections
import json
import random

import pytest

from peftjax.data.sets import ha_intents
from peftjax.data.sets.ha_names import LANGUAGES, names

DEVICES = (
    "light", "switch", "input_boolean", "fan", "media_player", "climate", "cover", "valve", "lock", "binary_sensor", "sensor", "todo",
    "vacuum", "lawn_mower", "person", "weather", "scene", "button", "input_button", "script",
)


def test_ha_intents_in_english_have_the_promised_form():
    records = ha_intents.build()
    assert 4000 < len(records) < 6000 and len({record.group for record in records}) > 600
    assert {record.group.split("/")[0] for record in records} == set(ha_intents.DOMAINS)
    for record in records:
        answer = json.loads(record.response)
        assert list(answer)[0] == "intent" and record.response == json.dumps(answer, ensure_ascii=False, separators=(",", ":"))
        assert list(answer.get("slots", {})) == sorted(answer.get("slots", {}))
        assert 0 < len(record.prompt) <= 160 and record.prompt == " ".join(record.prompt.split())
        assert not set("<>[]{}()|") & set(record.prompt)


def test_names_and_numbers_of_an_answer_stand_in_the_sentence():
    own = {name for kind in (*DEVICES, "area", "floor", "item", "timer", "query") for name in names("en", kind)}
    digits = collections.Counter()
    for record in ha_intents.build():
        for slot, value in json.loads(record.response).get("slots", {}).items():
            if slot in ("name", "area", "floor", "item", "search_query"):
                assert value in own and value in record.prompt
            elif isinstance(value, int) and any(character.isdigit() for character in record.prompt):
                digits[str(abs(value)) in record.prompt] += 1
    assert digits[True] > 1000 and digits[False] < 0.15 * digits[True]  # the rest are said in words or by name ("warm white")


def test_ha_intents_refuses_unknown_languages():
    with pytest.raises(ValueError, match="choose some of en, de, fr, es, it, nl, pl, pt-BR"):
        ha_intents.build(languages=("en", "xx"))


def test_domains_are_a_choice_of_the_same_records():
    everything = ha_intents.build()
    chosen = ha_intents.build(domains=("media", "timer"))
    assert chosen == [record for record in everything if record.group.startswith(("media/", "timer/"))] and len(chosen) > 200
    with pytest.raises(ValueError, match=r"domains \['meida'\] \(did you mean 'media'\?\); there are chat, clean"):
        ha_intents.build(domains=("media", "meida"))


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_has_every_kind_of_name(language):
    for kind in (*DEVICES, "area", "floor", "item", "timer", "query"):
        found = names(language, kind)
        assert len(set(found)) == len(found) >= 4 and all(found)


@pytest.mark.slow  # fetches and builds eight languages, and hassil reads 400 sentences with its wildcards: half a minute
@pytest.mark.parametrize("language", LANGUAGES)
def test_hassil_reads_the_answer_back(language):
    records = random.Random(0).sample(ha_intents.build(languages=(language,)), 50)
    read = _reader(language)
    missed = [record for record in records if record.response not in read(record.prompt)]
    assert not missed


def _reader(language):
    from hassil.expression import TextChunk
    from hassil.intents import TextSlotList, TextSlotValue
    from hassil.recognize import recognize_all

    def listed(kind, context=None):
        return [TextSlotValue(text_in=TextChunk(name), value_out=name, context=context) for name in names(language, kind)]

    intents = ha_intents.load_intents(language)
    values = {
        "name": [value for kind in DEVICES for value in listed(kind, {"domain": kind})], "area": listed("area"), "floor": listed("floor")
    }
    lists = {name: TextSlotList(name=None, values=entries) for name, entries in values.items()}

    def read(sentence):
        """Every answer that hassil finds, in our form; the area that the context gives is not part of it."""
        answers = set()
        for found in recognize_all(sentence, intents, slot_lists=lists, language=language, intent_context={"area": "elsewhere"}):
            slots = {entity.name: entity.value for entity in found.entities.values() if entity.value != "elsewhere"}
            for slot, value in slots.items():
                slots[slot] = value.strip() if isinstance(value, str) else int(value) if value == int(value) else value
            answer = {"intent": found.intent.name} | ({"slots": dict(sorted(slots.items()))} if slots else {})
            answers.add(json.dumps(answer, ensure_ascii=False, separators=(",", ":")))
        return answers

    return read
