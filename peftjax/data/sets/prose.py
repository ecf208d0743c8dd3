"""English text to train a small base on from scratch, without the tasks it is fine-tuned for later and without the text it is tested on.

    prompt    ""
    response  "Django is designed to make it easy to get started. Each model maps to a single database table ..."
    group     django/topics/db/models            source/document

Sources: `django`, the prose of Django's documentation (BSD-3); `stdlib`, the docstrings of Python's standard library (PSF licence; needs
nothing, but follows the version of Python); `words`, what people say and ask in the built-in tasks, without the answers: commands, wordings
of diagnoses, questions, descriptions of commands, interface texts, sections of the bank's handbook.

Nothing of a test set is in it. Of each task only the groups whose fraction (`peftjax.data.splits`, salt "peftjax") is below one half are
read: they are training groups of every run whose training share is a half or more, with that salt; texts that occur in the other half too
are left out. Answers are left out altogether. The set `general`, which forgetting is measured on, shares no source with `django` and
`stdlib` as long as its sources are the default ones.
"""

import ast
import random
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from peftjax.data.records import Record
from peftjax.data.sets import ha_intents, i18n, icd_chapter, qa, rhobank, shell
from peftjax.data.sets.answers import one_line, shuffled
from peftjax.data.sets.cached import cached
from peftjax.data.sets.chunks import LONGEST, Document, chunks, is_prose
from peftjax.data.splits import split_records
from peftjax.interop.pypi import fetch_matching

_DJANGO = "5.2.19"
_FOLDERS = ("topics", "ref", "howto", "intro", "internals", "faq")
_FILES = (
    f"pypi:django=={_DJANGO}/" + ",".join(f"django-{_DJANGO}/docs/{folder}/*.txt" for folder in _FOLDERS)
    + "#sha256=97857a68add6d04e2eb3bffae333164499ecdd77e2fcb1f5aca7d37cdf480ed3"
)
VERSION = f"{_DJANGO}-2"
_TESTS = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages"}
_HALF = {"train": 0.5, "rest": 0.5}


def build(sources: Sequence[str] = ("django", "stdlib", "words"), seed: int = 0) -> list[Record]:
    """The chunks of these sources, shuffled. Downloads the sources of the tasks, and 11 MB of Django, at the first call."""
    unknown = [source for source in sources if source not in SOURCES]
    if unknown or not sources:
        raise ValueError(f"sources {list(sources)}: choose some of {', '.join(SOURCES)}")
    options = {"sources": sorted(set(sources)), "seed": seed}
    if "stdlib" in sources:
        options["python"] = sys.version.split()[0]
    if "words" in sources:
        options["tasks"] = [module.VERSION for module, _ in TASKS.values()]

    def make() -> list[Record]:
        found: dict[str, Record] = {}
        for source in options["sources"]:
            for document in SOURCES[source]():
                pieces = document.paragraphs if source == "words" else chunks(document, None, "")
                for chunk in pieces:
                    group = f"{source}/{document.name}"
                    found.setdefault(chunk, Record(response=chunk, group=group, lang=document.lang, source=document.source))
        return shuffled(found.values(), f"prose/{seed}")

    return cached("prose", VERSION, options, make)


def _django() -> Iterator[Document]:
    for name, file in fetch_matching(_FILES).items():
        blocks = [_plain(block) for block in re.split(r"\n\s*\n", file.read_text("utf-8"))]
        document = name.partition("/docs/")[2].removesuffix(".txt")
        yield Document(document, "en", f"django=={_DJANGO}", [block for block in blocks if is_prose(block)])


def _plain(block: str) -> str:
    """A paragraph of reStructuredText without its markup: ":meth:`~a.b`" and "``a.b``" are "a.b", ":doc:`text <target>`" is "text"."""
    block = re.sub(r"(?::[\w:+-]+:)?`+~?!?([^`<]+?)(?:\s*<[^`>]*>)?`+_{0,2}", r"\1", block)
    return block.replace("::", ":")


def _stdlib() -> Iterator[Document]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for file in sorted(root.rglob("*.py")):
        within = file.relative_to(root)
        if _TESTS & set(within.parts):
            continue
        tree = ast.parse(file.read_bytes())
        paragraphs = [
            block for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            for block in re.split(r"\n\s*\n", ast.get_docstring(node) or "") if is_prose(block)
        ]
        yield Document(str(within), "en", f"Python {sys.version.split()[0]}", paragraphs)


def _words() -> Iterator[Document]:
    """Of each task a few documents of its texts, shuffled, a line each and as many as fit into a chunk."""
    for name, (module, text_of) in TASKS.items():
        records = module.build()
        halves = split_records(records, _HALF)
        held = {text_of(record) for record in halves["rest"]}
        texts = sorted({text for record in halves["train"] if (text := text_of(record)) and text not in held})
        random.Random(f"prose/{name}").shuffle(texts)
        lines: list[str] = []
        blocks: list[str] = []
        for text in texts:
            if lines and sum(map(len, lines)) + len(lines) + len(text) > LONGEST:
                blocks.append("\n".join(lines))
                lines = []
            lines.append(text)
        blocks += ["\n".join(lines)] if lines else []
        for number, block in enumerate(blocks):
            yield Document(f"{name}/{number}", "en", name, [block])


def _after(mark: str) -> Callable[[Record], str]:
    """What a prompt says behind the first `mark`, in its line."""
    return lambda record: one_line(record.prompt.partition(mark)[2].partition("\n")[0])


SOURCES: dict[str, Callable[[], Iterator[Document]]] = {"django": _django, "stdlib": _stdlib, "words": _words}
# The module of a task, and the words of a record of it; "" has none.
TASKS: dict[str, tuple] = {
    "ha_intents": (ha_intents, lambda record: record.prompt),
    "i18n": (i18n, _after(": ")),
    "icd_chapter": (icd_chapter, _after("Diagnosis: ")),
    "qa": (qa, lambda record: one_line(record.prompt.removeprefix("Trivia ").partition(": ")[2] or record.prompt)),
    "rhobank": (rhobank, lambda record: one_line(record.response) if len(record.response) >= 40 else ""),
    "shell": (shell, _after("): ")),
}
