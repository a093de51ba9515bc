"""Make image sets: `python -m data.prepare SET --help`, where SET is

- digits: scikit-learn's 1,797 handwritten digits, without a download;
- fashion_mnist: from its four idx files;
- imagenet: from the three official archives;
- shapes: drawn sets for detection and segmentation, in COCO's and in ADE20K's layout;
- subset: some classes, or a share, of a set as a CSV list without copies.

A folder that another process writes is refused. Exit codes: 0 done or already there; 2 wrong input, on one line; 75
interrupted, the same command continues.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from data.prepare.archives import DEVKIT, TRAIN, VAL, Encoding, imagenet
from data.prepare.commands import exit_code, positive, processes
from data.prepare.shapes import shapes
from data.prepare.small_sets import digits, fashion_mnist, subset


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m data.prepare", description="Make an image set.")
    sets = parser.add_subparsers(dest="set", required=True)
    command = sets.add_parser("digits", help="scikit-learn's 1,797 handwritten digits")
    command.add_argument("--out", type=Path, default=Path("datasets/digits"), help="folder to write (%(default)s)")
    command.set_defaults(make=lambda given: digits(given.out))
    command = sets.add_parser("fashion_mnist", help="from the four published idx files")
    command.add_argument("--source", type=Path, required=True, help="folder of the idx files, packed (.gz) or not")
    command.add_argument("--out", type=Path, default=Path("datasets/fashion_mnist"), help="folder to write")
    command.set_defaults(make=lambda given: fashion_mnist(given.source, given.out))
    command = sets.add_parser("imagenet", help="from the three official archives")
    command.add_argument("--archives", type=Path, required=True, help=f"folder of {TRAIN}, {VAL} and {DEVKIT}")
    command.add_argument("--out", type=Path, required=True, help="folder to write; a killed run is continued")
    command.add_argument("--workers", type=processes, default=os.cpu_count() or 1, help="processes (%(default)s)")
    command.add_argument(
        "--resize", type=positive, nargs="?", const=500, help="store larger images with this shorter side (%(const)s)"
    )
    quality = partial(positive, most=95)  # above, a JPEG only grows
    command.add_argument("--quality", type=quality, default=90, help="JPEG quality of resized images (%(default)s)")
    command.set_defaults(make=_imagenet)
    command = sets.add_parser("shapes", help="drawn sets for detection (DIR/coco) and segmentation (DIR/ade)")
    command.add_argument("--out", type=Path, default=Path("datasets/shapes"), help="folder to write (%(default)s)")
    command.add_argument("--images", type=positive, default=240, help="training images (%(default)s)")
    command.add_argument("--val", type=positive, default=60, help="validation images (%(default)s)")
    command.add_argument("--size", type=positive, default=128, help="longer side in pixels (%(default)s)")
    command.set_defaults(make=lambda given: shapes(given.out, images=given.images, val=given.val, size=given.size))
    command = sets.add_parser("subset", help="a CSV list of a part of a set, without copies")
    command.add_argument("--root", type=Path, required=True, help="the set: a folder or a list")
    command.add_argument("--out", type=Path, required=True, help="the CSV file to write; give it as data.root")
    command.set_defaults(make=lambda given: subset(given.root, given.out, classes=given.classes, share=given.share))
    part = command.add_mutually_exclusive_group(required=True)
    part.add_argument("--classes", type=lambda text: text.split(","), help="names, separated by commas")
    part.add_argument("--share", type=float, help="share of each class's training images, e.g. 0.1")
    given = parser.parse_args(arguments)

    def work() -> int:
        sys.stdout.write(f"{given.make(given)}\n")
        return 0

    return exit_code(work, given.out)


def _imagenet(given: argparse.Namespace) -> str:
    encoding = Encoding(given.resize, given.quality) if given.resize else None
    return imagenet(given.archives, given.out, workers=given.workers, encoding=encoding)


if __name__ == "__main__":
    sys.exit(main())
