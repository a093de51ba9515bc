"""ImageNet's official archives (ILSVRC2012) to train/<synset>/ and val/<synset>/.

The training archive is a tar with a tar per synset, the validation archive one flat tar. The development kit holds the
class of each validation image and the words of each synset. Each class folder appears complete or not at all, so a
killed run continues.
"""

import gzip
import io
import json
import shutil
import tarfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from PIL import Image

from cotnet.errors import DataError
from cotnet.files import write_text
from data.prepare.commands import claimed, in_processes
from data.sets.image_set import DECODING_ERRORS
from data.sets.read import WORDS, list_folders

TRAIN: Final = "ILSVRC2012_img_train.tar"
VAL: Final = "ILSVRC2012_img_val.tar"
DEVKIT: Final = "ILSVRC2012_devkit_t12.tar.gz"
IMAGENET: Final = {"classes": 1000, "train": 1_281_167, "val": 50_000}
_ENCODING: Final = ".encoding"  # in the set's folder: how its images are stored


class Encoding(NamedTuple):
    """Store images with a shorter side above `side` pixels smaller, as JPEG of this quality."""

    side: int
    quality: int


class _Folder(NamedTuple):
    """A class folder to write. members: (name, offset, size) in the archive; for training, one tar of all images."""

    archive: Path
    target: Path
    members: tuple[tuple[str, int, int], ...]
    encoding: Encoding | None


def imagenet(
    archives: Path, out: Path, *, workers: int, encoding: Encoding | None, expected: dict[str, int] | None = None
) -> str:
    """Write the set and out/words.json; returns the line for people.

    expected: number of classes and of images per split, by default ImageNet's. Raises DataError for missing or damaged
    archives, other counts, a folder begun with another encoding, and one that another process writes.
    """
    expected = expected or IMAGENET
    for name in (TRAIN, VAL, DEVKIT):
        if not (archives / name).is_file():
            raise DataError(f"{archives / name}: no such file; the three archives come from image-net.org's downloads")
    synsets, words = _development_kit(archives / DEVKIT)

    def of_training(name: str) -> str:
        if name.removesuffix(".tar") not in words:
            raise ValueError(f"{name} is no class of the development kit")
        return name.removesuffix(".tar")

    def of_validation(name: str) -> str:
        return synsets[int(Path(name).stem.rpartition("_")[2])]

    train = _folders(archives / TRAIN, out / "train", encoding=encoding, class_of=of_training)
    val = _folders(archives / VAL, out / "val", encoding=encoding, class_of=of_validation)
    there = {"classes": len(train), "val": sum(len(folder.members) for folder in val)}
    if wrong := {name: count for name, count in there.items() if count != expected[name]}:
        raise DataError(f"{archives}: the archives hold {wrong}, not {expected}; download them again")
    out.mkdir(parents=True, exist_ok=True)
    with claimed(out):
        _record(out, encoding)
        missing = [folder for folder in (*train, *val) if not folder.target.exists()]
        for _ in in_processes(_write_folder, missing, workers=workers, title="extracting"):
            pass
        write_text(out / WORDS, json.dumps(words, indent=0, ensure_ascii=False))
    folders = {split: list_folders(out, split).values() for split in ("train", "val")}
    counts = {"classes": len(folders["train"])} | {split: sum(map(len, found)) for split, found in folders.items()}
    if counts != expected:
        raise DataError(f"{out}: holds {counts}, not {expected}; remove it and check the archives")
    return f"{out}: {counts['train']} training and {counts['val']} validation images of {len(words)} classes"


@contextmanager
def _reading(archive: Path) -> Iterator[None]:
    """Turn whatever a damaged or other archive raises into a DataError with its path."""
    try:
        yield
    except DataError:  # also a ValueError
        raise
    except (tarfile.TarError, EOFError, KeyError, ValueError, zlib.error, gzip.BadGzipFile) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{archive}: damaged, or another archive ({reason}); download it again") from error


def _record(out: Path, encoding: Encoding | None) -> None:
    """Record how images are stored in `out`. Raises DataError if some are stored otherwise."""
    wanted = f"--resize {encoding.side} --quality {encoding.quality}" if encoding else "images as they are"
    path = out / _ENCODING
    present = path.read_text() if path.is_file() else "images as they are" if (out / "train").exists() else wanted
    if present != wanted:
        raise DataError(f"{out}: was begun with {present}, not {wanted}; use the same again, or another --out")
    write_text(path, wanted)


def _development_kit(path: Path) -> tuple[dict[int, str], dict[str, str]]:
    """The synset of each validation image, by number from 1, and the words of each synset."""
    try:
        from scipy.io import loadmat
    except ModuleNotFoundError as error:
        raise DataError("the development kit is read with scipy, which is missing; pip install scipy") from error
    with _reading(path), tarfile.open(path) as kit:
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


def _folders(path: Path, out: Path, *, encoding: Encoding | None, class_of: Callable[[str], str]) -> list[_Folder]:
    """The class folders of an archive; class_of: from a member's name to its class."""
    members = defaultdict(list)
    with _reading(path), tarfile.open(path) as archive:
        for member in archive:
            name = Path(member.name).name
            members[class_of(name)].append((name, member.offset_data, member.size))
    return [_Folder(path, out / name, tuple(positions), encoding) for name, positions in members.items()]


def _write_folder(folder: _Folder) -> None:
    """Write all images of a class into a hidden folder beside the target; rename it when complete."""
    partial = folder.target.with_name(f".{folder.target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with _reading(folder.archive), folder.archive.open("rb") as archive:
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
    """The image as it is, or smaller. One that does not decode stays as it is; data.check reports it."""
    if encoding is None:
        return content.getvalue()
    try:
        with Image.open(content) as image:
            shorter = min(image.size)
            if shorter <= encoding.side:
                return content.getvalue()
            width, height = (round(side * encoding.side / shorter) for side in image.size)
            smaller = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    except DECODING_ERRORS:
        return content.getvalue()
    written = io.BytesIO()
    smaller.save(written, format="JPEG", quality=encoding.quality)
    return written.getvalue()
