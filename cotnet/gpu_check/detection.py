"""Detectors: a run that is cut, RoIAlign's gradient, and training beside torchvision's reference script."""

from collections.abc import Iterator
from functools import partial
from typing import Final

import torch

from cotnet.benchmarks import common
from cotnet.engine.determinism import set_algorithms
from cotnet.gpu_check.speed import read_records
from cotnet.gpu_check.stage import Bench, Claim, run_python
from cotnet.ops.roi_align import roi_align

POOL_RATIO: Final = 1.5  # time of RoIAlign with our gradient to that with torchvision's
ERROR: Final = 1e-4  # largest error of the gradient, to its largest entry: sums of float32 in another order


def detection(bench: Bench) -> Iterator[Claim]:
    """Mask R-CNN: exact, and not slower than its peers."""
    shared = ["train.precision=bf16", "train.channels_last=true"] if bench.gpu else ["train.epochs=2"]
    cuts = ["--task", "detection", "--ranks", "1", "--cuts", "2" if bench.gpu else "1"]
    folder = str(bench.folder / "detection")
    out = run_python("-m", "cotnet.verify_resume", "--folder", folder, *cuts, *shared, seconds=300)
    yield Claim("a run of Mask R-CNN that is cut continues bit for bit", out.strip().splitlines()[-1], passed=True)
    yield from pooling(bench)
    file = bench.folder / "dense.json"
    large, small = ["--rounds", "3", "--steps", "10", "--images", "64", "--workers", "6"], ["--short-side", "64"]
    small += ["--rounds", "1", "--steps", "1", "--images", "4"]
    program = ("-m", "cotnet.benchmarks.dense", "--heads", "mask_rcnn", "--json", str(file))
    run_python(*program, *(large if bench.gpu else small), seconds=300)
    for row in read_records(file):
        if row["name"] == "dense/train":
            figure = (
                f"{row['images_per_second']:.3g} against {row['peer_images_per_second']:.3g}, ratio {row['ratio']:.2f}"
            )
            claim = f"{row['head']}: images/s in training, float32, at least those of torchvision's reference"
            yield Claim(claim, figure, bench.on_gpu(row["ratio"] >= 1))


def pooling(bench: Bench) -> Iterator[Claim]:
    """RoIAlign with its gradient: 512 boxes for each of two images of 800 x 1216 pixels, on the finest level."""
    images, channels, height, width, count = (2, 256, 200, 304, 1024) if bench.gpu else (1, 4, 12, 16, 4)
    drawn = torch.Generator().manual_seed(0)
    features = torch.randn(images, channels, height, width, generator=drawn).to(bench.device).requires_grad_()
    corner = 4 * torch.rand(count, 2, generator=drawn) * torch.tensor([width, height]) * 0.8
    side = 16 + torch.rand(count, 2, generator=drawn) * (96 if bench.gpu else 16)
    image = torch.arange(images).repeat_interleave(count // images)[:, None]
    rois = torch.cat([image, corner, corner + side], 1).to(bench.device)
    upstream = torch.randn(count, channels, 7, 7, generator=drawn).to(bench.device)

    def gradient(form: str) -> torch.Tensor:
        set_algorithms(bench.device, deterministic=form == "ours", strict=True)
        pooled = roi_align(features, rois, side=7, scale=0.25)
        return torch.autograd.grad(pooled, features, upstream)[0]

    first, exact = gradient("ours"), gradient("theirs")
    error = float((first - exact).abs().max() / exact.abs().max())
    yield Claim(f"RoIAlign's gradient is torchvision's within {ERROR:g}", f"{error:.1e}", error < ERROR)
    differ = sum(not torch.equal(gradient("ours"), first) for _ in range(20 if bench.gpu else 1))
    yield Claim("RoIAlign's gradient has the same bits every time", f"{differ} differ", not differ)
    turns = {form: partial(common.seconds, partial(gradient, form), bench.device) for form in ("ours", "theirs")}
    took = {form: min(found) for form, found in common.in_turns(turns, 20 if bench.gpu else 1).items()}
    figure = f"{1000 * took['ours']:.2f} ms against {1000 * took['theirs']:.2f} ms"
    claim = f"RoIAlign and its gradient take at most {POOL_RATIO} times torchvision's, which is not deterministic"
    yield Claim(claim, figure, bench.on_gpu(took["ours"] <= POOL_RATIO * took["theirs"]))
