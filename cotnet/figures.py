"""A figure in this project's look, drawn without a window and written whole or not at all."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cotnet.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, GREY = "#2f6fb3", "#e07b28", "#3c9a5f", "#c2453d", "#6b7280"
GRID = "#e5e7eb"
_drawing = threading.Lock()  # FreeType, which draws the text, serves one thread at a time


@contextmanager
def figure(
    png: Path,
    size: tuple[float, float],
    *,
    rows: int = 1,
    columns: int = 1,
    dpi: int = 100,
    margins: dict[str, float] | None = None,
    sharey: bool = False,
) -> Iterator[tuple["Figure", list["Axes"]]]:
    """A figure of `size` inches and its panels, row by row; replaces `png` at the end. Works in any thread.

    `margins` are those of `Figure.subplots_adjust`; without them the panels are laid out to fit. Raises OSError if the
    file cannot be written.
    """
    # Figure instead of pyplot: no global state, no window system, nothing to close.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with _drawing:
        drawn = Figure(figsize=size, dpi=dpi, facecolor="white", layout=None if margins else "constrained")
        if margins:
            drawn.subplots_adjust(**margins)
        panels = list(drawn.subplots(rows, columns, squeeze=False, sharey=sharey).flatten())
        for axes in panels:
            axes.spines[["top", "right"]].set_visible(False)
        yield drawn, panels
        buffer = BytesIO()
        FigureCanvasAgg(drawn).print_png(buffer)
    write_atomic(png, buffer.getvalue())


def write_labels(axes: "Axes", points: Sequence[tuple[float, float, str]]) -> None:
    """The text of each (x, y, text) beside its point, where it covers no other text and no point; a thin line leads to
    a text that is not right beside its point."""
    places = [(dx, dy) for reach in range(0, 40, 4) for dx, dy in ((5, reach), (5, -reach), (-5, reach), (-5, -reach))]
    taken = [axes.transData.transform((x, y)) for x, y, _ in points]
    boxes: list[Any] = []
    for x, y, text in points:
        for dx, dy in places:
            look: dict[str, Any] = {
                "ha": "left" if dx > 0 else "right",
                "va": "center",
                "fontsize": 6,
                "in_layout": False,
            }
            label = axes.annotate(text, (x, y), (dx, dy), textcoords="offset points", **look)
            box = label.get_window_extent()
            if not box.padded(3).count_overlaps(boxes) and not any(box.padded(6).contains(*point) for point in taken):
                break
            label.remove()
        boxes.append(box)
        if abs(dy) > 8:
            line = {"arrowstyle": "-", "linewidth": 0.4, "color": GREY, "shrinkA": 0, "shrinkB": 2}
            axes.annotate("", (x, y), (dx, dy), textcoords="offset points", arrowprops=line)
