"""The README's table of methods is the one that the code gives, and knows every method."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from peftjax.__main__ import main
from peftjax.interop.exchange.peft_methods import METHODS
from peftjax.peft import bitfit, loha, spec
from peftjax.train.catalogue import PRESETS, as_table, as_text, formula, rows

README = Path(__file__).parents[2] / "README.md"


def test_the_readme_holds_the_table_as_it_is_made():
    assert as_table() in README.read_text()


def test_the_command_prints_the_table_or_one_method(capsys):
    main(["methods"])
    assert capsys.readouterr().out == as_table() + "\n"
    main(["methods", "ia3"])
    text = capsys.readouterr().out
    assert text.startswith("IA3: one learned number a channel (2205.05638")
    assert all(f"    {field.name}={field.default!r},\n" in text for field in dataclasses.fields(spec.METHODS["ia3"]))
    with pytest.raises(SystemExit):
        main(["methods", "lorra"])
    assert "no method is called 'lorra' (did you mean 'lora'?)" in capsys.readouterr().err


def test_a_preset_is_told_as_the_methods_that_it_is():
    """Those that the README names: what is printed, read as Python, makes the same."""
    named = README.read_text().partition("\nPresets: ")[2].partition(". LoRA has")[0]
    assert set(re.findall(r"`(\w+)`", named)) == set(PRESETS)
    for name, preset in PRESETS.items():
        lines = as_text(name).partition(f"{name}() is\n\n")[2].partition("\n\nSettings: ")[0].splitlines()
        made = preset()
        assert [eval(line, dict(spec.METHODS)) for line in lines] == (made if isinstance(made, list) else [made])  # noqa: S307
    assert "`peftjax methods prefix` or `peftjax methods bottleneck`" in as_text("mam")


def test_every_method_is_in_words_and_in_a_file_that_is_there():
    found = {method.strip("`"): (what, link.partition("(")[2].rstrip(")")) for method, what, *_, link in rows()}
    assert sorted(found) == sorted(spec.METHODS)
    assert all(len(what) > 20 and (README.parent / path).is_file() for what, path in found.values())


def test_a_formula_is_what_the_documentation_says_first():
    assert formula(loha) == "ΔW = scale · (A₁ᵀB₁) ⊙ (A₂ᵀB₂)"  # of its module
    assert formula(bitfit) == "y = x W + b'"  # its own
    with pytest.raises(ValueError, match="Named: neither its documentation nor that of .* has an indented line with its formula"):
        formula(type("Named", (), {"__doc__": "A method.", "__module__": __name__}))


def test_every_table_of_hf_peft_is_a_format_of_its_method():
    formats = {method.strip("`"): exchange for method, *_, exchange, _ in rows()}
    for one in METHODS.values():
        assert f"PEFT {one.peft_type}" in formats[one.make.__name__].split(", ")


def test_a_reader_that_has_enough_is_no_error():
    command, pipe = [sys.executable, "-m", "peftjax", "methods"], subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == ("", 0)
