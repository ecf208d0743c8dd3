"""A document as blocks, and its two forms: Markdown beside its pictures, and one HTML page with the pictures in it.

    document = [Heading("Study"), Text("Two methods ..."), Table(("", "loss"), [("LoRA", "0.31")]), Picture("pareto", "Quality", png)]
    markdown(document)  -> text that names figures/pareto.png          page(document, "Study") -> a whole HTML document
"""

import base64
import dataclasses
import html
import re
from collections.abc import Sequence
from typing import Any

from peftjax.train.report import table

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.25rem; margin-top: 2.4rem; border-bottom: 1px solid #ddd; padding-bottom: .2rem; }
div.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .88rem; margin: .8rem 0; }
th, td { padding: .28rem .7rem; border-bottom: 1px solid #e5e5e5; text-align: left; vertical-align: top; }
th { border-bottom: 2px solid #999; } td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
img { max-width: 100%; height: auto; } figure { margin: 1rem 0; } figcaption { color: #555; font-size: .88rem; }
code, pre { background: #f4f4f4; border-radius: 3px; padding: .1rem .3rem; font-size: .88rem; }
"""


@dataclasses.dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the document's own."""

    text: str
    level: int = 2


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph; `**bold**` pieces may stand in it."""

    text: str


@dataclasses.dataclass(frozen=True)
class Items:
    """A list of paragraphs."""

    texts: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Code:
    """Verbatim text."""

    text: str


@dataclasses.dataclass(frozen=True)
class Table:
    """A table; columns that are all numbers go to the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclasses.dataclass(frozen=True)
class Picture:
    """A PNG with a caption; `name` is its file's, without the ending."""

    name: str
    caption: str
    content: bytes


Block = Heading | Text | Items | Code | Table | Picture


def markdown(document: Sequence[Block], figures: str = "figures") -> str:
    """The document as Markdown, pictures by the names of their files in the folder `figures`."""
    return "\n\n".join(_markdown(block, figures) for block in document) + "\n"


def _markdown(block: Block, figures: str) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {text}"
        case Items(texts):
            return "\n".join(f"- {text}" for text in texts)
        case Code(text):
            return f"```\n{text}\n```"
        case Table(header, rows):
            return table(header, rows)
        case Picture(name, caption, _):
            return f"![{caption}]({figures}/{name}.png)\n\n{caption}"
        case Text(text):
            return text


def page(document: Sequence[Block], title: str) -> str:
    """The document as one HTML page that needs no other file."""
    body = "\n".join(_html(block) for block in document)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
    return f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n'


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{_inline(text)}</h{level}>"
        case Items(texts):
            return "<ul>" + "".join(f"<li>{_inline(text)}</li>" for text in texts) + "</ul>"
        case Code(text):
            return f"<pre>{html.escape(text)}</pre>"
        case Table(header, rows):
            right = [all(str(row[n])[:1] in "-+−0123456789" for row in rows if str(row[n])) and n > 0 for n in range(len(header))]
            lines = [_row("th", header, right), *(_row("td", row, right) for row in rows)]
            return '<div class="wide"><table>' + "".join(lines) + "</table></div>"
        case Picture(_, caption, content):
            data = base64.b64encode(content).decode()
            words = html.escape(caption)
            return f'<figure><img alt="{words}" src="data:image/png;base64,{data}"><figcaption>{words}</figcaption></figure>'
        case Text(text):
            return f"<p>{_inline(text)}</p>"


def _row(cell: str, values: Sequence[Any], right: Sequence[bool]) -> str:
    cells = (f"<{cell}{' class=number' if r else ''}>{_inline(str(value))}</{cell}>" for value, r in zip(values, right, strict=True))
    return "<tr>" + "".join(cells) + "</tr>"


def _inline(text: str) -> str:
    """Escaped, with **bold** and `code` pieces."""
    text = re.sub(r"\*\*(\S(?:.*?\S)?)\*\*", r"<b>\1</b>", html.escape(text))
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
