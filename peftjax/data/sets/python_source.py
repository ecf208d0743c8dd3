"""Python source: whole functions of the standard library without their docstrings, as text to move an English base towards.

    prompt    ""
    response  "def isclass(object):\\n    return isinstance(object, type)"
    group     stdlib/inspect.py              source/file

Source: the standard library of this Python (PSF licence; needs nothing, but follows the version of Python). Docstrings are left out because
the set `prose`, which tiny bases are trained on, has them; comments stay. Functions within functions come with those around them alone.
"""

import ast
import sys
import sysconfig
import textwrap
from collections.abc import Iterator
from pathlib import Path

from peftjax.data.records import Record
from peftjax.data.sets.answers import shuffled
from peftjax.data.sets.cached import cached

VERSION = "1"
_LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages"}


def build(shortest: int = 120, longest: int = 300, per_file: int = 12, seed: int = 0) -> list[Record]:
    """Functions of `shortest` to `longest` characters, the first `per_file` of a file, shuffled."""
    if not 0 < shortest <= longest or per_file < 1:
        raise ValueError(f"functions of {shortest} to {longest} characters, {per_file} of a file: there are none")
    options = {"shortest": shortest, "longest": longest, "per_file": per_file, "seed": seed, "python": sys.version.split()[0]}

    def make() -> list[Record]:
        found: dict[str, Record] = {}
        for name, code in _files():
            texts = [text for text in functions(code) if shortest <= len(text) <= longest]
            for text in texts[:per_file]:
                record = Record(response=text, group=f"stdlib/{name}", lang="python", source=f"Python {options['python']}")
                found.setdefault(text, record)
        return shuffled(found.values(), f"python_source/{seed}")

    return cached("python_source", VERSION, options, make)


def functions(code: str) -> list[str]:
    """The functions and methods of a module, as they are written, without docstrings, each at the left margin, in their order."""
    lines, found = code.splitlines(), []

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                if text := _text(child, lines):
                    found.append(text)
            else:
                visit(child)

    visit(ast.parse(code))
    return found


def _text(function: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> str:
    """Its lines but those of docstrings; "" where nothing else is in it, or where a docstring shares its line with code."""
    drop: set[int] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node, clean=False) is not None:
            first = node.body[0]
            if len(node.body) == 1 or node.body[1].lineno == first.end_lineno or first.lineno == node.lineno:
                return ""
            drop |= set(range(first.lineno, first.end_lineno + 1))
    kept = [lines[number - 1].rstrip() for number in range(function.lineno, function.end_lineno + 1) if number not in drop]
    return textwrap.dedent("\n".join(line for line in kept if line)).strip()


def _files() -> Iterator[tuple[str, str]]:
    """(path within the library, source) by name."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for file in sorted(root.rglob("*.py")):
        within = file.relative_to(root)
        if not _LEFT_OUT & set(within.parts):
            yield str(within), file.read_text("utf-8")
