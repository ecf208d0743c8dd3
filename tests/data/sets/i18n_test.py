"""Translations: every language complete, one English text one unit, placeholders as they were."""

import collections

import pytest

from peftjax.data.placeholders import placeholders
from peftjax.data.sets import i18n


def english(record):
    return record.prompt.split(": ", 1)[1]


def test_every_language_has_every_domain():
    domains = collections.defaultdict(collections.Counter)
    for record in i18n.build():
        assert record.prompt.startswith(f"Translate to {i18n.LANGUAGES[record.lang]}: ")
        domains[record.lang][record.group.split("/")[0]] += 1
    assert set(domains) == set(i18n.LANGUAGES)
    assert all(1000 < counts.total() < 1500 and set(counts) == set(domains["de"]) for counts in domains.values())
    assert len(domains["de"]) >= 13


def test_one_english_text_is_one_unit_in_all_languages():
    units = collections.defaultdict(set)
    for record in i18n.build():
        units[english(record).casefold().strip(" .:!?…")].add(record.group)
    assert all(len(groups) == 1 for groups in units.values())
    by_group = collections.defaultdict(set)
    for record in i18n.build():
        by_group[record.group].add(record.lang)
    assert sum(len(languages) >= 10 for languages in by_group.values()) > 0.7 * len(by_group)


def test_a_translation_differs_and_keeps_its_placeholders():
    with_some = 0
    for record in i18n.build():
        assert record.response != english(record) and "<" not in english(record)
        if "%" in record.response or "{" in record.response:
            assert placeholders(record.response) == placeholders(english(record))
            with_some += bool(placeholders(record.response))
    assert with_some > 1000


def test_known_translations():
    found = {record.prompt: record.response for record in i18n.build(languages=("de", "ja"))}
    assert "Translate to German: Portugal" not in found  # it is the same
    assert found["Translate to German: Azerbaijani"] == "Aserbaidschanisch"
    assert found["Translate to Japanese: Colombian Peso"] == "コロンビア ペソ"


def test_options():
    names = i18n.build(languages=("pl",), kinds=("territory",))
    assert {record.lang for record in names} == {"pl"} and {record.group.split("/")[0] for record in names} == {"cldr_territory"}
    # Which unit a text belongs to does not depend on the languages chosen.
    groups = {record.id: record.group for record in i18n.build()}
    assert all(groups[record.id] == record.group for record in i18n.build(languages=("sv",)))
    with pytest.raises(ValueError, match="languages .*choose some of cs, de, es"):
        i18n.build(languages=("xx",))
    with pytest.raises(ValueError, match="kinds .*choose some of message, territory, language, currency"):
        i18n.build(kinds=("verb",))
