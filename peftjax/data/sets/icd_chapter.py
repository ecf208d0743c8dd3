"""ICD-10-CM chapters: the wording of a diagnosis -> one of 22 chapters.

    prompt    "Classify the diagnosis into an ICD-10-CM chapter.\\nDiagnosis: Classical cholera\\nChapter:"
    response  "infectious"
    group     infectious/A00          chapter/three-character category

Titles and inclusion terms of the tabular list (CDC/NCHS, a US-government work) in the package simple-icd-10-cm (MIT). Terms that occur in
two chapters are left out; of each chapter at most `cap` are drawn. "special purpose" has about a dozen terms only.
"""

import collections
import random
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator

from peftjax.data.records import Record
from peftjax.data.sets.cached import cached
from peftjax.interop.pypi import fetch

_PACKAGE = "1.5.0"
VERSION = f"{_PACKAGE}-1"
_FILE = (
    f"pypi:simple-icd-10-cm=={_PACKAGE}/simple_icd_10_cm/data/icd10c-tabular-April-1-2026.xml"
    "#sha256=f161f8182aff3ce3a2a78e202f8259c08eaee2c670a9e45b0072445c52302935"
)
LABELS = (
    "infectious", "neoplasm", "blood", "endocrine", "mental", "nervous", "eye", "ear", "circulatory", "respiratory", "digestive", "skin",
    "musculoskeletal", "genitourinary", "pregnancy", "perinatal", "congenital", "symptom", "injury", "external cause", "health status",
    "special purpose",
)
_LENGTHS = range(6, 111)


def build(cap: int = 700, seed: int = 0) -> list[Record]:
    """The records, shuffled; at most `cap` a chapter. Downloads 1.1 MB at the first call."""

    def make() -> list[Record]:
        places: dict[str, dict[str, str]] = collections.defaultdict(dict)
        for label, code, term in terms():
            places[term].setdefault(label, code[:3])
        by_label: dict[str, list[tuple[str, str]]] = {label: [] for label in LABELS}
        for term, found in sorted(places.items()):
            if len(found) == 1:
                (label, category), = found.items()
                by_label[label].append((term, category))
        records = []
        for label, found in by_label.items():
            drawn = random.Random(f"icd_chapter/{seed}/{label}").sample(found, min(cap, len(found)))
            records += [_record(label, category, term) for term, category in drawn]
        random.Random(f"icd_chapter/{seed}").shuffle(records)
        return records

    return cached("icd_chapter", VERSION, {"cap": cap, "seed": seed}, make)


def terms() -> Iterator[tuple[str, str, str]]:
    """(label, code, term) of every title and inclusion term of fitting length; the code's first three characters are the category."""
    chapters = ElementTree.parse(fetch(_FILE)).getroot().findall("chapter")
    for chapter in chapters:
        label = LABELS[int(chapter.findtext("name")) - 1]
        for diagnosis in chapter.iter("diag"):
            for element in (diagnosis.find("desc"), *diagnosis.findall("inclusionTerm/note")):
                term = re.sub(r"\s+", " ", element.text or "").strip()
                if len(term) in _LENGTHS:
                    yield label, diagnosis.findtext("name"), term


def _record(label: str, category: str, term: str) -> Record:
    return Record(
        prompt=f"Classify the diagnosis into an ICD-10-CM chapter.\nDiagnosis: {term}\nChapter:",
        response=label, group=f"{label}/{category}", lang="en", source=f"simple-icd-10-cm=={_PACKAGE}",
    )
