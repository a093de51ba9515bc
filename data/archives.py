"""ImageNet's official archives (ILSVRC2012) -> train/<synset>/ and val/<synset>/.

The training archive is a tar of one tar per synset, the validation archive one flat tar; the development kit says which
class each validation image has and what the synsets mean. Every class folder appears at once or not at all, so that a
killed run continues where it was.
"""

import io
import json
import shutil
import sys
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Final, NamedTuple

from PIL import Image
from rich.progress import track

from data.samples import WORDS, DataError, list_folders

TRAIN: Final = "ILSVRC2012_img_train.tar"
VAL: Final = "ILSVRC2012_img_val.tar"
DEVKIT: Final = "ILSVRC2012_devkit_t12.tar.gz"
IMAGENET: Final = {"train": 1_281_167, "val": 50_000}


class Encoding(NamedTuple):
    """Images whose shorter side is above `side` are stored smaller, as JPEG of this quality."""

    side: int
    quality: int


class _Folder(NamedTuple):
    """One class folder to write. members: (name, offset, size) in the archive; for training one tar of all images."""

    archive: Path
    target: Path
    members: tuple[tuple[str, int, int], ...]
    encoding: Encoding | None


def imagenet(
    archives: Path, out: Path, *, workers: int, encoding: Encoding | None, expected: dict[str, int] | None = None
) -> str:
    """Write the set and out/words.json; returns a line for people.

    expected: images per split, ImageNet's own where None. Raises DataError for missing or damaged archives and for
    other counts.
    """
    for name in (TRAIN, VAL, DEVKIT):
        if not (archives / name).is_file():
            raise DataError(f"{archives / name}: no such file; the three archives come from image-net.org's downloads")
    try:
        synsets, words = _devkit(archives / DEVKIT)
        folders = [*_train_folders(archives / TRAIN, out, encoding)]
        folders += _val_folders(archives / VAL, out, synsets, encoding)
    except (tarfile.TarError, EOFError, KeyError) as error:
        raise DataError(f"{archives}: damaged or foreign archives ({error}); download them again") from error
    missing = [folder for folder in folders if not folder.target.exists()]
    with ProcessPoolExecutor(workers, mp_context=get_context("forkserver")) as pool:
        for _ in track(
            pool.map(_write_folder, missing),
            "extracting",
            total=len(missing),
            disable=not sys.stdout.isatty(),
            transient=True,
        ):
            pass
    (out / WORDS).write_text(json.dumps(words, indent=0, ensure_ascii=False))
    counts = {split: sum(map(len, list_folders(out, split).values())) for split in IMAGENET}
    if counts != (expected or IMAGENET):
        raise DataError(f"{out}: holds {counts}, not {expected or IMAGENET} images; remove it and check the archives")
    return f"{out}: {counts['train']} training and {counts['val']} validation images of {len(words)} classes"


def _devkit(path: Path) -> tuple[dict[int, str], dict[str, str]]:
    """The synset of each validation image, by its number from 1, and the words of each synset."""
    try:
        from scipy.io import loadmat  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        raise DataError("the development kit is read with scipy, which is missing; pip install scipy") from error
    with tarfile.open(path) as kit:
        files = {Path(member.name).name: member for member in kit.getmembers()}
        meta = loadmat(_extract(kit, files["meta.mat"]), squeeze_me=True)["synsets"]
        truth = _extract(kit, files["ILSVRC2012_validation_ground_truth.txt"]).read().split()
    leaves = {int(row["ILSVRC2012_ID"]): row for row in meta if int(row["num_children"]) == 0}
    words = {str(row["WNID"]): str(row["words"]) for row in leaves.values()}
    return {number: str(leaves[int(label)]["WNID"]) for number, label in enumerate(truth, start=1)}, words


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo) -> io.BytesIO:
    found = archive.extractfile(member)
    if found is None:
        raise KeyError(f"{member.name} is no file")
    return io.BytesIO(found.read())


def _train_folders(path: Path, out: Path, encoding: Encoding | None) -> Iterator[_Folder]:
    with tarfile.open(path) as archive:
        for member in archive:
            place = (member.name, member.offset_data, member.size)
            yield _Folder(path, out / "train" / Path(member.name).stem, (place,), encoding)


def _val_folders(path: Path, out: Path, synsets: dict[int, str], encoding: Encoding | None) -> Iterable[_Folder]:
    members = defaultdict(list)
    with tarfile.open(path) as archive:
        for member in archive:
            number = int(Path(member.name).stem.rpartition("_")[2])
            members[synsets[number]].append((Path(member.name).name, member.offset_data, member.size))
    return [_Folder(path, out / "val" / name, tuple(places), encoding) for name, places in members.items()]


def _write_folder(folder: _Folder) -> None:
    """All images of one class, in a hidden folder beside the target that is renamed when complete."""
    partial = folder.target.with_name(f".{folder.target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with folder.archive.open("rb") as archive:
        for name, offset, size in folder.members:
            archive.seek(offset)
            content = archive.read(size)
            if name.endswith(".tar"):
                with tarfile.open(fileobj=io.BytesIO(content)) as images:
                    for image in images:
                        (partial / Path(image.name).name).write_bytes(_encode(_extract(images, image), folder.encoding))
            else:
                (partial / name).write_bytes(_encode(io.BytesIO(content), folder.encoding))
    partial.rename(folder.target)


def _encode(content: io.BytesIO, encoding: Encoding | None) -> bytes:
    """The image as it is, or smaller; one that does not decode stays as it is, for data.check to name."""
    if encoding is None:
        return content.getvalue()
    try:
        with Image.open(content) as image:
            shorter = min(image.size)
            if shorter <= encoding.side:
                return content.getvalue()
            width, height = (round(side * encoding.side / shorter) for side in image.size)
            smaller = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    except (OSError, SyntaxError, ValueError):
        return content.getvalue()
    written = io.BytesIO()
    smaller.save(written, format="JPEG", quality=encoding.quality)
    return written.getvalue()
