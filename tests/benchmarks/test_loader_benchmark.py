"""python -m cotnet.benchmarks.loader on a few photographs, as a person runs it."""

import itertools
import json
import time

import pytest
import torch
from photographs import make_imagenet
from PIL import Image
from programs import run_process

from cotnet.benchmarks.common import EpochFigures, cpu_seconds
from cotnet.benchmarks.loader import LOADERS, PEERS, LoaderTask, peer_record, timed_epoch


@pytest.mark.slow
@pytest.mark.long
def test_records_table_and_plot(tmp_path):
    small = ["--images", "4", "--batch", "2", "--size", "32", "--rounds", "1", "--workers", "1", "--entries", "1000"]
    small += ["--only", "randaug", "start"]
    command = ["-m", "cotnet.benchmarks.loader", *small, "--json", "out/loader.json", "--plot", "out/loader.png"]
    done = run_process(*command, cwd=tmp_path)
    content = json.loads((tmp_path / "out" / "loader.json").read_text())
    assert content["machine"]["versions"]["torch"] == str(torch.__version__).split("+")[0]
    peers = [(record["name"], record["peer"]) for record in content["records"]]
    assert peers == [("loader/randaug", peer) for peer in PEERS] + [("loader/start", "directory walk")]
    for record in content["records"][:-1]:
        assert min(record["images_per_second"], record["cpu_ms_per_image"]) > 0
        figure = record["ratio_of"]
        assert record["ratio"] == pytest.approx(record[figure] / record[f"peer_{figure}"])
    start = content["records"][-1]
    assert start["ratio"] == start["seconds"] / start["peer_seconds"]
    assert all(peer in done.stdout for _, peer in peers)
    with Image.open(tmp_path / "out" / "loader.png") as plot:
        assert min(plot.size) > 100


def test_everybody_gives_the_same_images_in_evaluation(tmp_path):
    """Equal means of the normalised floats: what is timed is the same work."""
    make_imagenet(tmp_path, classes=2, train=4, val=1)
    task = LoaderTask(name="val", batch_size=4, image_size=48, workers=1, device=torch.device("cpu"))
    means = {}
    for name, make in LOADERS.items():
        with make(tmp_path / "train", task) as epoch:
            batches = list(epoch(0))
        assert sum(map(len, batches)) == 8
        assert all(batch.dtype == torch.float32 for batch in batches)
        means[name] = torch.cat(batches).mean((1, 2, 3))
    for name, mean in means.items():
        torch.testing.assert_close(mean, means["torchvision PIL"], rtol=0, atol=0.01, msg=name)


def test_cpu_time_is_that_of_the_work():
    def busy(_epoch):
        until = time.process_time() + 0.2
        while time.process_time() < until:
            pass
        time.sleep(0.2)
        yield torch.zeros(10)

    before = cpu_seconds()
    figures = timed_epoch(busy, itertools.count(), torch.device("cpu"))
    assert figures.cpu_ms_per_image == pytest.approx(20, abs=3)
    assert figures.images_per_second < 10 / 0.4
    assert cpu_seconds() - before == pytest.approx(0.2, abs=0.05)


def test_ratios_are_medians_of_rounds():
    ours, theirs = [(30, 2), (20, 2), (50, 3)], [(10, 4), (20, 4), (25, 4)]
    ours, theirs = ([EpochFigures(*figures) for figures in each] for each in (ours, theirs))
    record = peer_record("loader/plain", "timm", ours, theirs)
    assert (record["ratio"], record["images_per_second"], record["peer_images_per_second"]) == (2, 30, 20)
    assert peer_record("loader/val", "timm", ours, theirs)["ratio"] == 0.5
