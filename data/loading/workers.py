"""Whole batches made by worker processes: what the loaders that decode by PIL are built on."""

import gc
import warnings
from collections.abc import Callable, Iterator
from typing import Annotated, Generic, TypeVar

from torch.utils.data import DataLoader, Dataset

from cotnet.errors import DataError
from cotnet.settings import Setting

T = TypeVar("T")
Threads = Annotated[int, Setting("worker processes per rank; 0: in the training process", least=0, most=1024)]


class WorkerBatches(Generic[T]):
    """The batches of a dataset that gives a whole batch, or the DataError about it, for (epoch, batch).

    `count`: batches of an epoch. `pinned`: in memory that a GPU copies from. A dataset returns errors, since a worker
    would wrap a raised one in its own traceback.
    """

    def __init__(
        self,
        dataset: Dataset[T | DataError],
        count: Callable[[int], int],
        *,
        threads: int,
        prefetch: int,
        pinned: bool,
    ) -> None:
        self._count = count
        self._numbers: list[tuple[int, int]] = []  # (epoch, batch) of each batch of the epoch
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="This DataLoader will create")  # `threads` is the user's choice
            self._loader: DataLoader[T | DataError] = DataLoader(
                dataset,
                batch_size=None,
                sampler=self._numbers,
                num_workers=threads,
                prefetch_factor=prefetch if threads else None,
                persistent_workers=threads > 0,
                pin_memory=pinned,
                worker_init_fn=lambda _: gc.freeze(),
                multiprocessing_context="fork" if threads else None,  # spawning takes seconds per worker
            )
            if threads:  # collect and freeze: a DALI pipeline's destructor waits for threads that a fork does not have
                gc.collect()
            self._iterator: Iterator[T | DataError] = iter(self._loader)  # an empty epoch starts the workers

    def batches(self, epoch: int, first: int) -> Iterator[T]:
        """The batches of an epoch, from batch `first` on. A new call ends the previous epoch. Raises DataError."""
        self._numbers[:] = ((epoch, batch) for batch in range(first, self._count(epoch)))
        self._iterator = iter(self._loader)
        for _ in range(len(self._numbers)):
            batch = next(self._iterator)  # no local name holds the iterator, so close() can end the workers
            if isinstance(batch, DataError):
                raise batch
            yield batch

    def close(self) -> None:
        """End the worker processes. The batches cannot be used afterwards."""
        del self._iterator, self._loader
