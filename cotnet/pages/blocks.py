"""What a report page is made of: plain values, so that a test can compare them with the files they come from."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

Cell = str | int | float | None
REFRESH: Final = 30


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A headline figure, already formatted."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """Headline figures side by side."""

    kind: ClassVar[str] = "tiles"
    tiles: Sequence[Tile]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A Vega-Lite specification. `alt` says in a sentence what the chart shows, for a screen reader."""

    kind: ClassVar[str] = "chart"
    title: str
    spec: dict[str, Any]
    alt: str
    wide: bool = False


@dataclass(frozen=True, kw_only=True)
class Column:
    """`form`: Python's format of the numbers in it; empty for text."""

    heading: str
    form: str = ""

    def text(self, cell: Cell) -> str:
        """A cell as it is shown."""
        if cell is None:
            return "–"
        return format(cell, self.form) if self.form and not isinstance(cell, str) else str(cell)


def texts(*headings: str) -> list[Column]:
    """Columns of text."""
    return [Column(heading=heading) for heading in headings]


def numbers(form: str, *headings: str) -> list[Column]:
    """Columns of numbers in one format."""
    return [Column(heading=heading, form=form) for heading in headings]


@dataclass(frozen=True, kw_only=True)
class DataTable:
    """A table that sorts and filters. `links`: a relative address for the first cell of each row, "" for none."""

    kind: ClassVar[str] = "table"
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    links: Sequence[str] = ()
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """`source`: a data URI; empty if the image cannot be shown. `lines`: the caption."""

    source: str
    alt: str
    lines: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Small pictures with captions; `wide` ones are shown larger."""

    kind: ClassVar[str] = "gallery"
    title: str
    pictures: Sequence[Picture]
    note: str = ""
    wide: bool = False


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command to copy."""

    kind: ClassVar[str] = "command"
    title: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Remarks:
    """Lines to read: warnings, notes."""

    kind: ClassVar[str] = "remarks"
    title: str
    lines: Sequence[str]


Block = Tiles | Chart | DataTable | Gallery | Command | Remarks


@dataclass(frozen=True, kw_only=True)
class PageSection:
    """Blocks under a heading."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True, kw_only=True)
class Page:
    """A whole page. `kind`: run, evaluation, comparison, sweep or leaderboard."""

    title: str
    kind: str
    status: str = ""
    sections: Sequence[PageSection] = field(default_factory=tuple)

    @property
    def refresh(self) -> int | None:
        """Seconds until a browser reads the page of something that runs again."""
        return REFRESH if self.status == "running" else None
