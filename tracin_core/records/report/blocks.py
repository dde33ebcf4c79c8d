"""What a report is made of, in its order; plain text, which only `rendering` turns into HTML or Markdown."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    words: str


@dataclass(frozen=True)
class Table:
    """Rows of texts under a caption; `numbers` are the columns that are set flush right."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Chart:
    """A figure, its caption, and what it shows in words."""

    caption: str
    words: str
    figure: Any


@dataclass(frozen=True)
class Picture:
    """An image as a data URL (None: there is none), what it is, and a text that belongs to it."""

    source: str | None
    caption: str
    text: str = ""


@dataclass(frozen=True)
class Pictures:
    """Pictures side by side."""

    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Case:
    """A heading below a section's."""

    title: str


@dataclass(frozen=True)
class Code:
    """A text to be read as it stands, behind a summary."""

    summary: str
    text: str


Block = Text | Table | Chart | Pictures | Case | Code


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it; `key` names it in links."""

    key: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """A whole report."""

    language: str
    title: str
    lead: str
    simulated: str  # the mark on title and figures; empty where nothing is simulated
    contents: str  # what the list of sections is called
    sections: tuple[Section, ...]
    footer: tuple[str, ...]
    warning: str = ""  # what a reader must know before any number
