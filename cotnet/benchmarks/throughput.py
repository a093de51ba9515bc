"""Images per second of whole nets: `python -m cotnet.benchmarks.throughput [--json FILE] [--plot FILE] ...`.

The nets of a group (the models and their peer, in each memory format asked for) are in memory together and take turns,
so that all meet the same machine; medians. `ratio` is our images per second over the peer's; above 1 is faster.
On a GPU: --dtype bf16 --format channels_last --compile.
"""

import sys
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch

from cotnet.benchmarks import growth, meters, nets, report
from cotnet.commands.program import one_line
from cotnet.errors import InputError


def measure(works: Sequence[nets.Work], rounds: int, device: torch.device) -> list[dict[str, Any]]:
    """A record per work; one turn each to warm up (and compile), then `rounds` in turns."""
    all_nets = [nets.Net(work, device) for work in works]
    seconds: list[list[float]] = [[] for _ in works]
    for turn in range(rounds + 1):
        for net, times in zip(all_nets, seconds, strict=True):
            started = meters.now(device)
            net.step()
            if turn:
                times.append(meters.now(device) - started)
    return [
        {
            **work.record(device),
            "milliseconds": 1000 * median(times),
            "images_per_second": work.batch / median(times),
        }
        for work, times in zip(works, seconds, strict=True)
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write; exits with 2 and one line for settings that cannot be."""
    options = nets.parser("throughput", "Images per second of whole nets.")
    options.add_argument("--rounds", type=int, default=5, help="turns of each net (%(default)s)")
    given = options.parse_args(arguments)
    with one_line(keep=False):
        if given.rounds < 1:
            raise InputError(f"--rounds {given.rounds} must be at least 1")
        rows = []
        for works in nets.groups(given):
            found = measure(works, given.rounds, nets.device())
            rows += nets.compared(
                found, given.peer, lambda ours, theirs: ours["images_per_second"] / theirs["images_per_second"]
            )
            sys.stderr.write(f"{works[0].name}, batch {works[0].batch}, {works[0].size} px\n")
    report.print_table(rows)
    growth.keep(given, rows, "images_per_second", "images/s")


if __name__ == "__main__":
    main()
