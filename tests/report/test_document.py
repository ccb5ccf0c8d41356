"""HTML pieces: text is escaped once, numbers are short, tables say what they are sorted by."""

import html.parser

import pytest

from cddpm.report import document
from cddpm.report.document import Block, Cell, Details, Facts, Heading, Picture, Section, Table, Tiles, Words

EVIL = """<script>alert("1")</script> & 'x'"""


class Reader(html.parser.HTMLParser):
    """Tags with their attributes, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.mark.parametrize(
    "block",
    [
        Words(EVIL),
        Heading(EVIL),
        Tiles({EVIL: EVIL}),
        Table(EVIL, ["a", "b"], [[Cell("x"), Cell(EVIL)]]),
        Table("c", [EVIL, "b"], [[Cell(EVIL, strong=True), Cell("y")]], sortable=False),
        Details(EVIL, EVIL),
        Facts({EVIL: EVIL}),
        Picture(b"", EVIL),
    ],
)
def test_text_is_shown_and_never_run(block: Block) -> None:
    read = Reader(document.html([block]))
    assert any(EVIL in part for part in read.text)
    assert not any(tag == "script" for tag, _ in read.tags)


def test_a_title_is_shown_and_never_run() -> None:
    read = Reader(document.page(EVIL, [], [Section("a", EVIL, [])]))
    assert sum(EVIL in part for part in read.text) == 4  # the window, the heading, the link, the section
    assert sum(tag == "script" for tag, _ in read.tags) == 1  # the page's own: there is no chart


def test_what_cannot_be_written_is_told() -> None:
    assert "a\\x00\\xff b" in document.html([Words("a\x00\udcff b")])


def test_cells_carry_what_they_are_sorted_by() -> None:
    rows = [[Cell("0001", 1.0), document.cell(0.123456), document.cell("l1"), document.cell(None)]]
    read = Reader(document.html([Table("Title. More.", ["trial", "rate", "loss", "none"], rows)]))
    cells = [attributes for tag, attributes in read.tags if tag in ("td", "th") and attributes.get("scope") != "col"]
    assert [c.get("data-value") for c in cells] == ["1.0", "0.123456", None, None]
    assert [c.get("class") for c in cells[1:]] == ["number", None, "number"]
    assert ("div", {"class": "scroll", "tabindex": "0", "role": "region", "aria-label": "Title"}) in read.tags


def test_a_picture_is_inside() -> None:
    read = Reader(document.html([Picture(b"\x89PNG", "what")]))
    assert ("img", {"alt": "what", "src": "data:image/png;base64,iVBORw=="}) in read.tags


def test_every_section_has_a_link_to_it() -> None:
    read = Reader(document.page("t", [], [Section("one", "One", [Words("1")]), Section("two", "Two", [])]))
    links = [a["href"] for tag, a in read.tags if tag == "a"]
    assert links == [f"#{a['id']}" for tag, a in read.tags if tag == "section"] == ["#one", "#two"]


def test_names_are_as_short_as_they_can_be() -> None:
    paths = ["scoring.residual", "training.batch_size", "pretraining.batch_size"]
    assert list(document.short_names(paths).values()) == ["residual", "training.batch_size", "pretraining.batch_size"]


def test_settings_in_words() -> None:
    settings = {"scoring.noise_levels": None, "scoring.erosion_divisor": None, "scoring.guidance_scale": 1.23456}
    assert document.described(settings) == "noise_levels all, erosion_divisor none, guidance_scale 1.23"
    assert document.described({}) == "as configured"
