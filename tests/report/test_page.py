import base64
from html.parser import HTMLParser

import numpy as np
import pandas as pd

from ct3dlib.report.graph import pipeline
from ct3dlib.report.page import (
    Drawing,
    Figure,
    Legend,
    Section,
    Stat,
    Stats,
    Table,
    Text,
    render,
)
from ct3dlib.report.pictures import png

VOID = {"meta", "img", "br", "path", "rect"}
EVIL = '<script>alert("x")</script> & co'


class Page(HTMLParser):
    """Collects tags and checks that they nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page() -> tuple[str, Page]:
    frame = pd.DataFrame({"volume": [EVIL, "b"], "PSNR": [31.5, np.nan]})
    picture = png(np.zeros((2, 3, 3), np.uint8))
    blocks = (
        Text(EVIL),
        Stats((Stat("1 < 2", EVIL),)),
        Figure(picture, EVIL),
        Drawing(pipeline([("raw", EVIL), ("tokens", "12")]), EVIL),
        Legend(((EVIL, (1, 2, 3)),)),
        Table(frame, EVIL),
    )
    text = render(EVIL, [Section("Inputs & more", blocks), Section("Empty", ())])
    return text, Page(text)


def test_tags_nest_and_close():
    assert page()[1].open == []


def test_every_text_is_escaped():
    text, parsed = page()
    assert "<script" not in text
    assert sum(EVIL in words for words in parsed.words) >= 8


def test_page_needs_no_network():
    text, parsed = page()
    sources = [tag.get("src") or tag.get("href") or "" for _, tag in parsed.tags]
    assert all(s.startswith(("data:", "#", "")) and "//" not in s[:12] for s in sources)
    assert "url(" not in text
    assert "@import" not in text
    assert not parsed.all("link")


def test_links_lead_to_sections():
    parsed = page()[1]
    targets = [f"#{s['id']}" for s in parsed.all("section")]
    assert [a["href"] for a in parsed.all("a")] == targets == ["#inputs---more", "#empty"]


def test_figure_carries_its_picture_and_a_text_for_the_blind():
    (image,) = page()[1].all("img")
    data = base64.b64decode((image["src"] or "").removeprefix("data:image/png;base64,"))
    assert data == png(np.zeros((2, 3, 3), np.uint8))
    assert image["alt"] == EVIL


def test_table_leaves_missing_values_blank():
    text, parsed = page()
    assert "31.5" in parsed.words
    assert "nan" not in text.lower().split("</style>")[1]


def test_legend_shows_its_colour():
    assert {"style": "background:rgb(1, 2, 3)"} in page()[1].all("i")


def test_same_content_gives_the_same_page():
    assert page()[0] == page()[0]
