"""Peak memory of whole nets: `python -m cotnet.benchmarks.memory [--json FILE] [--plot FILE] ...`.

`peak_bytes` is what a step of training (or an inference) holds at its fullest, weights, gradients, momentum and images
included; `ratio` is ours over the peer's, below 1 is less.
"""

import sys
from collections.abc import Sequence
from typing import Any

import torch

from cotnet.benchmarks import growth, meters, nets, report
from cotnet.commands.program import one_line


def measure(work: nets.Work, device: torch.device) -> dict[str, Any]:
    """The record of one net; its second step, when the optimizer's state exists."""
    net = nets.Net(work, device)
    net.step()
    state = [value for values in net.optimizer.state.values() for value in values.values() if torch.is_tensor(value)]
    held = meters.size(*net.model.parameters(), *net.model.buffers(), *state, net.images, net.targets)
    return {**work.record(device), "peak_bytes": held + meters.peak_bytes(device, net.step)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write; exits with 2 and one line for settings that cannot be."""
    given = nets.parser("memory", "Peak memory of whole nets.").parse_args(arguments)
    rows: list[dict[str, Any]] = []
    with one_line(keep=False):
        for works in nets.groups(given):
            found = [measure(work, nets.device()) for work in works]
            rows += nets.compared(found, given.peer, lambda ours, theirs: ours["peak_bytes"] / theirs["peak_bytes"])
            sys.stderr.write(f"{works[0].name}, batch {works[0].batch}, {works[0].size} px\n")
    rows = [{**row, "peak_mib": row["peak_bytes"] / 2**20} for row in rows]
    report.print_table(rows)
    growth.keep(given, rows, "peak_mib", "MiB")


if __name__ == "__main__":
    main()
