"""A fictional bank, Rho-Bank: no base model can know its facts.

    fact_closed  "Rho-Bank checking accounts, Light Blue Account. Debit card daily purchase limit:"                    -> "$2,500"
    fact_open    "<the section that says it>\\nQuestion: What is the debit card daily purchase limit?\\nAnswer:"         -> "$2,500"
    section      "Rho-Bank checking accounts, Light Blue Account: Using your card abroad — Fees"                       -> the section's text
    group        checking_accounts/light_blue_account            department/product

From the knowledge base of tau2-bench's banking domain (Sierra Research, MIT) in the package inspect-evals: 698 short documents in Markdown.
Sections are bodies of 40 to 700 characters below a heading; those for the bank's staff are left out. Facts are
"- Key: value" lines and sentences "The key is value" whose value is an amount, a rate, a count or a length of time; a key with two values
in one product is left out. Every closed-book fact comes in three phrasings, each fact of a section once with its text. One adapter a
department or a product gives tenants that must not know each other's facts.
"""

import collections
import gzip
import json
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from peftjax.data.records import Record
from peftjax.data.sets.answers import one_line, shuffled, single_answers
from peftjax.data.sets.cached import cached
from peftjax.interop.pypi import fetch

_PACKAGE = "0.26.0"
VERSION = f"{_PACKAGE}-1"
_FILE = (
    f"pypi:inspect-evals=={_PACKAGE}/inspect_evals/tau2/data/domains/banking_knowledge/documents.json.gz"
    "#sha256=1f973db8dc22db49c0ad06533a6e33458a27291925f107d48a95bd6fb7a30f00"
)
KINDS = ("section", "fact_closed", "fact_open")
DEPARTMENTS = (
    "bank_accounts", "business_checking_accounts", "business_credit_cards", "business_savings_accounts", "buy_now_pay_later",
    "checking_accounts", "credit_cards", "customer_support", "everyone_pay", "personal_subscriptions", "savings_accounts",
)
_SECTION_LENGTHS = range(40, 701)
# Instructions to the staff say so in the title or name a tool; some values were never filled in.
_STAFF = re.compile(r"\bInternal\b.*\n|\b[a-z]+(?:_[a-z]+)+_\d{4}\b|\[value not available\]")
_PHRASINGS = (
    "Rho-Bank {department}, {product}. {key}:",
    "What is the {lower} of Rho-Bank's {product} ({department})?",
    "Question about Rho-Bank {department}: for {product}, {lower}?\nAnswer:",
)
_LINE = re.compile(r"\s*[-*] +\**([A-Z][\w ,()'’/&-]{3,70}?)\**:\**\s+(.+)")
_SENTENCE = re.compile(r"(?:^|\s)[Tt]he ([a-z][\w ()/-]{5,60}?) (?:is|are) (.+)")
_OF = re.compile(r"\ban? ([a-z][\w -]{5,50}?(?:fee|limit|rate|balance|requirement|bonus|discount|period|cap|charge|APY|APR)) of (.+)")
_NUMBER = r"(?:\d{4}-\d\d-\d\d|[-+]?\$?\d[\d,]*(?:\.\d+)?%?)"
_UNIT = (
    r"(?:business |calendar )?(?:minutes?|hours?|days?|months?|years?|dollars|points?)|day\(s\)|percent|percentage points|APY|APR|boost|"
    r"bonus|(?:per|each|a) \w+|daily|monthly|cashback|early|before payday|(?:for each|per) (?:qualifying|successful) referral|"
    r"referral bonuses"
)
_VALUE = re.compile(
    rf"(?:(?:up to|within|at least) )?{_NUMBER}(?:(?:-| to | through | or ){_NUMBER})?(?:[ -](?:{_UNIT})){{0,3}}", re.IGNORECASE
)
# Keys of one word and keys like these name nothing: "You earn", "Example", "There is no fee", "Gold Rewards Card".
_CLAUSE = re.compile(
    r"(you|your|they|their|it|if|when|for|with|without|no|not|example|examples|confirm|know|more|less|receive|get|spend|withdraw|keep|"
    r"after|before|month|day|year|step|tier|link|review|check|there|rho|business [a-z]+ rewards)\b|.*\b(card|ecocard|saver|vault)$|"
    r".*\b(is|are|incurs)\b|[^ ]+$",
    re.IGNORECASE,
)


class Section(NamedTuple):
    """A heading and its text in a document about one product."""

    department: str
    product: str
    title: str
    heading: str
    body: str


class Fact(NamedTuple):
    """One value of a product and the section that says it."""

    section: Section
    key: str
    value: str


def build(kinds: Sequence[str] = KINDS, seed: int = 0) -> list[Record]:
    """The records of these kinds, shuffled. Downloads 21 MB at the first call and keeps the 0.25 MB that it needs."""
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise ValueError(f"kinds {list(kinds)}: choose some of {', '.join(KINDS)}")
    chosen = [kind for kind in KINDS if kind in kinds]

    def make() -> list[Record]:
        sections = [section for section in _sections() if not _STAFF.search(f"{section.title}\n{section.body}")]
        makers = {"section": _section_records, "fact_closed": _closed_records, "fact_open": _open_records}
        return shuffled(single_answers(record for kind in chosen for record in makers[kind](sections)), f"rhobank/{seed}")

    return cached("rhobank", VERSION, {"kinds": chosen, "seed": seed}, make)


def _sections() -> Iterator[Section]:
    documents = json.loads(gzip.decompress(fetch(_FILE).read_bytes()))
    for document in sorted(documents, key=lambda document: document["id"]):
        name = re.fullmatch(r"doc_(.+)_\d+", document["id"])[1]
        department = next(department for department in DEPARTMENTS if name.startswith(f"{department}_"))
        product = name.removeprefix(f"{department}_")
        parts = re.split(r"^#{1,4}\s+(.+)$", document["content"], flags=re.MULTILINE)
        for heading, body in zip(parts[1::2], parts[2::2], strict=True):
            yield Section(department, product, document["title"], one_line(heading).strip("*"), body.strip())


def facts(sections: Sequence[Section]) -> list[Fact]:
    """Each key of each product that has one value, with the first section of fitting length that gives it."""
    found: dict[tuple[str, str, str], list[Fact]] = collections.defaultdict(list)
    for section in sections:
        for line in section.body.splitlines():
            for match in (_LINE.match(line), _SENTENCE.search(line), _OF.search(line)):
                if match and (value := _value(match[2])) and not _CLAUSE.match(match[1]):
                    key = match[1][0].upper() + match[1][1:].strip()
                    found[section.department, section.product, key.casefold()].append(Fact(section, key, value))
                    break
    return [same[0] for _, same in sorted(found.items()) if len({fact.value for fact in same}) == 1]


def _value(text: str) -> str | None:
    """The amount, rate, count or time that `text` consists of up to a stop; None where it is something else."""
    plain = re.split(r"[.;,]?\s*$|[.;,]\s| and (?:a|the) ", text.replace("*", "").replace("`", "").strip(), maxsplit=1)[0]
    plain = re.sub(r"(?<=^\$)(.*) dollars\b|(?<=%) percent(?:age points)?\b", lambda match: match[1] or "", plain)
    return plain if _VALUE.fullmatch(plain) else None


def _section_records(sections: Sequence[Section]) -> Iterator[Record]:
    for section in sections:
        if len(section.body) in _SECTION_LENGTHS:
            product = _name(section.product)
            title = section.title if product.casefold() in section.title.casefold() else f"{product}: {section.title}"
            yield _record(section, "section", f"Rho-Bank {_name(section.department)}, {title} — {section.heading}", section.body)


def _closed_records(sections: Sequence[Section]) -> Iterator[Record]:
    for fact in facts(sections):
        product, department = _name(fact.section.product), _name(fact.section.department)
        for phrasing in _PHRASINGS:
            prompt = phrasing.format(department=department, product=product, key=fact.key, lower=_lower(fact.key))
            yield _record(fact.section, "fact_closed", prompt, fact.value)


def _open_records(sections: Sequence[Section]) -> Iterator[Record]:
    for fact in facts(sections):
        if len(fact.section.body) in _SECTION_LENGTHS:
            question = f"{fact.section.body}\nQuestion: What is the {_lower(fact.key)}?\nAnswer:"
            yield _record(fact.section, "fact_open", question, fact.value)


def _record(section: Section, kind: str, prompt: str, response: str) -> Record:
    group = f"{section.department}/{section.product}"
    return Record(prompt=prompt, response=response, group=group, lang="en", source=f"inspect-evals=={_PACKAGE} {kind}")


def _name(part: str) -> str:
    """light_blue_account -> Light Blue Account; departments stay in small letters."""
    words = part.replace("_", " ")
    return words if part in DEPARTMENTS else re.sub(r"(?<![\w'])[a-z]", lambda first: first[0].upper(), words)


def _lower(key: str) -> str:
    """The key inside a sentence: its first letter small, unless the word is an abbreviation."""
    return key if key[1:2].isupper() else key[0].lower() + key[1:]
