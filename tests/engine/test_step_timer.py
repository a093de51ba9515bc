import mmap
import time

import torch

from cotnet.engine.distributed import Ranks
from cotnet.engine.step import _hits
from cotnet.engine.step_timer import StepTimer, memory

TWO = Ranks(rank=0, world_size=2, device=torch.device("cpu"))


def test_step_times_and_the_wait_for_data_share_the_timer():
    def slow(count):
        for number in range(count):
            time.sleep(0.02)
            yield number

    timer = StepTimer()
    for number in timer.timed(slow(20)):
        time.sleep(0.2 if number == 7 else 0.005)
        timer.step_done()
    figures = timer.figures(64, TWO)
    elapsed = sum(timer.step_seconds)
    assert 20 * 0.025 + 0.195 <= elapsed < 5
    assert abs(figures["images_per_second"] * elapsed / (20 * 64) - 1) < 0.2
    assert figures["images_per_second_per_device"] * 2 == figures["images_per_second"]
    assert 20 * 0.02 <= figures["data_wait"] * elapsed < elapsed - 20 * 0.005
    assert 25 <= figures["step_ms_p50"] < figures["step_ms_p95"] == 1000 * max(timer.step_seconds)
    timer.reset()
    assert (timer.step_seconds, timer.waited) == ([], 0.0)


def test_percentiles_of_the_steps():
    timer = StepTimer()
    timer.step_seconds = [number / 1000 for number in range(99, -1, -1)]
    figures = timer.figures(1, TWO)
    assert (figures["step_ms_p50"], figures["step_ms_p95"]) == (50, 95)
    timer.step_seconds = [0.003]
    figures = timer.figures(1, TWO)
    assert (figures["step_ms_p50"], figures["step_ms_p95"]) == (3, 3)


def test_memory_is_what_the_process_has_resident():
    before = memory(torch.device("cpu"))
    block = mmap.mmap(-1, 100_000_000)  # torch may be given what this process has freed before
    block[:: mmap.PAGESIZE] = bytes(len(range(0, len(block), mmap.PAGESIZE)))
    assert 0.9 * len(block) < memory(torch.device("cpu")) - before < 1.5 * len(block)
    assert 20e6 < before < 20e9


def test_hits_are_those_of_the_heaviest_class_where_images_are_mixed():
    logits = torch.tensor([[1.0, 3.0, 2.0], [5.0, 0.0, 1.0], [0.0, 0.0, 9.0], [0.0, 1.0, 0.0]])
    assert _hits(logits, torch.tensor([1, 0, 1, 0])) == 50
    mixed = torch.tensor([[0.4, 0.6, 0.0], [0.2, 0.0, 0.8], [0.0, 0.0, 1.0], [0.3, 0.7, 0.0]])
    assert _hits(logits, mixed) == 75
