"""The README's table of methods is the one that the code gives, and knows every method."""

from pathlib import Path

from peftjax.peft import spec
from peftjax.train.catalogue import as_table, rows

README = Path(__file__).parents[2] / "README.md"


def test_the_readme_holds_the_table_as_it_is_made():
    assert as_table() in README.read_text()


def test_every_method_is_in_words_and_in_a_file_that_is_there():
    found = {method.strip("`"): (what, link.partition("(")[2].rstrip(")")) for method, what, *_, link in rows()}
    assert sorted(found) == sorted(spec.METHODS)
    assert all(len(what) > 20 and (README.parent / path).is_file() for what, path in found.values())
