"""The DALI loader: DALI reads and decodes, on the CPU only the crop box, on the GPU the whole image.

On the CPU torch resizes the region in integers, in a third of the time of DALI's float32: 0.3 against 1.0 ms for an
ImageNet crop of 224 px. It equals torchvision's resizing of a tensor bit for bit. PIL rounds the filter's weights to 22
bits, torch to 15: 98 % of the values are equal; bilinear differs by at most 2, bicubic by at most 16 (7 in 100,000 by
more than 1, beside edges clipped at 0 or 255).

On the GPU DALI cuts out and resizes, within one grey level of PIL (bilinear) or eight (bicubic: PIL clips between its
two passes). Only the outermost row and column (bicubic: two) of a reduced region differ by up to 16: DALI repeats the
outermost pixel, PIL renormalises the filter. Evaluation does not see them at crop ratios up to 0.98 at 224 px.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Annotated, Any, Final, NamedTuple, TypeVar

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types
from torch.nn.functional import interpolate

from cotnet.errors import DataError
from cotnet.settings import Setting
from data.loading.plan import Batch, BatchPlan, DecodeDevice, Geometry, Prefetch, of_sizes, to_device
from data.sets.image_set import ImageSet, damaged, decoding_error, image_size, require_end

_INTERPOLATIONS: Final = {"bilinear": types.INTERP_LINEAR, "bicubic": types.INTERP_CUBIC}
_PER_TASK: Final = 4  # images a thread resizes: few enough to spread over threads, enough to hide a task's cost
# (type, dimensions) of each array of `_arguments`. The CPU's graph takes the regions alone.
_REGION: Final = (
    (types.UINT8, 1),  # path
    (types.INT32, 1),  # box: top, left
    (types.INT32, 1),  # box: height, width
)
_MIRROR: Final = ((types.INT32, 0),)
_OF_SIZE: Final = (  # for each size of the images
    (types.FLOAT, 1),  # size after resizing: height, width
    (types.FLOAT, 0),  # crop: top as a share of the height outside the crop
    (types.FLOAT, 0),  # crop: left, likewise
)


def _inputs(source: Callable[[], list[Any]], kinds: Sequence[tuple[Any, int]]) -> Any:
    count, (dtypes, ndims) = len(kinds), zip(*kinds, strict=True)
    return fn.external_source(source, num_outputs=count, batch=True, dtype=list(dtypes), ndim=list(ndims))


_DECODING: Final[dict[str, Any]] = {
    "output_type": types.RGB,
    "adjust_orientation": False,  # as all others: ImageNet has 139 images with an EXIF orientation
    "jpeg_fancy_upsampling": True,  # as libjpeg does on the CPU
    # All JPEGs to the GPU's hardware decoder, if it has one. With a share of each batch, an image's pixels would depend
    # on the others: the hardware gets the first of a batch sorted by subsampling and area, CUDA rounds otherwise.
    "hw_decoder_load": 1.0,
    "affine": False,  # else the ranks of one socket's GPUs would pin their threads to the same first cores
}


@pipeline_def(exec_dynamic=True)
def _regions(source: Callable[[], list[Any]]) -> Any:
    """The CPU's graph: decoded regions, (height, width, 3) uint8 each."""
    path, start, shape = _inputs(source, _REGION)
    return fn.decoders.image_slice(fn.io.file.read(path), start=start, shape=shape, axes=(0, 1), **_DECODING)


@pipeline_def(exec_dynamic=True)
def _crops(source: Callable[[], list[Any]], device: str, interpolation: str, sides: Sequence[int]) -> Any:
    """The GPU's graph: finished images (n, 3, side, side) uint8 of each size. device: mixed (the GPU), in tests cpu."""
    path, start, shape, mirror, *of_size = _inputs(source, (*_REGION, *_MIRROR, *_OF_SIZE * len(sides)))
    # Whole images: nvImageCodec 0.9.0, which DALI 2.4 requires, is reported to crash or fail on regions
    # (github.com/NVIDIA/nvImageCodec/issues/55).
    whole = fn.decoders.image(fn.io.file.read(path), device=device, **_DECODING)
    region, kind = fn.slice(whole, start=start, shape=shape, axes=(0, 1)), _INTERPOLATIONS[interpolation]
    outputs = []
    for number, side in enumerate(sides):
        size, top, left = of_size[3 * number : 3 * number + 3]
        images = fn.resize(region, size=size, interp_type=kind, antialias=True, subpixel_scale=False)
        crop = {"crop": (side, side), "crop_pos_y": top, "crop_pos_x": left, "rounding": "round", "mirror": mirror}
        outputs.append(fn.crop_mirror_normalize(images, **crop, dtype=types.UINT8, output_layout="CHW"))
    return tuple(outputs)


@pipeline_def(exec_dynamic=True, batch_size=1, num_threads=1, prefetch_queue_depth=1)
def _whole_image(source: Any, device: str) -> Any:
    path = fn.external_source(source, batch=True, dtype=types.UINT8, ndim=1)
    return fn.decoders.image(fn.io.file.read(path), device=device, **_DECODING)


_T = TypeVar("_T")


class _PlannedBatch(NamedTuple):
    """A batch on its way through DALI."""

    indices: np.ndarray
    geometries: list[Geometry]  # for each size
    arguments: list[Any]


class DaliLoader:
    """A BatchLoader. Unless `device` is cpu, DALI decodes, crops and resizes where the images go."""

    def __init__(
        self,
        image_set: ImageSet,
        plan: BatchPlan,
        *,
        output_device: torch.device,
        interpolation: str,
        threads: Annotated[int, Setting("CPU threads per rank", least=1, most=1024)],
        prefetch: Prefetch,
        device: DecodeDevice = "auto",
    ) -> None:
        self._set, self._plan, self._device, self._interpolation = image_set, plan, output_device, interpolation
        self._on_gpu = device != "cpu" and output_device.type == "cuda"
        known = image_set.sizes
        self._sizes = np.zeros((len(image_set.files), 2), dtype=np.int64) if known is None else known  # 0: not read yet
        self._seen = np.zeros(len(image_set.files), dtype=bool)
        self._prefetch = prefetch
        self._workers = ThreadPoolExecutor(threads, thread_name_prefix="loader-images")
        self._drawer = ThreadPoolExecutor(1, thread_name_prefix="loader-draws")
        self._finisher = ThreadPoolExecutor(1, thread_name_prefix="loader-batches")
        self._prepared: Iterator[Future[_PlannedBatch]] = iter(())
        self._finished: Iterator[Future[tuple[list[torch.Tensor], np.ndarray]]] = iter(())
        self._in_flight: deque[_PlannedBatch] = deque()  # the batches DALI works on
        self._failure: Exception | None = None
        settings = {"batch_size": plan.rank_batch, "num_threads": threads}
        if self._on_gpu:
            settings |= {"device_id": output_device.index or 0, "prefetch_queue_depth": prefetch}
            self._pipeline = _crops(self._source, "mixed", interpolation, plan.sides, **settings)
        else:  # depth 2: one batch is decoded while another is resized
            self._pipeline = _regions(self._source, device_id=None, prefetch_queue_depth=2, **settings)
        self._pipeline.build()

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """As BatchLoader."""
        self._rewind()
        numbers = range(first, self._plan.batches(epoch))
        self._prepared = _ahead(self._drawer, 2, (partial(self._prepare, epoch, number) for number in numbers))
        if not self._on_gpu:
            self._finished = _ahead(self._finisher, self._prefetch, (self._finish for _ in numbers))
        for _ in numbers:
            images, indices = self._finish() if self._on_gpu else next(self._finished).result()
            targets = np.where(indices < 0, 0, self._set.labels[indices % len(self._set.files)])
            images = [part.to(self._device, non_blocking=True) for part in images]
            yield Batch(of_sizes(images), to_device(targets, self._device), torch.from_numpy(indices))

    def close(self) -> None:
        """As BatchLoader."""
        self._prepared, self._finished = iter(()), iter(())
        for pool in (self._finisher, self._drawer, self._workers):
            pool.shutdown(cancel_futures=True)
        del self._pipeline

    def _rewind(self) -> None:
        """Discard the rest of an unfinished epoch."""
        self._prepared, self._finished = iter(()), iter(())
        if self._on_gpu:
            self._drain()
        else:
            self._finisher.submit(self._drain).result()  # once that thread is free

    def _drain(self) -> None:
        try:
            while True:
                self._run()
        except StopIteration:
            self._in_flight.clear()
            self._pipeline.reset()

    def _finish(self) -> tuple[list[torch.Tensor], np.ndarray]:
        """Images of each size, on the device, and indices of the next batch."""
        made = self._run()
        indices, geometries, _ = self._in_flight.popleft()
        if self._on_gpu:  # no copy: the dynamic executor gives up the buffer
            return [torch.from_dlpack(images.as_tensor()) for images in made], indices
        regions, sides = [torch.from_dlpack(region) for region in made[0]], self._plan.sides
        return [self._resize(regions, *of_size) for of_size in zip(geometries, sides, strict=True)], indices

    def _resize(self, regions: Sequence[torch.Tensor], geometry: Geometry, side: int) -> torch.Tensor:
        """(n, 3, side, side) uint8 images from n decoded boxes, (height, width, 3) uint8 each."""
        images = self._new_images(len(regions), side)
        pixels = images.numpy()

        def finish(first: int) -> None:
            # In NumPy after resizing: torch's copies would start a team of threads in each thread.
            for row in range(first, min(first + _PER_TASK, len(regions))):
                size, (top, left) = tuple(geometry.size[row].tolist()), geometry.offset[row].tolist()
                region = regions[row].permute(2, 0, 1)[None]
                image = interpolate(region, size, mode=self._interpolation, antialias=True)[0].numpy()
                crop = image[:, top : top + side, left : left + side]
                pixels[row] = crop[..., ::-1] if geometry.flip[row] else crop

        list(self._workers.map(finish, range(0, len(regions), _PER_TASK)))
        return images

    def _new_images(self, count: int, side: int) -> torch.Tensor:
        """Uninitialised (count, 3, side, side) uint8 on the CPU; pinned where they go to a GPU, so that the copy does
        not make the host wait."""
        shape = (count, 3, side, side)
        if self._device.type == "cuda":
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        return torch.from_numpy(np.empty(shape, dtype=np.uint8))

    def _run(self) -> Any:
        """DALI's outputs for the next batch."""
        stream = torch.cuda.current_stream(self._device) if self._on_gpu else None
        try:
            if self._failure is None:
                return self._pipeline.run(stream)
        except RuntimeError as error:
            self._failure = self._culprit() or error.with_traceback(None)  # frames would keep DALI's threads alive
        raise self._failure

    def _prepare(self, epoch: int, batch: int) -> _PlannedBatch:
        indices = self._plan.indices(epoch, batch)
        files = indices % len(self._set.files)
        paths = [os.fspath(self._set.path(file)) for file in files]
        if unseen := [file for file in set(files.tolist()) if not self._seen[file]]:
            list(self._workers.map(self._first_look, unseen))
            self._seen[unseen] = True
        geometries = self._plan.geometries(epoch, indices, self._sizes[files])
        return _PlannedBatch(indices, geometries, _arguments(paths, geometries, self._plan.sides))

    def _first_look(self, file: int) -> None:
        """Learns the size. Raises DataError for a JPEG that was cut off.

        The CPU's decoder notices only if a crop reaches the cut. The GPU's hardware may never: nvImageCodec gives it a
        batch after reading the headers, and reports all of its images as decoded.
        """
        path = self._set.path(file)
        require_end(path)
        if not self._sizes[file, 0]:
            self._sizes[file] = image_size(path)

    def _source(self) -> list[Any]:
        work = next(self._prepared).result()  # StopIteration ends DALI's epoch
        self._in_flight.append(work)
        return work.arguments if self._on_gpu else work.arguments[:3]

    def _culprit(self) -> DataError | None:
        """The first image in flight that does not decode alone: DALI's errors seldom name the file. PIL's are short."""
        paths = [self._set.path(index) for work in self._in_flight for index in work.indices]
        encoded = iter([[np.frombuffer(os.fsencode(path), dtype=np.uint8)] for path in paths])
        where, device_id = ("mixed", self._device.index or 0) if self._on_gpu else ("cpu", None)
        pipeline = _whole_image(lambda: next(encoded), where, device_id=device_id)
        for path in paths:
            try:
                pipeline.run()
            except RuntimeError:
                return damaged(path, decoding_error(path) or ValueError("DALI cannot decode it"))
        return None


def _ahead(pool: Executor, count: int, calls: Iterable[Callable[[], _T]]) -> Iterator[Future[_T]]:
    """Futures of the calls in order, `count` of them submitted ahead. Closing the iterator cancels the rest."""
    futures = (pool.submit(call) for call in calls)
    queue = deque(islice(futures, count))
    try:
        while queue:
            first = queue.popleft()
            queue.extend(islice(futures, 1))
            yield first
    finally:
        for future in queue:
            future.cancel()


def _arguments(paths: list[str], geometries: Sequence[Geometry], sides: Sequence[int]) -> list[Any]:
    """One array, or list of arrays, per entry of _REGION, _MIRROR and, for each size, _OF_SIZE."""
    first = geometries[0]  # the box is the same at each size
    arguments: list[Any] = [
        [np.frombuffer(os.fsencode(path), dtype=np.uint8) for path in paths],
        np.ascontiguousarray(first.box[:, :2], dtype=np.int32),
        np.ascontiguousarray(first.box[:, 2:], dtype=np.int32),
        first.flip.astype(np.int32),
    ]
    for geometry, side in zip(geometries, sides, strict=True):
        position = (geometry.offset / np.maximum(geometry.size - side, 1)).astype(np.float32)
        arguments += [geometry.size.astype(np.float32), *map(np.ascontiguousarray, position.T)]
    return arguments
