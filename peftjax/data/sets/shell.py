"""Shell commands: a tool and what it should do -> the command.

    prompt    "Shell command (tar): extract an uncompressed archive"
    response  "tar -xvf /path/to/foo.tar"
    group     tar/6b3bd9a2            tool/command

Sources: the sheets of cheat (MIT or GPL-3), a comment followed by one command, and the examples of eg (MIT), a paragraph followed by an
indented command; both keep whole commands that name their tool. `fig` (MIT, from npm) adds which subcommand or option does a thing, for the
tools that the two have sheets of.
"""

import collections
import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from peftjax.data.records import Record
from peftjax.data.sets import fig
from peftjax.data.sets.answers import digest, one_line, shuffled, single_answers
from peftjax.data.sets.cached import cached
from peftjax.interop.pypi import fetch_matching

VERSION = "1"
_CHEAT = "cheat==2.5.1"
_EG = "eg==1.2.3"
_CHEAT_FILES = f"pypi:{_CHEAT}/cheat-2.5.1/cheat/cheatsheets/*#sha256=a589f279cade26fe286877f9855f48d5ce09a674cd52b6ba202461ae4290227f"
_EG_FILES = f"pypi:{_EG}/eg-1.2.3/eg/examples/*.md#sha256=a617fa62eedd4590216f5d77e5cc32575b1814a7cef90af8893ca7d6dff9b507"
_DESCRIPTION_LENGTHS, _COMMAND_LENGTHS = range(8, 201), range(2, 161)


def build(sources: Sequence[str] = ("cheat", "eg"), cap: int = 120, seed: int = 0) -> list[Record]:
    """The records of these sources, shuffled; at most `cap` a tool. `fig` needs npm at the first call."""
    unknown = [source for source in sources if source not in SOURCES]
    if unknown or not sources:
        raise ValueError(f"sources {list(sources)}: choose some of {', '.join(SOURCES)}")
    chosen = [source for source in SOURCES if source in sources]

    def make() -> list[Record]:
        by_tool = collections.defaultdict(list)
        for record in single_answers(record for source in chosen for record in SOURCES[source]()):
            by_tool[record.group.split("/")[0]].append(record)
        kept = []
        for tool, records in sorted(by_tool.items()):
            kept += random.Random(f"shell/{seed}/{tool}").sample(records, min(cap, len(records)))
        return shuffled(kept, f"shell/{seed}")

    return cached("shell", VERSION, {"sources": chosen, "cap": cap, "seed": seed}, make)


def _cheat() -> Iterator[Record]:
    for tool, path in _sheets(_CHEAT_FILES):
        description, commands = [], []
        for line in (*path.read_text(encoding="utf-8").splitlines(), ""):
            if line.strip() and not line.startswith("#"):
                commands.append(line.strip())
                continue
            if len(commands) == 1:
                yield from _records(tool, " ".join(description), commands[0], _CHEAT)
            description = [line.lstrip("#").strip()] if not line.strip() or commands else [*description, line.lstrip("#").strip()]
            commands = []


def _eg() -> Iterator[Record]:
    for tool, path in _sheets(_EG_FILES):
        blocks = [block for block in re.split(r"\n\s*\n", path.read_text(encoding="utf-8")) if block.strip()]
        for paragraph, block in zip(blocks, blocks[1:], strict=False):
            if block.startswith("    ") and not paragraph.startswith(("    ", "#")):
                lines = [line.strip() for line in block.splitlines()]
                typed = [line for line in lines if line.startswith("$ ")] or lines
                if len(typed) == 1:
                    yield from _records(tool, paragraph, typed[0], _EG)


def _fig() -> Iterator[Record]:
    known = {tool for uri in (_CHEAT_FILES, _EG_FILES) for tool, _ in _sheets(uri)}
    for tool, command, description in fig.commands():
        if tool in known and not re.search(r"help|version", f"{command.split()[-1]} {description}", re.IGNORECASE):
            yield from _records(tool, description, command, fig.SOURCE)


def _sheets(uri: str) -> list[tuple[str, Path]]:
    """(tool, file) by name; a tool's name is that of its sheet."""
    files = sorted((path.name.removesuffix(".md"), path) for path in fetch_matching(uri).values())
    return [(tool, path) for tool, path in files if not tool.startswith("_")]


def _records(tool: str, description: str, command: str, source: str) -> Iterator[Record]:
    """The record, if both texts have fitting lengths and the command names its tool."""
    description = re.sub(r"^to ", "", one_line(description), flags=re.IGNORECASE).rstrip(" .:;")
    command = one_line(re.sub(r"\s#\s.*$", "", command)).removeprefix("$ ")
    named = re.search(rf"(?<![\w-]){re.escape(tool)}(?!\w)", command)
    if named and len(description) in _DESCRIPTION_LENGTHS and len(command) in _COMMAND_LENGTHS:
        prompt = f"Shell command ({tool}): {description}"
        yield Record(prompt=prompt, response=command, group=f"{tool}/{digest(command)}", lang="en", source=source)


SOURCES: dict[str, Callable[[], Iterator[Record]]] = {"cheat": _cheat, "eg": _eg, "fig": _fig}
