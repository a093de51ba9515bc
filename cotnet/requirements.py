"""The packages of the extra `programs`: a program that lacks one ends here with one line."""

import sys
from importlib.util import find_spec

from cotnet.errors import WRONG_INPUT

NEEDED = ("hydra", "matplotlib", "omegaconf", "rich", "scipy", "wandb")


def _is_installed(name: str) -> bool:
    found = find_spec(name)
    return found is not None and found.origin is not None  # a run's folder `wandb` is no package


if MISSING := [name for name in NEEDED if not _is_installed(name)]:
    print(f"error: not installed: {', '.join(MISSING)}; run make setup", file=sys.stderr)  # noqa: T201
    sys.exit(WRONG_INPUT)
