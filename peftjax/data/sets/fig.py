"""The declarative parts of Fig's completion specs (npm @withfig/autocomplete, MIT): what a subcommand or option of a tool does.

    {name:"git",subcommands:[{name:"commit",options:[{name:["-a","--all"],description:"Stage all modified and deleted paths"}]}]}
    ->  ("git commit --all", "Stage all modified and deleted paths")

The specs are minified JavaScript programs. They are read as text, never run: every object literal with a name and a description inside
`subcommands` or `options` gives a command, the names of the objects around it before its own. What a spec computes is not seen.
"""

import re
from collections.abc import Iterator

from peftjax.data.sets.npm import fetch_archive, read_texts

_NAME, _VERSION = "@withfig/autocomplete", "2.692.3"
_SHA256 = "b07159ef0811bc8cec28e3a3016e6ba9568d774b75b8333dc6a5f2acf7d2c3af"
SOURCE = f"{_NAME}=={_VERSION}"
_TOKEN = re.compile(r""""(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|`(?:\\.|[^`\\])*`|[\w$]+|\S""")
_CLOSING = {"{": "}", "[": "]", "(": ")"}


class _Bracket:
    """An open bracket: the key it is the value of, the key last read in it, and the object's name and description so far."""

    def __init__(self, opening: str, place: str):
        self.opening, self.place = opening, place
        self.key = ""
        self.names: list[str] = []
        self.description = ""


def commands() -> Iterator[tuple[str, str, str]]:
    """(tool, command, description) of every subcommand and option, tool by tool; needs npm at the first call."""
    for tool, text in read_texts(fetch_archive(_NAME, _VERSION, _SHA256), "build", ".js").items():
        for place, path, description in described(text):
            if place in ("subcommands", "options") and len(path) > 1 and path[0] == tool:
                yield tool, " ".join(path), description


def described(text: str) -> Iterator[tuple[str, list[str], str]]:
    """(key it stands under, names from the outermost object to its own, description) of each object literal that has both.

    Of several names the longest is taken. Ends early where brackets do not match, as in a program with a bracket in a regular expression.
    """
    tokens = _TOKEN.findall(text)
    open_brackets: list[_Bracket] = []
    for before, token, after in zip(["", *tokens], tokens, [*tokens[1:], ""], strict=False):
        inner = open_brackets[-1] if open_brackets else None
        quoted = token[0] in "\"'`" and "\\" not in token and "${" not in token
        if token in _CLOSING:
            # An array's objects stand under the array's key.
            open_brackets.append(_Bracket(token, "" if inner is None else inner.key if inner.opening == "{" else inner.place))
        elif token in _CLOSING.values():
            if inner is None or _CLOSING[inner.opening] != token:
                return
            open_brackets.pop()
            if token == "]" and inner.place == "name" and open_brackets and open_brackets[-1].opening == "{":
                open_brackets[-1].names = inner.names
            elif token == "}" and inner.names and inner.description:
                around = [bracket for bracket in (*open_brackets, inner) if bracket.opening == "{" and bracket.names]
                yield inner.place, [max(bracket.names, key=len) for bracket in around], inner.description
        elif inner is None:
            continue
        elif inner.opening == "{" and after == ":" and before in ("{", ","):
            inner.key = token.strip("\"'")
        elif inner.opening == "{" and quoted and before == ":" and after in (",", "}"):
            if inner.key == "name":
                inner.names = [token[1:-1]]
            elif inner.key == "description":
                inner.description = token[1:-1]
        elif inner.opening == "[" and quoted:
            inner.names.append(token[1:-1])
