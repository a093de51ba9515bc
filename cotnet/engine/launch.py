"""Starts one process per device, or joins the ranks that torchrun or SLURM started."""

import logging
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing import forkserver, parent_process, resource_tracker
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from typing import TypeAlias, TypeVar

import torch
import torch.distributed as dist
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException, start_processes

from cotnet.engine.rank_environment import adopt_slurm, started_outside
from cotnet.engine.signals import LAUNCHER, STOP_SIGNALS, end_with_parent, stop_request
from cotnet.errors import FAILED, INTERRUPTED, WRONG_INPUT, InputError, RunError

HANGING = (
    "py-spy dump --pid shows where it is; NCCL_DEBUG=INFO, or GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME where the "
    "network is wrong; launch.timeout_minutes where it is only slow"
)
LOST = "lost its connection to another rank"  # our words for gloo's PEER_GONE
PEER_GONE = "[Cc]losed by (?:remote )?peer|[Rr]eset by peer"
T = TypeVar("T")
Outcomes: TypeAlias = "SimpleQueue[tuple[int, int, str]]"  # rank, exit code, error text


def count_ranks(wanted: int | None) -> int:
    """The number of ranks: those already started, `wanted`, or one per visible GPU (one without a GPU)."""
    gpus = torch.cuda.device_count()
    adopt_slurm()
    if started_outside():
        existing = int(os.environ["WORLD_SIZE"])
        if wanted not in (None, existing):
            raise InputError(f"launch.ranks={wanted} but {existing} ranks were started; leave launch.ranks out")
        return existing
    if wanted is not None and 0 < gpus < wanted:
        raise InputError(f"launch.ranks={wanted} but {gpus} GPUs are visible; use at most {gpus}")
    return wanted or max(gpus, 1)


def launch(worker: Callable[[T, dist.Store | None], int], given: T, ranks: int) -> int:
    """Runs `worker(given, store)`, a function of a module, on every rank; returns the largest exit code.

    The first rank that fails ends the others within seconds. Its InputError or RunError is raised here again; any other
    error becomes a RuntimeError with its traceback as text.
    """
    if started_outside() or ranks == 1:
        return worker(given, None)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # it lists what it ends; we say why
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    _start_fork_server()
    outcomes: Outcomes = multiprocessing.get_context("forkserver").SimpleQueue()
    group = ranks, store.port, dict(os.environ)
    processes: list[BaseProcess] = []

    def end_ranks(received: list[int]) -> None:
        """Forwards a stop signal to the ranks; a second Ctrl-C kills them (the last checkpoint stays)."""
        for process in processes:
            (process.kill if received.count(signal.SIGINT) > 1 else process.terminate)()

    with stop_request(end_ranks) as stop:
        given_to_all = worker, given, group, outcomes
        context = start_processes(_rank, given_to_all, nprocs=ranks, join=False, start_method="forkserver")
        processes += context.processes
        if stop.received:  # while they started
            end_ranks(stop.signals)
        try:
            while not context.join(grace_period=3):
                pass
        except (ProcessExitedException, ProcessRaisedException) as error:
            return _failure(error, outcomes, stopped=stop.received)
        code = max(outcomes.get()[1] for _ in range(ranks))
        stop.forward = code == INTERRUPTED
    return code


def _start_fork_server() -> None:
    """Starts the process that ranks are forked from, which imports torch once for all of them.

    It finds modules where this process does, ends with it, and is deaf to stop signals: a cluster may send them to
    every process, and ranks need time to save."""
    multiprocessing.set_forkserver_preload(["cotnet.engine.fork_server"])
    resource_tracker.ensure_running()  # now, because it unblocks signals when it starts
    kept = dict(os.environ)
    os.environ |= {LAUNCHER: str(os.getpid()), "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONSAFEPATH": "1"}
    unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        forkserver.ensure_running()
    except OSError as error:
        folder, remedy = tempfile.gettempdir(), "set TMPDIR to a short path that may be written to, such as /tmp"
        raise InputError(f"ranks cannot start with temporary files in {folder}: {error}; {remedy}") from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
        _replace_environment(kept)


def _replace_environment(variables: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)


def _rank(
    index: int,
    worker: Callable[[T, dist.Store | None], int],
    given: T,
    group: tuple[int, int, dict[str, str]],
    outcomes: Outcomes,
) -> None:
    ranks, port, environment = group
    # A rank without its launcher could wait forever in C code, where no Python handler runs, or write into a folder
    # that another start already uses. The launcher's end ends the fork server, and that ends its ranks.
    end_with_parent(os.getppid(), signal.SIGKILL)
    launcher = parent_process()
    if launcher is None or not launcher.is_alive():  # it died before the call above
        os._exit(INTERRUPTED)
    names = {"RANK": index, "LOCAL_RANK": index, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    _replace_environment(environment | {name: str(value) for name, value in names.items()})
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # the fork server blocks them; some may be waiting
        store = dist.TCPStore("127.0.0.1", port, is_master=False)
        outcomes.put((index, worker(given, store), ""))
    except (InputError, RunError) as error:
        code = WRONG_INPUT if isinstance(error, InputError) else FAILED
        outcomes.put((index, code, str(error)))
        sys.exit(code)
    except KeyboardInterrupt:  # torch would exit with 0, and the other ranks would wait
        sys.exit(INTERRUPTED)
    except Exception:  # a bug: the parent shows its traceback
        outcomes.put((index, FAILED, traceback.format_exc()[-8000:]))
        sys.exit(FAILED)


def _failure(error: ProcessExitedException | ProcessRaisedException, outcomes: Outcomes, *, stopped: bool) -> int:
    """Raises the error of the rank that failed first, not the errors it caused on other ranks."""
    while not outcomes.empty():
        index, code, text = outcomes.get()
        if re.search(f"{LOST}|{PEER_GONE}", text):
            continue
        if code == WRONG_INPUT:
            raise InputError(text)
        if code == FAILED:
            raise RuntimeError(f"rank {index} failed:\n{text}") if "\n" in text else RunError(text)
    if stopped:
        return INTERRUPTED
    killed = "; a rank that is killed often ran out of memory: lower train.batch_size"
    hung = f"; a rank that aborts often timed out waiting for another: {HANGING}"
    hints = {-signal.SIGKILL: killed, -signal.SIGABRT: hung}
    raise RunError(f"{error.msg}{hints.get(getattr(error, 'exit_code', 0), '')}")
