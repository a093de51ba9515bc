"""One evaluation of each kind of weights, shared by the tests of pages."""

import pytest
from programs import once, run

from cotnet import compare


@pytest.fixture(scope="session")
def evaluated(shared, uncut):
    """Folders `ema` and `raw`: evaluations of one run; `ema` also holds their comparison."""

    def make(folder):
        for weights in ("ema", "raw"):
            given = [f"checkpoint={uncut(1)}/checkpoints/last.pt", f"weights={weights}", f"output_dir={weights}"]
            run("evaluate.py", *given, cwd=folder)
        compare.main([str(folder / "ema"), str(folder / "raw")])

    return once(shared, "evaluated", make)
