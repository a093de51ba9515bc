"""All operations of a turn in one kernel, with the pixels of `operations.py`: the form for GPUs.

There, a kernel for each step of each operation costs the host more than the device: about 1,100 launches for a batch of
80 images with two RandAugment operations, against about 110 in this form. What does not depend on pixels (tables,
coefficients, boxes) is computed on the CPU and goes to the device in one copy for each turn.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import torch

from cotnet.ops import TRITON
from data.augmentation import operations
from data.augmentation.operations import IMAGE_TABLES, OPERATIONS, TABLES, Canvas, to_levels
from data.loading.plan import to_device

_ALIGN: Final = 16  # bytes, between arrays of one copy


def usable(device: torch.device) -> bool:
    """Whether the kernels run on this device."""
    return TRITON and device.type == "cuda"


class TurnPlan(NamedTuple):
    """A turn of n images as the host prepares it. `arrays`: codes, numbers and tables of `kernels.apply_turn`, then the
    rows and parameters of each operation in `by_pixels`: those whose tables depend on pixels, and those that the kernel
    lacks (hue)."""

    arrays: list[np.ndarray]
    by_pixels: list[str]


def fused_turn(
    images: torch.Tensor, names: Sequence[str], *, drawn: np.ndarray, parameters: np.ndarray, canvas: Canvas
) -> torch.Tensor:
    """Operation names[drawn[i]] with parameters[i] on image i; -1: none.

    images: (n, 3, H, W) uint8, drawn: (n,), parameters: (n, 3).
    """
    height, width = images.shape[-2:]
    plan = plan_turn(names, drawn=drawn, parameters=parameters, canvas=canvas, height=height, width=width)
    return run_turn(images, plan, canvas)


def plan_turn(
    names: Sequence[str], *, drawn: np.ndarray, parameters: np.ndarray, canvas: Canvas, height: int, width: int
) -> TurnPlan:
    """The host's part: tables, coefficients and boxes, which need no pixels."""
    from data.augmentation import kernels

    members = {names[index]: np.flatnonzero(drawn == index) for index in np.unique(drawn) if index >= 0}
    members.pop("identity", None)
    codes = np.zeros((len(drawn), 2), dtype=np.int32)
    numbers = np.zeros((len(drawn), kernels.NUMBERS), dtype=np.float32)
    numbers[:, kernels.FILL :] = canvas.fill
    tables, slots = [torch.zeros(1, 3, 256, dtype=torch.uint8)], 1
    by_pixels: list[str] = []
    for name in sorted(members, key=lambda name: name in IMAGE_TABLES):  # their tables follow the others
        rows = members[name]
        given = torch.from_numpy(parameters[rows])
        codes[rows, 0] = kernels.CODES.get(name, kernels.COPY)
        if name in IMAGE_TABLES or name not in kernels.CODES:
            by_pixels.append(name)
        elif name in TABLES:
            tables.append(to_levels(TABLES[name](given, given)))
        else:
            found = coefficients(name, given, height, width)
            numbers[rows, : found.shape[1]] = found.numpy()
        if name in TABLES:
            codes[rows, 1] = np.arange(slots, slots + len(rows))
            slots += len(rows)
    more = [array for name in by_pixels for array in (members[name], parameters[members[name]])]
    return TurnPlan([codes, numbers, torch.cat(tables).numpy(), *more], by_pixels)


def run_turn(images: torch.Tensor, plan: TurnPlan, canvas: Canvas) -> torch.Tensor:
    """The device's part: one copy, the tables that depend on pixels, one kernel."""
    from data.augmentation import kernels

    there = together(plan.arrays, images.device)
    tables, changed = [there[2]], []
    for name, rows, given in zip(plan.by_pixels, there[3::2], there[4::2], strict=True):
        chosen = images.index_select(0, rows)
        if name == "equalize":
            tables.append(to_levels(operations.equalized(chosen, kernels.count_levels(chosen))))
        elif name in TABLES:
            tables.append(to_levels(TABLES[name](chosen, given)))
        else:
            changed.append((rows, OPERATIONS[name](chosen, given, canvas)))
    bicubic = canvas.interpolation == "bicubic"
    result: torch.Tensor = kernels.apply_turn(images.contiguous(), *there[:2], torch.cat(tables), bicubic=bicubic)
    for rows, pixels in changed:
        result.index_copy_(0, rows, pixels)
    return result


def coefficients(name: str, parameters: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(n, count) float32: the numbers of the kernel for an operation that is no table; `parameters` on the CPU."""
    value = parameters[:, 0].float()
    if name in ("color", "sharpness"):
        return value[:, None]
    if name == "cutout":
        return operations.cutout_square(parameters, height, width).float()
    zero = torch.zeros_like(value)
    # ax, bx, cx, ox, ay, by, cy, oy of kernels._resample
    if name == "rotate":
        less, sin = operations.rotation(parameters)
        rows = [less, sin, zero, zero + width / 2, less, -sin, zero, zero + height / 2]
    else:
        place = {"shear_x": 1, "translate_x": 2, "shear_y": 5, "translate_y": 6}[name]
        rows = [value if index == place else zero for index in range(8)]
    return torch.stack(rows, dim=1)


def look_up(images: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """table[c, images[n, c, y, x]] for uint8 images (n, 3, H, W) and a table (3, 256), of its dtype."""
    from data.augmentation import kernels

    looked_up: torch.Tensor = kernels.look_up_levels(images.contiguous(), table)
    return looked_up


def together(arrays: Sequence[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """The arrays on the device, by one copy."""
    ends = np.cumsum([-(-array.nbytes // _ALIGN) * _ALIGN for array in arrays]).tolist()
    packed = np.zeros(ends[-1], dtype=np.uint8)
    places = [slice(start, start + array.nbytes) for start, array in zip([0, *ends], arrays, strict=False)]
    for place, array in zip(places, arrays, strict=True):
        packed[place] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    there = to_device(packed, device)
    return [
        there[place].view(torch.from_numpy(array).dtype).view(array.shape)
        for place, array in zip(places, arrays, strict=True)
    ]
