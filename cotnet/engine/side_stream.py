"""Loading and augmenting on a CUDA stream of their own, beside the training step that the device still computes."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor

from cotnet.engine.step import TrainData

_END: Final = object()


def beside_the_step(data: TrainData, device: torch.device) -> TrainData:
    """The data, on a GPU loaded and augmented by a SideStream; on a CPU unchanged."""
    if device.type != "cuda":
        return data
    side = SideStream(data, device)
    return replace(data, loader=side, transform=side.transform)


class SideStream:
    """A loader and a transform whose work on the device does not wait for the training step before it.

    The host queues a step faster than the device computes it, so the next batch is augmented while the device is still
    busy with the step. The training stream waits for the batch alone. The same kernels run, so the numbers are equal.
    """

    def __init__(self, data: TrainData, device: torch.device) -> None:
        self._loader, self._transform, self._device = data.loader, data.transform, device
        self._stream = torch.cuda.Stream(device)

    def batches(self, epoch: int, first: int = 0) -> Iterator[Any]:
        """As Loader. Its copies and decoders are in order with this stream."""
        batches = iter(self._loader.batches(epoch, first))
        while True:
            with torch.cuda.stream(self._stream):
                batch = next(batches, _END)
            if batch is _END:
                return
            yield batch

    def transform(self, *batch: Any) -> tuple[Tensor, Tensor]:
        """As TrainData.transform, for batches of this loader."""
        with torch.cuda.stream(self._stream):
            made = self._transform(*batch)
        training = torch.cuda.current_stream(self._device)
        training.wait_stream(self._stream)
        for tensor in made:
            tensor.record_stream(training)  # its memory is not given out again before that stream has read it
        return made
