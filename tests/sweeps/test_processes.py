"""Shares of a machine and exit codes, by value."""

import pytest

from cotnet.errors import InputError
from cotnet.sweeps.processes import killed_by, outcome, shares


def test_trials_side_by_side_get_equal_shares():
    def split(parallel, gpus, cores):
        return [(share.gpus, sorted(share.cores)) for share in shares(parallel, gpus, cores)]

    assert split(2, ["3", "5", "GPU-a", "7", "1"], [0, 1]) == [(("3", "5"), [0, 1]), (("GPU-a", "7"), [0, 1])]
    assert split(2, [], [1, 4, 5, 6, 7]) == [((), [1, 4]), ((), [5, 6])]
    with pytest.raises(InputError) as error:
        shares(3, ["0", "1"], [0, 1, 2, 3])
    assert str(error.value) == "sweep.parallel=3 but 2 GPUs are visible; use at most 2"


def test_exit_codes_and_signals_are_states():
    assert [outcome(code) for code in (0, 1, 2, 75, -9, -15)] == ["finished", *["failed"] * 2, *["interrupted"] * 3]
    assert [killed_by(code) for code in (0, 75, -9, -15)] == [
        *("", "", "killed by SIGKILL (often because memory ran out)", "killed by SIGTERM")
    ]
