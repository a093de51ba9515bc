"""A sheet of pictures in panels, with frames around what is in them."""

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from cotnet.evaluation.look_figure import cut
from cotnet.figures import figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GAP: Final = 0.08  # inches between panels
LINE: Final = 0.2  # inches of a line of text
SMALL: Final = 7  # points of captions and names
LEGEND_COLUMN: Final = 1.3  # inches


class Frame(NamedTuple):
    """A box (x, y, width, height) in pixels, with its text. `dashed`: it has no partner on the other side."""

    box: tuple[float, float, float, float]
    color: str
    text: str
    dashed: bool


class PicturePanel(NamedTuple):
    """A picture (h, w, 3) uint8 with frames, and the colours of the sheet's legend by name."""

    caption: str
    pixels: np.ndarray
    frames: Sequence[Frame] = ()
    legend: Mapping[str, str] = {}


def draw_sheet(
    png: Path, images: Sequence[Sequence[PicturePanel]], *, title: str, inches: float = 2.4, across: int = 1
) -> None:
    """The panels of each image side by side, `across` images in a row; replaces `png`. Each image has as many panels.

    inches: width of a panel. Raises OSError if the file cannot be written.
    """
    panels = list(chain(*images))
    columns, rows = len(images[0]) * across, math.ceil(len(images) / across)
    highest = 2.0 if len(images) == 1 else 1.0  # of several, one that is high may not make all rows high
    high = inches * min(highest, max(one.pixels.shape[0] / one.pixels.shape[1] for one in panels))
    legend = {name: color for one in panels for name, color in one.legend.items()}
    width = columns * (inches + GAP) + GAP
    named = math.ceil(len(legend) / max(1, int(width / LEGEND_COLUMN)))
    top, bottom, between = 2 * LINE, GAP + named * LINE, GAP + LINE
    height = top + rows * (high + between) + bottom - between + GAP
    margins = {"left": GAP / width, "right": 1 - GAP / width, "wspace": GAP / inches, "hspace": between / high}
    margins |= {"top": 1 - top / height, "bottom": bottom / height}
    with figure(png, (width, height), rows=rows, columns=columns, dpi=140, margins=margins) as (page, axes):
        page.suptitle(cut(title, int(13 * width)), fontsize=9, y=1 - 0.06 / height, va="top", parse_math=False)
        for one in axes:
            one.set_axis_off()
        for one, panel in zip(axes, panels, strict=False):
            draw_panel(one, panel, inches=inches, high=high)
        if legend:
            _draw_legend(page, legend, columns=math.ceil(len(legend) / named))


def draw_panel(axes: "Axes", panel: PicturePanel, *, inches: float, high: float) -> None:
    """The picture with its caption; each frame's text stands on the frame, or in it at the upper border."""
    from matplotlib.patches import Rectangle

    height, width = panel.pixels.shape[:2]
    axes.set_anchor("N")
    axes.imshow(panel.pixels, interpolation="nearest" if width < 100 * inches else "antialiased")
    axes.set_title(cut(panel.caption, int(16 * inches)), fontsize=SMALL, y=1.005, pad=2, parse_math=False)
    pixel = min(inches / width, high / height)  # inches of one
    for number, one in enumerate(reversed(panel.frames)):  # the first lies on top
        x, y, wide, tall = one.box
        look: dict[str, Any] = {"edgecolor": one.color, "facecolor": "none", "zorder": 3 + number}
        axes.add_patch(Rectangle((x, y), wide, tall, linewidth=2.4, **{**look, "edgecolor": "white"}, alpha=0.7))
        axes.add_patch(
            Rectangle((x, y), wide, tall, linewidth=1.4, linestyle=(0, (4, 2)) if one.dashed else "-", **look)
        )
        line = (SMALL + 3) / 72 / pixel  # height of the text in pixels of the picture
        right, above = x + wide / 2 > width * 0.7, y > line
        axes.text(
            min(x + wide, width) if right else max(x, 0), y if above else max(y, 0), one.text, fontsize=SMALL - 1,
            color=ink(one.color), ha="right" if right else "left", va="bottom" if above else "top", clip_on=True,
            parse_math=False, zorder=3.5 + number + len(panel.frames),
            bbox={"facecolor": one.color, "edgecolor": "none", "pad": 0.8, "alpha": 0.9},
        )  # fmt: skip


def ink(color: str) -> str:
    """Black or white, whichever is easier to read on a colour like #e69f00."""
    red, green, blue = (int(color[start : start + 2], 16) for start in (1, 3, 5))
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"


def _draw_legend(page: Any, legend: Mapping[str, str], *, columns: int) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=color, label=cut(name, 18)) for name, color in legend.items()]
    page.legend(handles=handles, loc="lower center", ncols=columns, fontsize=SMALL, frameon=False, borderpad=0.1)
