"""What a machine needs to build code at run time. Triton compiles a launcher in C for each kernel, eager or not."""

import os
import shutil
import sysconfig
from collections.abc import Sequence
from pathlib import Path


def missing_compiler(variable: str, names: Sequence[str]) -> str:
    """Why there is no compiler: neither the one that `variable` names nor one of `names`; empty if there is one."""
    given = os.environ.get(variable)
    if any(shutil.which(name) for name in ([given] if given else names)):
        return ""
    return f"{variable}={given} is not there" if given else f"neither {' or '.join(names)} nor {variable} is there"


def missing_for_kernels() -> str:
    """What Triton's launcher needs and this machine lacks, with the remedy; empty if it lacks nothing."""
    if why := missing_compiler("CC", ("gcc", "clang")):
        return f"a C compiler ({why}); install one"
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")  # as Triton looks for it
    header = Path(sysconfig.get_paths(scheme=scheme)["include"]) / "Python.h"
    return "" if header.exists() else f"Python's headers ({header} is not there); install them"
