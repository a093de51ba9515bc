"""Local aggregation in PyTorch, twice: in place within the cache for eager mode, and as expressions for a compiler.

Both have their gradients written out and save nothing but value and weight. Shapes and meaning as in
`cotnet.ops.local_aggregation`.
"""

from collections.abc import Iterator
from functools import reduce
from typing import Any, Final

import torch
from torch.nn import functional as F

Gradients = tuple[torch.Tensor | None, torch.Tensor | None]
SHARES: Final = 8  # of a batch from 8 images on: five strips of one are less than a feature map
CACHED: Final = 120_000  # values that are worked on at a time; with weights and sums 1.5 MB, which caches hold


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
    """The sums in place, some samples at a time, in scratch memory where a tap is a shift.

    A strip holds the maps of these samples one behind the other; each line and each map is followed by zeros, which
    are the border of the next one too. So a tap of all positions of all maps is one contiguous window of the strip, and
    long loops run over it whatever the size of the maps. Channels last, the groups of a pixel stay together.
    """

    def __init__(self, value: torch.Tensor, weight: torch.Tensor, dilation: int) -> None:
        self.value, self.weight = value, weight
        batch, channels, self.height, self.width = value.shape
        self.groups, self.taps = weight.shape[1:3]
        self.kernel, self.rows = _kernel(weight), channels // self.groups
        self.last = channels_last(value)
        border = dilation * (self.kernel // 2)
        self.lines, self.columns = self.height + border, self.width + border
        self.samples = max(1, min(batch // SHARES, CACHED // max(1, channels * self.lines * self.columns)))
        self.length = self.samples * self.groups * self.lines * self.columns
        pixel = self.groups if self.last else 1
        line = self.columns * pixel
        self.margin = border * (line + pixel)
        self.steps = (dilation * line, dilation * pixel)
        self.shifts = [i * self.steps[0] + j * self.steps[1] for i in range(self.kernel) for j in range(self.kernel)]

    def strip(self, rows: int, margin: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Zeros (rows, margin + length + margin), and the maps (samples, rows, G, H, W) in it."""
        dtype = self.value.dtype if self.value.element_size() >= 4 else torch.float32
        strip = torch.zeros(rows, self.length + 2 * margin, dtype=dtype, device=self.value.device)
        inner = strip[:, margin : margin + self.length]
        if self.last:
            maps = inner.view(rows, self.samples, self.lines, self.columns, self.groups).permute(1, 0, 4, 2, 3)
        else:
            maps = inner.view(rows, self.samples, self.groups, self.lines, self.columns).transpose(0, 1)
        return strip, maps[..., : self.height, : self.width]

    def parts(self) -> Iterator[slice]:
        """All samples, so many at a time; the last ones once more where the number does not divide the batch."""
        batch = self.value.shape[0]
        for start in range(0, batch, self.samples):
            first = min(start, batch - self.samples)
            yield slice(first, first + self.samples)

    def maps(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) as (B, C / G, G, H, W): channel c = r * G + g."""
        return x.unflatten(1, (self.rows, self.groups))

    def window(self, strip: torch.Tensor, start: int) -> torch.Tensor:
        """What a tap sees of a strip."""
        return strip[:, start : start + self.length]

    def forward(self) -> torch.Tensor:
        """For every tap: sums += window of the values * weights."""
        values, value_maps = self.strip(self.rows, self.margin)
        weights, weight_maps = self.strip(self.taps, 0)
        sums, sum_maps = self.strip(self.rows, 0)
        result = torch.empty_like(self.value)
        for part in self.parts():
            value_maps.copy_(self.maps(self.value[part]))
            weight_maps.copy_(self.weight[part].transpose(1, 2))
            _sum(sums, ((self.window(values, shift), weights[tap]) for tap, shift in enumerate(self.shifts)))
            self.maps(result[part]).copy_(sum_maps)
        return result

    def gradients(self, upstream: torch.Tensor, *, of_value: bool, of_weight: bool) -> Gradients:
        """Of the values, for every tap: sums += window of upstream * that window of the weights, since what a position
        took goes back there. Of the weights, for every row: sums of all taps += all windows of the values * upstream.
        """
        ups, up_maps = self.strip(self.rows, self.margin)
        values, value_maps = self.strip(self.rows, self.margin)
        weights, weight_maps = self.strip(self.taps, self.margin)
        sums, sum_maps = self.strip(self.rows, 0)
        tap_sums, tap_maps = self.strip(self.taps, 0)
        all_taps = tap_sums.view(self.kernel, self.kernel, self.length)
        to_value = torch.empty_like(self.value) if of_value else None
        to_weight = torch.empty_like(self.weight) if of_weight else None
        back = [2 * self.margin - shift for shift in self.shifts]
        for part in self.parts():
            up_maps.copy_(self.maps(upstream[part]))
            if to_value is not None:
                weight_maps.copy_(self.weight[part].transpose(1, 2))
                windows = ((self.window(ups, at), weights[tap, at : at + self.length]) for tap, at in enumerate(back))
                _sum(sums, windows)
                self.maps(to_value[part]).copy_(sum_maps)
            if to_weight is not None:
                value_maps.copy_(self.maps(self.value[part]))
                seen = (value.as_strided(all_taps.shape, (*self.steps, 1)) for value in values)
                _sum(all_taps, zip(seen, self.window(ups, self.margin), strict=True))
                to_weight[part].transpose(1, 2).copy_(tap_maps)
        return to_value, to_weight


def _sum(sums: torch.Tensor, products: Iterator[tuple[torch.Tensor, torch.Tensor]]) -> None:
    torch.mul(*next(products), out=sums)
    for pair in products:
        sums.addcmul_(*pair)


class Expressions:
    """The sums as expressions of shifted views, for a compiler to fuse: no scratch memory and no loop over samples.

    Channels last, the dimensions are turned to the order of the memory, which the compiled loops then have too.
    """

    def __init__(self, value: torch.Tensor, weight: torch.Tensor, dilation: int) -> None:
        self.value, self.weight, self.dilation = value, weight, dilation
        self.groups, self.kernel, self.last = weight.shape[1], _kernel(weight), channels_last(value)
        self.rows_axis = 3 if self.last else 1

    def turn(self, x: torch.Tensor) -> torch.Tensor:
        """(B, N, G, H, W) to (B, H, W, N, G) channels last, and back."""
        return x.permute(0, 3, 4, 1, 2) if self.last else x

    def maps(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) as (B, C / G, G, H, W), turned, in float32 at least."""
        return self.turn(_at_least_float32(x).unflatten(1, (-1, self.groups)))

    def weights(self) -> torch.Tensor:
        """(B, K * K, G, H, W), turned."""
        weights = self.turn(_at_least_float32(self.weight).transpose(1, 2))
        if not self.last:
            return weights
        # as_strided makes Inductor write the turned weights down. Read where they lie, K * K apart, they cost more than
        # all the rest: 37 ms instead of 14 for forward and backward of 16 x 64 x 56 x 56 on two cores.
        written = weights.contiguous()
        return written.as_strided(written.shape, written.stride())

    def pad(self, x: torch.Tensor) -> torch.Tensor:
        border = self.dilation * (self.kernel // 2)
        return F.pad(x, (0, 0, 0, 0) * self.last + (border, border, border, border))

    def windows(self, padded: torch.Tensor) -> Iterator[torch.Tensor]:
        """The part of padded maps that each tap sees, in the order of the taps."""
        height, width = self.value.shape[2:]
        axis = 1 if self.last else 3
        for i in range(self.kernel):
            lines = padded.narrow(axis, self.dilation * i, height)
            for j in range(self.kernel):
                yield lines.narrow(axis + 1, self.dilation * j, width)

    def forward(self) -> torch.Tensor:
        """Every window of the values, weighted."""
        weights = self.weights().split(1, self.rows_axis)
        windows = self.windows(self.pad(self.maps(self.value)))
        return self._sum(zip(windows, weights, strict=True))

    def gradients(self, upstream: torch.Tensor, *, of_value: bool, of_weight: bool) -> Gradients:
        """Of the values and of the weights."""
        return (
            self.value_gradient(upstream) if of_value else None,
            self.weight_gradient(upstream) if of_weight else None,
        )

    def value_gradient(self, upstream: torch.Tensor) -> torch.Tensor:
        """What a position gave to a neighbour comes back from there: the same sum, the offsets mirrored."""
        taps = reversed(range(self.kernel**2))
        windows = self.windows(self.pad(self.weights()))
        weights = (window.narrow(self.rows_axis, tap, 1) for tap, window in zip(taps, windows, strict=True))
        return self._sum(zip(self.windows(self.pad(self.maps(upstream))), weights, strict=True))

    def weight_gradient(self, upstream: torch.Tensor) -> torch.Tensor:
        """Every window of the values times upstream, summed over the channels of a group."""
        ups = self.maps(upstream)
        taps = [(window * ups).sum(self.rows_axis) for window in self.windows(self.pad(self.maps(self.value)))]
        return self.turn(torch.stack(taps, 4 if self.last else 2)).to(self.weight.dtype)

    def _sum(self, terms: Iterator[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        total = reduce(torch.add, (values * weights for values, weights in terms))
        return self.turn(total).flatten(1, 2).to(self.value.dtype)


def _form() -> type[Strips] | type[Expressions]:
    """Expressions where they are traced, or differentiated once more (`backward` with create_graph)."""
    return Expressions if torch.compiler.is_compiling() or torch.is_grad_enabled() else Strips


def channels_last(x: torch.Tensor) -> bool:
    """Whether the channels of a pixel lie together and its maps do not."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _kernel(weight: torch.Tensor) -> int:
    return int(weight.shape[2] ** 0.5 + 0.5)


def _at_least_float32(x: torch.Tensor) -> torch.Tensor:
    return x if x.element_size() >= 4 else x.float()
