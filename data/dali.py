"""The DALI loader: DALI reads, decodes the crop, resizes and flips what the plan has drawn, on the CPU or the GPU.

Pixels equal the torchvision loader's within one grey level (bilinear) or eight (bicubic: PIL cuts off between its two
passes). Only the outermost row and column (bicubic: two) of a region that is made smaller differ more, up to 16: an
eighth of the filter's weight lies beyond the region there; DALI repeats the outermost pixel for it, PIL averages over
what there is. Evaluation does not see them where the resized image is at least two pixels larger than the crop
(bicubic: four), which it is at crop ratios up to 0.98 at 224 px.
"""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, Final

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types

from data.order import Batch, Geometry, Plan, check_loader, to_device
from data.samples import DataError, ImageSet, damaged, decoding_error, image_size

_INTERPOLATIONS: Final = {"bilinear": types.INTERP_LINEAR, "bicubic": types.INTERP_CUBIC}
_INPUTS: Final = (  # what `_arguments` hands over, in this order
    (types.UINT8, 1),  # path
    (types.INT32, 1),  # box: top, left
    (types.INT32, 1),  # box: height, width
    (types.FLOAT, 1),  # size after resizing: height, width
    (types.FLOAT, 0),  # crop: top as a share of what is left over
    (types.FLOAT, 0),  # crop: left
    (types.INT32, 0),  # mirror
)


@pipeline_def(exec_dynamic=True)
def _crops(source: Any, device: str, interpolation: str, side: int) -> Any:
    """The whole graph: (n, 3, side, side) uint8. `device` is DALI's word for the decoder: cpu, or mixed for the GPU."""
    dtypes, ndims = zip(*_INPUTS, strict=True)
    path, start, shape, size, top, left, mirror = fn.external_source(
        source, num_outputs=len(_INPUTS), batch=True, dtype=list(dtypes), ndim=list(ndims)
    )
    images = fn.decoders.image_slice(
        fn.io.file.read(path),
        start=start,
        shape=shape,
        axes=(0, 1),
        device=device,
        output_type=types.RGB,
        adjust_orientation=False,  # nobody else rotates ImageNet's 139 images with an EXIF orientation
        jpeg_fancy_upsampling=True,  # as libjpeg does on the CPU
    )
    images = fn.resize(
        images, size=size, interp_type=_INTERPOLATIONS[interpolation], antialias=True, subpixel_scale=False
    )
    return fn.crop_mirror_normalize(
        images,
        crop=(side, side),
        crop_pos_y=top,
        crop_pos_x=left,
        rounding="round",
        mirror=mirror,
        dtype=types.UINT8,
        output_layout="CHW",
    )


@pipeline_def(exec_dynamic=True, batch_size=1, num_threads=1, prefetch_queue_depth=1)
def _whole_image(source: Any, device: str) -> Any:
    path = fn.external_source(source, batch=True, dtype=types.UINT8, ndim=1)
    return fn.decoders.image(fn.io.file.read(path), device=device, output_type=types.RGB)


class DaliLoader:
    """Executes a plan with DALI.

    device: where the images go; a CUDA device also decodes and resizes there. interpolation: bilinear or bicubic, both
    antialiased. threads: CPU threads. prefetch: batches made ahead.
    """

    def __init__(
        self, image_set: ImageSet, plan: Plan, *, device: torch.device, interpolation: str, threads: int, prefetch: int
    ) -> None:
        check_loader(interpolation, threads, prefetch, least_threads=1)
        self._set, self._plan, self._device = image_set, plan, device
        known = image_set.sizes
        self._sizes = np.zeros((len(image_set.files), 2), dtype=np.int64) if known is None else known  # 0: not read yet
        self._prefetch = prefetch
        self._readers = ThreadPoolExecutor(threads, thread_name_prefix="image-headers")
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="loader-ahead")
        self._prepared: Iterator[Future[tuple[np.ndarray, list[Any]]]] = iter(())
        self._in_flight: deque[np.ndarray] = deque()  # indices of the batches DALI works on
        on_gpu = device.type == "cuda"
        self._decoder = "mixed" if on_gpu else "cpu"
        self._device_id = (device.index or 0) if on_gpu else None
        self._pipeline = _crops(
            self._source,
            self._decoder,
            interpolation,
            plan.image_size,
            batch_size=plan.rank_batch,
            num_threads=threads,
            device_id=self._device_id,
            prefetch_queue_depth=prefetch,
        )
        self._pipeline.build()

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """This rank's batches of one epoch, from batch `first` on. Raises DataError for a damaged image.

        One epoch at a time: starting another one ends the last.
        """
        self._rewind()
        self._prepared = self._prepare_ahead(epoch, first)
        for _ in range(first, self._plan.batches(epoch)):
            images = self._run()
            indices = self._in_flight.popleft()
            targets = np.where(indices < 0, 0, self._set.labels[indices % len(self._set.files)])
            yield Batch(images, to_device(targets, self._device), torch.from_numpy(indices))

    def close(self) -> None:
        """Stop all threads; the loader is of no use afterwards."""
        self._prepared = iter(())
        self._ahead.shutdown(cancel_futures=True)
        self._readers.shutdown(cancel_futures=True)
        del self._pipeline

    def _rewind(self) -> None:
        """Throw away what an unfinished epoch left in the pipeline."""
        self._prepared = iter(())
        try:
            while True:
                self._run()
        except StopIteration:
            self._in_flight.clear()
            self._pipeline.reset()

    def _run(self) -> torch.Tensor:
        stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        try:
            (images,) = self._pipeline.run(stream)
            return torch.from_dlpack(images.as_tensor())  # no copy: the dynamic executor gives the buffer away
        except RuntimeError as error:
            failure = error.with_traceback(None)  # its frames would keep the pipeline's threads alive after close()
        raise self._culprit() or failure

    def _prepare_ahead(self, epoch: int, first: int) -> Iterator[Future[tuple[np.ndarray, list[Any]]]]:
        """Arguments are drawn, and headers read, one batch before DALI asks for them."""
        futures = (self._ahead.submit(self._prepare, epoch, batch) for batch in range(first, self._plan.batches(epoch)))
        queue = deque(islice(futures, 2))
        while queue:
            yield queue.popleft()
            queue.extend(islice(futures, 1))

    def _prepare(self, epoch: int, batch: int) -> tuple[np.ndarray, list[Any]]:
        indices = self._plan.indices(epoch, batch)
        files = indices % len(self._set.files)
        paths = [os.fspath(self._set.path(file)) for file in files]
        for file, size in self._readers.map(self._read_size, {file for file in files if not self._sizes[file, 0]}):
            self._sizes[file] = size
        geometry = self._plan.geometry(epoch, indices, self._sizes[files])
        return indices, _arguments(paths, geometry, self._plan.image_size)

    def _read_size(self, file: int) -> tuple[int, tuple[int, int]]:
        return file, image_size(self._set.path(file))

    def _source(self) -> list[Any]:
        indices, arguments = next(self._prepared).result()  # StopIteration tells DALI that the epoch ends
        self._in_flight.append(indices)
        return arguments

    def _culprit(self) -> DataError | None:
        """The first image in flight that does not decode on its own: DALI's errors seldom name the file.

        PIL goes first, because it says why in a few words; then DALI, for what only it refuses.
        """
        paths = [self._set.path(index % len(self._set.files)) for indices in self._in_flight for index in indices]
        for path in paths:
            if error := decoding_error(path):
                return damaged(path, error)
        encoded = iter([[np.frombuffer(os.fsencode(path), dtype=np.uint8)] for path in paths])
        pipeline = _whole_image(lambda: next(encoded), self._decoder, device_id=self._device_id)
        for path in paths:
            try:
                pipeline.run()
            except RuntimeError:
                return damaged(path, ValueError("DALI cannot decode it"))
        return None


def _arguments(paths: list[str], geometry: Geometry, side: int) -> list[Any]:
    """One array, or list of arrays, per entry of _INPUTS."""
    left_over = np.maximum(geometry.size - side, 1)
    position = (geometry.offset / left_over).astype(np.float32)
    return [
        [np.frombuffer(os.fsencode(path), dtype=np.uint8) for path in paths],
        np.ascontiguousarray(geometry.box[:, :2], dtype=np.int32),
        np.ascontiguousarray(geometry.box[:, 2:], dtype=np.int32),
        geometry.size.astype(np.float32),
        np.ascontiguousarray(position[:, 0]),
        np.ascontiguousarray(position[:, 1]),
        geometry.flip.astype(np.int32),
    ]
