"""RANK and WORLD_SIZE of ranks that torchrun or one srun started. Imports no torch, because `--help` imports this."""

import os
import re


def adopt_slurm() -> None:
    """Sets torchrun's variables for the tasks of one `srun`. Does nothing elsewhere."""
    given = os.environ
    if "RANK" in given or int(given.get("SLURM_STEP_NUM_TASKS", "1")) == 1:
        return
    host = re.match(r"([^,\[]+)(?:\[(\d+))?", given["SLURM_STEP_NODELIST"])  # node[003-010,12] begins with node003
    assert host is not None
    given.update(
        RANK=given["SLURM_PROCID"],
        WORLD_SIZE=given["SLURM_STEP_NUM_TASKS"],
        LOCAL_RANK=given["SLURM_LOCALID"],
        LOCAL_WORLD_SIZE=re.match(r"\d+", given["SLURM_STEP_TASKS_PER_NODE"])[0],  # type: ignore[index]  # 4(x2)
        MASTER_ADDR=given.get("MASTER_ADDR", "".join(part or "" for part in host.groups())),
        MASTER_PORT=given.get("MASTER_PORT", str(20_000 + int(given["SLURM_JOB_ID"]) % 20_000)),
    )


def started_outside() -> bool:
    """Whether torchrun or a cluster launcher started the ranks."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def first_process() -> bool:
    """Whether this process prints and writes for the run: the only process, or rank 0."""
    return int(os.environ.get("RANK", "0")) == 0
