"""Every schedule at points worked out by hand."""

import math

import pytest

from cotnet.engine.schedule import cosine, linear, polynomial, step, triangular

ENDS = {"peak": 1.0, "epochs": 10.0, "warmup_epochs": 2.0, "warmup_start": 0.1, "cooldown_epochs": 0.0, "end": 0.2}
EPOCHS = (0, 1, 2, 5, 10, 11)  # start, in and at the end of the warm-up, the middle, the end, beyond


@pytest.mark.parametrize(
    ("schedule", "shape", "expected"),
    [
        (cosine, {}, [0.1, 0.55, 0.2 + 0.4 * (1 + math.cos(0.2 * math.pi)), 0.6, 0.2, 0.2]),
        (linear, {}, [0.1, 0.55, 0.84, 0.6, 0.2, 0.2]),
        (polynomial, {"power": 2.0}, [0.1, 0.55, 0.712, 0.4, 0.2, 0.2]),
        (triangular, {"peak_epoch": 2.0}, [0.1, 0.55, 1.0, 0.7, 0.2, 0.2]),
        (triangular, {"peak_epoch": 5.0}, [0.1, 0.55, 1.0, 1.0, 0.2, 0.2]),
        (step, {"milestones": (5.0, 10.0), "gamma": 0.1}, [0.1, 0.55, 1.0, 0.1, 0.01, 0.01]),
    ],
)
def test_schedules(schedule, shape, expected):
    assert [schedule(epoch, **ENDS, **shape) for epoch in EPOCHS] == pytest.approx(expected, rel=1e-12)
    longer = {**ENDS, "epochs": 13.0, "cooldown_epochs": 3.0}
    assert [schedule(epoch, **longer, **shape) for epoch in EPOCHS[:4]] == pytest.approx(expected[:4], rel=1e-12)
    assert [schedule(epoch, **longer, **shape) for epoch in (10, 11.5, 13)] == [0.2] * 3


def test_steps_and_no_warm_up():
    shape = {**ENDS, "epochs": 9.0, "warmup_epochs": 0.0, "milestones": (3.0, 6.0), "gamma": 0.1}
    assert [step(epoch, **shape) for epoch in (0, 2.99, 3, 6, 9)] == pytest.approx([1, 1, 0.1, 0.01, 0.01], rel=1e-12)


def test_ffcv_rates():
    """1.7 at epoch 2 of 16, linear to 0."""
    shape = {"peak": 1.7, "epochs": 16.0, "warmup_epochs": 2.0, "warmup_start": 0.0, "cooldown_epochs": 0.0, "end": 0.0}
    rates = [triangular(epoch, **shape, peak_epoch=2.0) for epoch in (0, 1, 2, 9, 15, 16)]
    assert rates == pytest.approx([0, 0.85, 1.7, 0.85, 1.7 / 14, 0], rel=1e-12)


@pytest.mark.parametrize(
    ("schedule", "change", "message"),
    [
        (
            cosine,
            {"warmup_epochs": 10.0},
            "warmup_epochs=10 must be below the run's 10 epochs; set schedule.warmup_epochs=1 or less",
        ),
        (
            cosine,
            {"warmup_epochs": 6.0, "cooldown_epochs": 4.0},
            "warmup_epochs=6 must be below the run's 6 epochs before the cool-down of 4; "
            "set schedule.warmup_epochs=0.6 or less",
        ),
        (
            linear,
            {"cooldown_epochs": 10.0},
            "cooldown_epochs=10 must be below the run's 10 epochs; set schedule.cooldown_epochs=1 or less",
        ),
        (triangular, {"peak_epoch": 10.0}, "peak_epoch=10 must be below 10, where the schedule ends"),
    ],
)
def test_what_does_not_fit_is_refused_at_the_first_step(schedule, change, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        schedule(0, **{**ENDS, **change})
