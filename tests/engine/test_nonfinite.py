"""An incident names the step, the batch and its images, and what a disk may refuse."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from cotnet.engine.distributed import Ranks
from cotnet.engine.nonfinite import NonFiniteCheck, NotFinite, StepRecord

ALONE = Ranks(rank=0, world_size=1, device=torch.device("cpu"))
FILES = [f"class/{number}.png" for number in range(12)]


def step(number, loss, norm):
    indices = torch.arange(2 * number, 2 * number + 2)
    return StepRecord(
        number, 0, number - 1, 0.1 * number, indices, torch.tensor(loss).double(), torch.tensor(norm).double()
    )


@pytest.mark.parametrize(("figures", "what"), [((math.nan, 1.0), "loss"), ((2.0, math.inf), "gradient")])
def test_incident(tmp_path, figures, what):
    model = torch.nn.Linear(2, 1)
    with torch.no_grad():
        model.bias.fill_(math.nan)
        model.weight.fill_(3.0)
    state = SimpleNamespace(model=model, scaler=torch.amp.GradScaler("cpu", enabled=False))
    watch = NonFiniteCheck()
    watch.steps.extend([step(1, 2.5, 1.0), step(2, *figures), step(3, math.nan, math.nan)])
    with pytest.raises(NotFinite, match=f"the {what} is not finite at step 2") as caught:
        watch.check(ALONE, state, files=FILES, seed=7, folder=tmp_path)
    assert caught.value.batch == (0, 1)
    told = json.loads((tmp_path / "incidents" / "step-000002" / "incident.json").read_text())
    assert (told["step"], told["epoch"], told["batch"], told["seed"], told["what"]) == (2, 0, 1, 7, what)
    assert told["lr"] == pytest.approx(0.2)
    assert told["files"] == [["class/4.png", "class/5.png"]]
    assert [row["loss"] for row in told["steps"]] == [[2.5], [figures[0] if what == "gradient" else None], [None]]
    assert told["parameters_not_finite"] == ["bias"]
    assert told["largest_weight_norms"] == {"weight": pytest.approx(3 * math.sqrt(2))}


def test_finite_steps_are_forgotten(tmp_path):
    watch = NonFiniteCheck()
    watch.steps.append(step(1, 2.5, 1.0))
    watch.check(ALONE, SimpleNamespace(), files=FILES, seed=0, folder=tmp_path)
    assert not watch.steps and not list(tmp_path.iterdir())
