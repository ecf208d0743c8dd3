"""Documents cut into chunks of 300 to 900 characters: neighbouring paragraphs joined, longer ones cut at the ends of sentences."""

import random
import re
from typing import NamedTuple

SHORTEST, LONGEST = 300, 900


class Document(NamedTuple):
    """A text by paragraphs; the unit that is never divided between splits."""

    name: str
    lang: str
    source: str
    paragraphs: list[str]


def chunks(document: Document, most: int | None, key: str) -> list[str]:
    """The chunks of a document, in its order; at most `most` of them, drawn by `key`, the set's name and seed. None is all."""
    pieces = [piece for paragraph in document.paragraphs for piece in _sentences(re.sub(r"\s+", " ", paragraph).strip())]
    found, current = [], ""
    for piece in pieces:
        if current and len(current) + 1 + len(piece) > LONGEST:
            found.append(current)
            current = ""
        current = f"{current} {piece}".strip()
        if len(current) >= LONGEST * 2 // 3:
            found.append(current)
            current = ""
    found.append(current)
    found = [chunk for chunk in found if SHORTEST <= len(chunk) <= LONGEST]
    if most is None:
        return found
    drawn = random.Random(f"{key}/{document.source}/{document.name}")
    return [found[index] for index in sorted(drawn.sample(range(len(found)), min(most, len(found))))]


def is_prose(block: str) -> bool:
    """Whether a block of a technical text is a paragraph of sentences: no code, grammar, table or heading."""
    if len(block) < 60 or block[0].isspace() or not re.search(r"[.:;!?)]$", block.rstrip()):
        return False
    if re.search(r"^[*=+|-]{3}|::=|^>>>|^\.\.|[+|]\s*$", block, flags=re.MULTILINE):
        return False
    return sum(character.isalpha() or character == " " for character in block) / len(block) > 0.82


def _sentences(paragraph: str) -> list[str]:
    if len(paragraph) <= LONGEST // 2:
        return [paragraph] if paragraph else []
    return [sentence for sentence in re.split(r"(?<=[.!?;])\s+|(?<=。)", paragraph) if sentence]
