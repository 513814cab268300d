"""One self-contained HTML page: sections of text, figures and tables; no network, no scripts."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import pandas as pd


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Stat:
    """One number that matters, and what it is."""

    value: str
    name: str


@dataclass(frozen=True)
class Stats:
    """Numbers in a row."""

    stats: tuple[Stat, ...]


@dataclass(frozen=True)
class Figure:
    """A PNG picture with what it shows."""

    png: bytes
    caption: str


@dataclass(frozen=True)
class Drawing:
    """Inline SVG that this package made."""

    svg: str
    caption: str


@dataclass(frozen=True)
class Legend:
    """Names with their colours, RGB 0-255."""

    entries: tuple[tuple[str, tuple[int, int, int]], ...]


@dataclass(frozen=True, eq=False)
class Table:
    """A table with what it holds."""

    frame: pd.DataFrame
    caption: str


Block = Text | Stats | Figure | Drawing | Legend | Table


@dataclass(frozen=True)
class Section:
    """A titled part of the page."""

    title: str
    blocks: tuple[Block, ...]

    @property
    def anchor(self) -> str:
        """Name of the section in links."""
        return "".join(c if c.isalnum() else "-" for c in self.title.lower())


def render(title: str, sections: Sequence[Section]) -> str:
    """Return the page; every text is escaped."""
    style = resources.files("ct3dlib.report").joinpath("page.css").read_text()
    links = "".join(f'<a href="#{s.anchor}">{html.escape(s.title)}</a>' for s in sections)
    parts = "".join(_section(section) for section in sections)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{style}</style></head><body>"
        f"<header><h1>{html.escape(title)}</h1><nav>{links}</nav></header>"
        f"<main>{parts}</main></body></html>\n"
    )


def _section(section: Section) -> str:
    blocks = "".join(_block(block) for block in section.blocks)
    return f'<section id="{section.anchor}"><h2>{html.escape(section.title)}</h2>{blocks}</section>'


def _block(block: Block) -> str:
    match block:
        case Text(text):
            return f"<p>{html.escape(text)}</p>"
        case Stats(stats):
            cells = (
                f"<div><b>{html.escape(s.value)}</b><span>{html.escape(s.name)}</span></div>"
                for s in stats
            )
            return f'<div class="stats">{"".join(cells)}</div>'
        case Figure(png, caption):
            data = base64.b64encode(png).decode()
            text = html.escape(caption)
            image = f'<img alt="{text}" src="data:image/png;base64,{data}">'
            return f"<figure>{image}<figcaption>{text}</figcaption></figure>"
        case Drawing(svg, caption):
            return f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>"
        case Legend(entries):
            items = (
                f'<li><i style="background:rgb{color}"></i>{html.escape(name)}</li>'
                for name, color in entries
            )
            return f'<ul class="legend">{"".join(items)}</ul>'
        case Table():
            body = block.frame.to_html(index=False, escape=True, border=0, na_rep="")
            caption = html.escape(block.caption)
            return f'<div class="table"><p class="caption">{caption}</p>{body}</div>'
