"""A report as blocks, written as markdown or as one self-contained HTML file."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from benchmarks.report import markdown_table

_STYLE = """
:root { color-scheme: light dark; --edge: #8886; --soft: #8882; }
body { margin: 0 auto; max-width: 60rem; padding: 1rem 1.25rem 4rem;
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .875rem; }
th, td { border-bottom: 1px solid var(--edge); padding: .25rem .6rem; text-align: right;
  vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
tbody tr:hover { background: var(--soft); }
img { max-width: 100%; height: auto; background: #fff; } code { background: var(--soft); }
figure { margin: 1rem 0; } li { margin: .4rem 0; }
"""


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading of level 1 or 2."""

    text: str
    level: int = 2


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Text; `**strong**` and `` `code` `` are the only markup in it."""

    text: str


@dataclass(frozen=True, slots=True)
class Items:
    """A list of paragraphs."""

    items: Sequence[str]


@dataclass(frozen=True, slots=True)
class Table:
    """Cells of text; the first column is left-aligned."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG beside the page, and what it shows in words."""

    path: Path
    text: str


Block = Heading | Paragraph | Items | Table | Picture


def markdown(blocks: Sequence[Block]) -> str:
    """Return the report as markdown; pictures are named, not embedded."""
    return "\n\n".join(_markdown(block).rstrip("\n") for block in blocks) + "\n"


def html(blocks: Sequence[Block], title: str) -> str:
    """Return the report as one HTML file that loads nothing."""
    body = "\n".join(_html(block) for block in blocks)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"{body}\n</main>\n</body>\n</html>\n"
    )


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {text}"
        case Paragraph(text):
            return text
        case Items(items):
            return "\n".join(f"- {item}" for item in items)
        case Table(columns, rows):
            return markdown_table(columns, [[_cell(c) for c in row] for row in rows])
        case Picture(path, text):
            return f"![{text}]({path.name})"


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{_inline(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{_inline(text)}</p>"
        case Items(items):
            return "<ul>" + "".join(f"<li>{_inline(item)}</li>" for item in items) + "</ul>"
        case Table(columns, rows):
            head = "".join(f'<th scope="col">{_inline(c)}</th>' for c in columns)
            body = "".join(
                "<tr>" + "".join(f"<td>{_inline(c)}</td>" for c in row) + "</tr>" for row in rows
            )
            return (
                f'<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead>'
                f"<tbody>{body}</tbody></table></div>"
            )
        case Picture(path, text):
            data = base64.b64encode(path.read_bytes()).decode()
            return f'<figure><img alt="{escape(text)}" src="data:image/png;base64,{data}"></figure>'


def _inline(text: str) -> str:
    text = re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))
    return re.sub(r"\*\*([^*]*)\*\*", r"<strong>\1</strong>", text)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
