"""Shell commands: whole commands that name their tool; what the optional specs add."""

import collections
import shutil

import pytest

from peftjax.data.sets import fig, shell


def test_a_command_names_its_tool():
    records = shell.build()
    assert len(records) > 1200
    for record in records:
        tool = record.group.split("/")[0]
        assert record.prompt.startswith(f"Shell command ({tool}): ") and tool in record.response
        description = record.prompt.split(": ", 1)[1]
        assert 8 <= len(description) <= 200 and not description.lower().startswith("to ") and description[-1] not in ".:;"
        assert 2 <= len(record.response) <= 160 and not record.response.startswith("$ ")


def test_both_sources_and_many_tools():
    sources = collections.Counter(record.source for record in shell.build())
    assert sources["cheat==2.5.1"] > 800 and sources["eg==1.2.3"] > 400
    assert len({record.group.split("/")[0] for record in shell.build()}) > 150


def test_known_commands():
    found = {record.prompt: record.response for record in shell.build()}
    assert found["Shell command (tar): list the content of an .gz archive"] == "tar -ztvf /path/to/foo.tgz"
    assert found["Shell command (git): switch to the branch named bugfix"] == "git checkout bugfix"


def test_the_cap_holds_for_each_tool():
    counts = collections.Counter(record.group.split("/")[0] for record in shell.build(cap=5))
    assert max(counts.values()) == 5 and set(counts) == {record.group.split("/")[0] for record in shell.build()}


def test_unknown_sources_are_refused():
    with pytest.raises(ValueError, match="choose some of cheat, eg, fig"):
        shell.build(sources=("bash",))


@pytest.mark.skipif(shutil.which("npm") is None, reason="the source fig comes from npm")
def test_options_of_known_tools():
    records = shell.build(sources=("cheat", "eg", "fig"))
    added = {record.prompt: record.response for record in records if record.source == fig.SOURCE}
    assert len(added) > 1500
    assert added["Shell command (lsblk): Force tree-like output format"] == "lsblk --tree"
    assert not any("help" in response.split()[-1] for response in added.values())
    assert max(collections.Counter(record.group.split("/")[0] for record in records).values()) <= 120
