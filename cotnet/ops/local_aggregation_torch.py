"""Local aggregation in PyTorch, in two forms: in place within the CPU's cache, and as expressions for a compiler.

Both write out their gradients and save only value and weight. Shapes and meaning as in `cotnet.ops.local_aggregation`.
A tap is one of the K * K kernel positions.
"""

from collections.abc import Iterator
from functools import reduce
from typing import Any, Final

import torch
from torch.nn import functional as F

Products = Iterator[tuple[torch.Tensor, torch.Tensor]]  # factors
Gradients = tuple[torch.Tensor | None, torch.Tensor | None]
SHARES: Final = 4  # parts of the batch (twice as many in half precision): scratch for three maps stays below one map
CACHED: Final = 840_000  # values worked on at a time; with weights and sums 10 MB, which fits a shared cache


class LocalAggregation(torch.autograd.Function):
    """(value, weight of the same dtype, dilation) -> the aggregated values."""

    @staticmethod
    def forward(value: torch.Tensor, weight: torch.Tensor, dilation: int) -> torch.Tensor:
        return _form()(value, weight, dilation).forward()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:  # noqa: ARG004
        value, weight, ctx.dilation = inputs
        ctx.save_for_backward(value, weight)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        value, weight = ctx.saved_tensors
        of_value, of_weight, _ = ctx.needs_input_grad
        form = _form()(value, weight, ctx.dilation)
        return *form.gradients(upstream, of_value=of_value, of_weight=of_weight), None


class Strips:
    """In-place sums, some samples at a time, in scratch memory where a tap is a shift.

    The maps of a sample lie one behind the other (channels last: the groups of a pixel together). A tap is then one
    shifted window over all positions, and the loops are long for maps of any size. Out-of-range positions read other
    pixels of the sample with weight 0, so values that are not finite may spread there.
    """

    def __init__(self, value: torch.Tensor, weight: torch.Tensor, dilation: int) -> None:
        self.value, self.weight, self.dilation = value, weight, dilation
        batch, channels, height, width = value.shape
        self.groups, self.kernel_positions = weight.shape[1:3]
        self.kernel, self.rows = _kernel(weight), channels // self.groups
        self.last = channels_last(value)
        self.map = (height, width, self.groups) if self.last else (self.groups, height, width)
        self.length = height * width * self.groups  # of a row of maps: one value per weight
        shares = SHARES if value.element_size() >= 4 else 2 * SHARES
        self.samples = max(1, min(batch // shares, CACHED // max(1, channels * height * width)))
        pixel = self.groups if self.last else 1
        self.steps = (dilation * width * pixel, dilation * pixel)
        self.margin = self.kernel // 2 * sum(self.steps)
        self.shifts = [i * self.steps[0] + j * self.steps[1] for i in range(self.kernel) for j in range(self.kernel)]
        self.dtype = torch.promote_types(value.dtype, torch.float32)

    def strip(self, rows: int, *number: int) -> torch.Tensor:
        """Zeros for rows of `self.samples` samples with a margin around each; `number` strips, or one."""
        size = self.margin + self.samples * (rows * self.length + self.margin)
        return torch.zeros(*number, size, dtype=self.dtype, device=self.value.device)

    def window(self, strip: torch.Tensor, rows: int, start: int) -> torch.Tensor:
        """(..., samples, rows, length) of the strips: the samples at `start` = margin, else a tap's shifted view."""
        shape = (*strip.shape[:-1], self.samples, rows, self.length)
        strides = (*strip.stride()[:-1], rows * self.length + self.margin, self.length, 1)
        return strip.as_strided(shape, strides, strip.storage_offset() + start)

    def parts(self) -> Iterator[slice]:
        """Slices of the batch; the last one overlaps the one before if the size does not divide the batch."""
        batch = self.value.shape[0]
        for start in range(0, batch, self.samples):
            first = min(start, batch - self.samples)
            yield slice(first, first + self.samples)

    def maps(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) as (B, rows, *map), where channel c = row * G + g."""
        maps = x.unflatten(1, (self.rows, self.groups))
        return maps.permute(0, 1, 3, 4, 2) if self.last else maps

    def tap_maps(self, x: torch.Tensor) -> torch.Tensor:
        """(B, G, K * K, H, W) as (K * K, B, *map)."""
        return x.permute(2, 0, 3, 4, 1) if self.last else x.permute(2, 0, 1, 3, 4)

    def load(self, strip: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Copy samples of (B, C, H, W) into a strip; returns their window."""
        window = self.window(strip, self.rows, self.margin)
        window.unflatten(2, self.map).copy_(self.maps(x))
        return window

    def load_weights(self, strips: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Copy samples of (B, G, K * K, H, W) into a strip per tap; returns their window."""
        window = self.window(strips, 1, self.margin)
        taps = window.view(self.kernel_positions, self.samples, *self.map)
        self.clear_borders(taps.copy_(self.tap_maps(x)))
        return window

    def clear_borders(self, taps: torch.Tensor) -> None:
        """Zero (K * K, samples, *map) where a tap is out of range."""
        taps = taps.unflatten(0, (self.kernel, self.kernel))
        lines, columns = (3, 4) if self.last else (4, 5)
        for number in range(self.kernel):
            offset = self.dilation * (number - self.kernel // 2)
            for kernel, axis in ((0, lines), (1, columns)):
                size = taps.shape[axis]
                outside = min(abs(offset), size)
                if outside:
                    border = taps.narrow(axis, 0 if offset < 0 else size - outside, outside)
                    border.select(kernel, number).zero_()

    def fits(self, result: torch.Tensor) -> bool:
        """Whether sums can be written directly: same dtype, same order in memory."""
        return result.dtype == self.dtype and self.maps(result).is_contiguous()

    def sum_into(self, result: torch.Tensor, products: Products, scratch: torch.Tensor | None) -> None:
        """Sum products (samples, rows, length) into samples of the result, directly or through scratch."""
        maps = self.maps(result)
        if scratch is None or self.fits(result):
            _sum(maps.flatten(2), products)
        else:
            _sum(scratch, products)
            maps.copy_(scratch.unflatten(2, self.map))

    def forward(self) -> torch.Tensor:
        """For each tap: sums += window of the values * weights."""
        values, weights = self.strip(self.rows), self.strip(1, self.kernel_positions)
        result = torch.empty_like(self.value)
        scratch = None if self.fits(result) else values.new_empty(self.samples, self.rows, self.length)
        for part in self.parts():
            self.load(values, self.value[part])
            taps = self.load_weights(weights, self.weight[part])
            windows = (self.window(values, self.rows, shift) for shift in self.shifts)
            self.sum_into(result[part], zip(windows, taps, strict=True), scratch)
        return result

    def gradients(self, upstream: torch.Tensor, *, of_value: bool, of_weight: bool) -> Gradients:
        """For the values, for each tap: sums += window of upstream * the same window of the weights. For the weights,
        for each row: the sums of all taps += all windows of the values * upstream.
        """
        ups, values, weights = self.strip(self.rows), self.strip(self.rows), self.strip(1, self.kernel_positions)
        inside = self.window(values, self.rows, self.margin)  # holds sums until the values are loaded
        tap_sums = self.window(weights, 1, self.margin).view(self.kernel, self.kernel, self.samples, self.length)
        to_value = torch.empty_like(self.value) if of_value else None
        to_weight = torch.empty_like(self.weight) if of_weight else None
        back = [2 * self.margin - shift for shift in self.shifts]
        for part in self.parts():
            up = self.load(ups, upstream[part])
            if to_value is not None:
                self.load_weights(weights, self.weight[part])
                windows = (self.window(ups, self.rows, at) for at in back)
                taps = (self.window(strip, 1, at) for strip, at in zip(weights, back, strict=True))
                self.sum_into(to_value[part], zip(windows, taps, strict=True), inside)
            if to_weight is not None:
                self.load(values, self.value[part])
                strides = (*self.steps, inside.stride(0), 1)
                seen = (values.as_strided(tap_sums.shape, strides, row * self.length) for row in range(self.rows))
                _sum(tap_sums, zip(seen, up.unbind(1), strict=True))
                maps = tap_sums.view(self.kernel_positions, self.samples, *self.map)
                self.clear_borders(maps)
                self.tap_maps(to_weight[part]).copy_(maps)
        return to_value, to_weight


def _sum(sums: torch.Tensor, products: Products) -> None:
    torch.mul(*next(products), out=sums)
    for pair in products:
        sums.addcmul_(*pair)


class Expressions:
    """Sums of shifted views for a compiler to fuse: no scratch memory, no loop over samples.

    Channels last, dimensions are permuted to memory order, so that the compiled loops follow it.
    """

    def __init__(self, value: torch.Tensor, weight: torch.Tensor, dilation: int) -> None:
        self.value, self.weight, self.dilation = value, weight, dilation
        self.groups, self.kernel, self.last = weight.shape[1], _kernel(weight), channels_last(value)
        self.rows_axis, self.dtype = 3 if self.last else 1, torch.promote_types(value.dtype, torch.float32)

    def turn(self, x: torch.Tensor) -> torch.Tensor:
        """(B, N, G, H, W) to (B, H, W, N, G) channels last, and back."""
        return x.permute(0, 3, 4, 1, 2) if self.last else x

    def maps(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) as (B, C / G, G, H, W), turned, in float32 or more."""
        return self.turn(x.to(self.dtype).unflatten(1, (-1, self.groups)))

    def weights(self) -> torch.Tensor:
        """(B, K * K, G, H, W), turned."""
        weights = self.turn(self.weight.to(self.dtype).transpose(1, 2))
        if not self.last:
            return weights
        # as_strided makes Inductor store the turned weights. Without it forward and backward of 16 x 64 x 56 x 56 take
        # 37 ms instead of 14 on two cores, since the weights are read K * K apart.
        written = weights.contiguous()
        return written.as_strided(written.shape, written.stride())

    def windows(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        """The shifted view of turned maps or weights, padded with zeros, for each tap, in order."""
        border = self.dilation * (self.kernel // 2)
        padded = F.pad(x, (0, 0, 0, 0) * self.last + (border, border, border, border))
        (height, width), axis = self.value.shape[2:], 1 if self.last else 3
        for i in range(self.kernel):
            lines = padded.narrow(axis, self.dilation * i, height)
            for j in range(self.kernel):
                yield lines.narrow(axis + 1, self.dilation * j, width)

    def forward(self) -> torch.Tensor:
        """The weighted sum of all windows of the values."""
        weights = self.weights().split(1, self.rows_axis)
        windows = self.windows(self.maps(self.value))
        return self._sum(zip(windows, weights, strict=True))

    def gradients(self, upstream: torch.Tensor, *, of_value: bool, of_weight: bool) -> Gradients:
        """Of the values and of the weights."""
        to_value = self.value_gradient(upstream) if of_value else None
        return to_value, self.weight_gradient(upstream) if of_weight else None

    def value_gradient(self, upstream: torch.Tensor) -> torch.Tensor:
        """The same sum over upstream with mirrored offsets."""
        taps = reversed(range(self.kernel**2))
        windows = self.windows(self.weights())
        weights = (window.narrow(self.rows_axis, tap, 1) for tap, window in zip(taps, windows, strict=True))
        return self._sum(zip(self.windows(self.maps(upstream)), weights, strict=True))

    def weight_gradient(self, upstream: torch.Tensor) -> torch.Tensor:
        """Every window of the values times upstream, summed over the channels of a group."""
        ups = self.maps(upstream)
        taps = [(window * ups).sum(self.rows_axis) for window in self.windows(self.maps(self.value))]
        return self.turn(torch.stack(taps, 4 if self.last else 2)).to(self.weight.dtype)

    def _sum(self, terms: Iterator[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        total = reduce(torch.add, (values * weights for values, weights in terms))
        return self.turn(total).flatten(1, 2).to(self.value.dtype)


def aggregate_differentiably(value: torch.Tensor, weight: torch.Tensor, dilation: int) -> torch.Tensor:
    """The same in operations that every transform of torch.func knows; autograd saves what it needs of each."""
    return Expressions(value, weight, dilation).forward()


def neighbours(maps: torch.Tensor, kernel_size: int, *, dilation: int = 1) -> Iterator[torch.Tensor]:
    """For each kernel position in turn, the neighbour there of every position: views (..., 1, H, W), zero-padded.

    In a graph to export, a kernel row at a time, (..., K, H, W): exporters take minutes for 49 views in every layer.
    """
    height, width = maps.shape[-2:]
    span = dilation * (kernel_size - 1) + 1
    before = dilation * ((kernel_size - 1) // 2)
    padded = F.pad(maps, [before, span - 1 - before] * 2)
    starts = range(0, span, dilation)
    if torch.compiler.is_exporting():
        at = torch.arange(width, device=maps.device) + torch.arange(0, span, dilation, device=maps.device)[:, None]
        rows = padded[..., at].movedim(-2, -3)  # (..., K, H + span - 1, W)
        yield from (rows.narrow(-2, start, height) for start in starts)
    else:
        yield from (padded[..., i : i + height, j : j + width].unsqueeze(-3) for i in starts for j in starts)


def aggregate_rows(value: torch.Tensor, weight: torch.Tensor, dilation: int) -> torch.Tensor:
    """The same, in a few operations for each row of a large kernel: for graphs to export."""
    kernel, groups = _kernel(weight), weight.shape[1]
    maps = value.to(torch.promote_types(value.dtype, torch.float32)).unflatten(1, (-1, groups))
    windows = neighbours(maps, kernel, dilation=dilation)  # (B, C / G, G, K, H, W)
    rows = zip(windows, weight.unsqueeze(1).split(kernel, 3), strict=True)
    return reduce(torch.add, ((window * row).sum(3) for window, row in rows)).flatten(1, 2).to(value.dtype)


def _form() -> type[Strips] | type[Expressions]:
    """Expressions for tracing and for second derivatives (`backward` with create_graph)."""
    return Expressions if torch.compiler.is_compiling() or torch.is_grad_enabled() else Strips


def channels_last(x: torch.Tensor) -> bool:
    """Whether x is channels_last and not also contiguous."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _kernel(weight: torch.Tensor) -> int:
    return int(weight.shape[2] ** 0.5 + 0.5)
