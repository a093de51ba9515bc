"""The DALI loader: DALI reads and decodes, on the CPU only the crop box, on the GPU the whole image.

On the CPU `resize` makes the region smaller; its pixels equal torchvision's for tensors. On the GPU DALI cuts out and
resizes. Decoding apart, those pixels equal the torchvision loader's within one grey level (bilinear) or eight (bicubic:
PIL clips between its two passes). Only the outermost row and column (bicubic: two) of a reduced region differ by up to
16: an eighth of the filter's weight lies outside, where DALI repeats the outermost pixel and PIL renormalises.
Evaluation does not see them if the resized image exceeds the crop by two pixels (bicubic: four), as it does for crop
ratios up to 0.98 at 224 px.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Annotated, Any, Final, NamedTuple, TypeVar

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types

from cotnet.errors import DataError
from cotnet.settings import Setting
from data.loading.crops import Geometry
from data.loading.plan import Batch, BatchPlan, Prefetch, to_device
from data.loading.resize import resize_all
from data.sets.image_file import damaged, decoding_error, image_size
from data.sets.image_set import ImageSet

_INTERPOLATIONS: Final = {"bilinear": types.INTERP_LINEAR, "bicubic": types.INTERP_CUBIC}
_INPUTS: Final = (  # (type, dimensions) of each array of `_arguments`; the CPU's graph takes the first three
    (types.UINT8, 1),  # path
    (types.INT32, 1),  # box: top, left
    (types.INT32, 1),  # box: height, width
    (types.FLOAT, 1),  # size after resizing: height, width
    (types.FLOAT, 0),  # crop: top as a share of the height outside the crop
    (types.FLOAT, 0),  # crop: left, likewise
    (types.INT32, 0),  # mirror
)


def _inputs(source: Callable[[], list[Any]], count: int) -> Any:
    dtypes, ndims = zip(*_INPUTS[:count], strict=True)
    return fn.external_source(source, num_outputs=count, batch=True, dtype=list(dtypes), ndim=list(ndims))


_DECODING: Final[dict[str, Any]] = {
    "output_type": types.RGB,
    "adjust_orientation": False,  # as all others: ImageNet has 139 images with an EXIF orientation
    "jpeg_fancy_upsampling": True,  # as libjpeg does on the CPU
    "affine": False,  # else the ranks of one socket's GPUs would pin their threads to the same first cores
}


@pipeline_def(exec_dynamic=True)
def _regions(source: Callable[[], list[Any]]) -> Any:
    """The CPU's graph: decoded regions, (height, width, 3) uint8 each."""
    path, start, shape = _inputs(source, 3)
    return fn.decoders.image_slice(fn.io.file.read(path), start=start, shape=shape, axes=(0, 1), **_DECODING)


@pipeline_def(exec_dynamic=True)
def _crops(source: Callable[[], list[Any]], device: str, interpolation: str, side: int) -> Any:
    """The GPU's graph: finished images (n, 3, side, side) uint8. device: mixed (the GPU), in tests cpu."""
    path, start, shape, size, top, left, mirror = _inputs(source, len(_INPUTS))
    # Whole images: nvImageCodec 0.9.0, which DALI 2.4 requires, is reported to crash or fail on regions
    # (github.com/NVIDIA/nvImageCodec/issues/55).
    whole = fn.decoders.image(fn.io.file.read(path), device=device, **_DECODING)
    region, kind = fn.slice(whole, start=start, shape=shape, axes=(0, 1)), _INTERPOLATIONS[interpolation]
    images = fn.resize(region, size=size, interp_type=kind, antialias=True, subpixel_scale=False)
    crop = {"crop": (side, side), "crop_pos_y": top, "crop_pos_x": left, "rounding": "round", "mirror": mirror}
    return fn.crop_mirror_normalize(images, **crop, dtype=types.UINT8, output_layout="CHW")


@pipeline_def(exec_dynamic=True, batch_size=1, num_threads=1, prefetch_queue_depth=1)
def _whole_image(source: Any, device: str) -> Any:
    path = fn.external_source(source, batch=True, dtype=types.UINT8, ndim=1)
    return fn.decoders.image(fn.io.file.read(path), device=device, **_DECODING)


_T = TypeVar("_T")


class _PlannedBatch(NamedTuple):
    """A batch on its way through DALI."""

    indices: np.ndarray
    geometry: Geometry
    arguments: list[Any]


class DaliLoader:
    """A BatchLoader. With a CUDA device, DALI also decodes and resizes there."""

    def __init__(
        self,
        image_set: ImageSet,
        plan: BatchPlan,
        *,
        device: torch.device,
        interpolation: str,
        threads: Annotated[int, Setting("CPU threads per rank", least=1, most=1024)],
        prefetch: Prefetch,
    ) -> None:
        self._set, self._plan, self._device, self._interpolation = image_set, plan, device, interpolation
        known = image_set.sizes
        self._sizes = np.zeros((len(image_set.files), 2), dtype=np.int64) if known is None else known  # 0: not read yet
        self._prefetch = prefetch
        self._workers = ThreadPoolExecutor(threads, thread_name_prefix="loader-images")
        self._drawer = ThreadPoolExecutor(1, thread_name_prefix="loader-draws")
        self._finisher = ThreadPoolExecutor(1, thread_name_prefix="loader-batches")
        self._prepared: Iterator[Future[_PlannedBatch]] = iter(())
        self._finished: Iterator[Future[tuple[torch.Tensor, np.ndarray]]] = iter(())
        self._in_flight: deque[_PlannedBatch] = deque()  # the batches DALI works on
        self._failure: Exception | None = None
        self._on_gpu = device.type == "cuda"
        settings = {"batch_size": plan.rank_batch, "num_threads": threads}
        if self._on_gpu:
            settings |= {"device_id": device.index or 0, "prefetch_queue_depth": prefetch}
            self._pipeline = _crops(self._source, "mixed", interpolation, plan.image_size, **settings)
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
            yield Batch(images, to_device(targets, self._device), torch.from_numpy(indices))

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

    def _finish(self) -> tuple[torch.Tensor, np.ndarray]:
        """Images, on the device, and indices of the next batch."""
        made = self._run()
        indices, geometry, _ = self._in_flight.popleft()
        if self._on_gpu:
            return torch.from_dlpack(made.as_tensor()), indices  # no copy: the dynamic executor gives up the buffer
        regions = [torch.from_dlpack(region) for region in made]
        side = self._plan.image_size
        kind, pool = self._interpolation, self._workers
        return resize_all(regions, geometry, side=side, interpolation=kind, pool=pool), indices

    def _run(self) -> Any:
        """DALI's output for the next batch."""
        stream = torch.cuda.current_stream(self._device) if self._on_gpu else None
        try:
            if self._failure is None:
                return self._pipeline.run(stream)[0]
        except RuntimeError as error:
            self._failure = self._culprit() or error.with_traceback(None)  # frames would keep DALI's threads alive
        raise self._failure

    def _prepare(self, epoch: int, batch: int) -> _PlannedBatch:
        indices = self._plan.indices(epoch, batch)
        files = indices % len(self._set.files)
        paths = [os.fspath(self._set.path(file)) for file in files]
        for file, size in self._workers.map(self._read_size, {file for file in files if not self._sizes[file, 0]}):
            self._sizes[file] = size
        geometry = self._plan.geometry(epoch, indices, self._sizes[files])
        return _PlannedBatch(indices, geometry, _arguments(paths, geometry, self._plan.image_size))

    def _read_size(self, file: int) -> tuple[int, tuple[int, int]]:
        return file, image_size(self._set.path(file))

    def _source(self) -> list[Any]:
        work = next(self._prepared).result()  # StopIteration ends DALI's epoch
        self._in_flight.append(work)
        return work.arguments if self._on_gpu else work.arguments[:3]

    def _culprit(self) -> DataError | None:
        """The first image in flight that does not decode alone: DALI's errors seldom name the file.

        PIL first, whose reasons are short; then DALI, for files that only DALI refuses.
        """
        paths = [self._set.path(index) for work in self._in_flight for index in work.indices]
        for path in paths:
            if error := decoding_error(path):
                return damaged(path, error)
        encoded = iter([[np.frombuffer(os.fsencode(path), dtype=np.uint8)] for path in paths])
        on_gpu = {"device_id": self._device.index or 0} if self._on_gpu else {"device_id": None}
        pipeline = _whole_image(lambda: next(encoded), "mixed" if self._on_gpu else "cpu", **on_gpu)
        for path in paths:
            try:
                pipeline.run()
            except RuntimeError:
                return damaged(path, ValueError("DALI cannot decode it"))
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


def _arguments(paths: list[str], geometry: Geometry, side: int) -> list[Any]:
    """One array, or list of arrays, per entry of _INPUTS."""
    outside = np.maximum(geometry.size - side, 1)
    position = (geometry.offset / outside).astype(np.float32)
    return [
        [np.frombuffer(os.fsencode(path), dtype=np.uint8) for path in paths],
        np.ascontiguousarray(geometry.box[:, :2], dtype=np.int32),
        np.ascontiguousarray(geometry.box[:, 2:], dtype=np.int32),
        geometry.size.astype(np.float32),
        np.ascontiguousarray(position[:, 0]),
        np.ascontiguousarray(position[:, 1]),
        geometry.flip.astype(np.int32),
    ]
