"""The picture of where a network looks at an image."""

import warnings
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from cotnet.evaluation.look import Look, Position, cell, mean_shifts
from cotnet.figures import ORANGE, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EXTENT: Final = (0, 1, 1, 0)  # so a panel's x is a position's column, its y the row
ARROWS: Final = 14  # per side; of larger maps, means over blocks
BOX: Final = 0.06  # of a panel
PANEL: Final = 2.0  # inches
NUMBERED: Final = 5  # largest kernel whose cells show their percentage

# A class may be called by signs that matplotlib's font does not have; it draws a box for each.
warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)

Panel = tuple[str, Callable[["Axes"], Any]]


def draw(png: Path, pixels: Tensor, seen: Look, *, title: str, name: str) -> None:
    """The image, Grad-CAM, and the kernels or the attention of each stage, as panels of one PNG.

    pixels: (3, S, S) uint8. name: of the class that Grad-CAM explains. Raises OSError if the file cannot be written.
    """
    rows = panels(pixels.permute(1, 2, 0).numpy(), seen, name=name)
    height, width = PANEL * len(rows) + 0.3 * (len(rows) + 1), PANEL * len(rows[0])
    margins = {"left": 0.01, "right": 0.99, "bottom": 0.01, "wspace": 0.04, "hspace": 0.14, "top": 1 - 0.55 / height}
    with figure(png, (width, height), rows=len(rows), columns=len(rows[0]), margins=margins) as (page, axes):
        page.suptitle(cut(title, int(13 * width)), fontsize=9, parse_math=False)  # a class may be called $x$
        for one, (caption, paint) in zip(axes, chain(*rows), strict=True):
            one.set_axis_off()
            one.set_title(caption, fontsize=7, y=1.01, parse_math=False)  # y: nothing is measured, which takes long
            paint(one)


def panels(image: np.ndarray, seen: Look, *, name: str) -> list[list[Panel]]:
    """The rows of panels. image: (S, S, 3)."""
    grey = image.mean(2)
    position = seen.position if seen.kernels or seen.attention else None
    first: Panel = ("what the network sees", partial(show_image, image=image, position=position))
    explained = f"Grad-CAM: {cut(name, 24)} ({100 * seen.probability:.0f} %)"
    if not seen.heat.any():
        explained = f"Grad-CAM: nothing speaks for {cut(name, 16)}"
    second: Panel = (explained, partial(show_heat, image=grey, heat=seen.heat))
    if seen.kernels:
        arrows: list[Panel] = []
        kernels: list[Panel] = []
        for stage, weights in seen.kernels.items():
            show = partial(show_shifts, image=grey, shifts=mean_shifts(weights, seen.dilation), position=seen.position)
            arrows.append((f"CoT, {stage}: listens towards", show))
            row, column = cell(seen.position, weights.shape[2:])
            kernels.append((f"{stage}: kernel at the box, %", partial(show_kernel, kernel=weights[:, :, row, column])))
        return [[first, *arrows], [second, *kernels]]
    attention: list[Panel] = []
    for stage, weights in seen.attention.items():
        whose = stage if "class token" in stage else f"{stage}, from the box"
        box = None if "class token" in stage else seen.position
        attention.append((f"attention, {whose}", partial(show_heat, image=grey, heat=weights, position=box)))
    flat = [first, second, *attention]
    return [flat[:3], flat[3:]] if len(flat) == 6 else [flat]


def cut(text: str, length: int) -> str:
    """The text on one line of at most so many characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 1]}…"


def show_image(axes: "Axes", *, image: np.ndarray, position: Position | None) -> None:
    """The image as it is."""
    axes.imshow(image, extent=EXTENT)
    if position:
        show_box(axes, position)


def show_heat(axes: "Axes", *, image: np.ndarray, heat: Tensor, position: Position | None = None) -> None:
    """A map (H, W) as colours over the grey image: dark is 0, bright its maximum."""
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, extent=EXTENT)
    axes.imshow(heat.numpy(), cmap="inferno", vmin=0, vmax=float(heat.max()) or 1, alpha=0.6, extent=EXTENT,
                interpolation="bilinear")  # fmt: skip
    if position:
        show_box(axes, position)


def show_box(axes: "Axes", position: Position) -> None:
    """A box around a position, up to the panel's border."""
    row, column = position
    x, y = (np.array(corners) * BOX / 2 for corners in ((-1, 1, 1, -1, -1), (-1, -1, 1, 1, -1)))
    for color, width in (("white", 2.4), ("black", 1)):
        axes.plot(np.clip(column + x, 0, 1), np.clip(row + y, 0, 1), color=color, linewidth=width)


def show_shifts(axes: "Axes", *, image: np.ndarray, shifts: Tensor, position: Position) -> None:
    """Shifts (2, H, W) as arrows over the pale image. The longest arrow spans the distance between two arrows."""
    step = -(-max(shifts.shape[1:]) // ARROWS)
    down, right = F.avg_pool2d(shifts[None], step, ceil_mode=True)[0].numpy()
    rows, columns = down.shape
    y, x = (np.indices(down.shape) + 0.5) / np.array(down.shape)[:, None, None]
    longest = float(np.hypot(down, right).max()) or 1.0
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, alpha=0.45, extent=EXTENT)
    axes.quiver(x, y, right, down, color=ORANGE, angles="xy", scale_units="xy", scale=longest * max(rows, columns),
                width=0.012, pivot="mid", headwidth=4, headlength=4, headaxislength=3.5)  # fmt: skip
    show_box(axes, position)


def show_kernel(axes: "Axes", *, kernel: Tensor) -> None:
    """The shares (K, K) of the neighbours as cells, with percentages in small kernels."""
    axes.imshow(kernel.numpy(), cmap="Oranges", vmin=0, vmax=float(kernel.max()) or 1)
    if len(kernel) <= NUMBERED:
        for (row, column), share in np.ndenumerate(kernel.numpy()):
            ink = "white" if share > 0.6 * kernel.max() else "black"
            axes.text(column, row, f"{100 * share:.0f}", color=ink, ha="center", va="center", fontsize=8)
