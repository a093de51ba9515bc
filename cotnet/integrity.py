"""Whether a file of weights still holds what was written: checksums of tensors, of zip entries and in file names."""

import hashlib
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
import xxhash

_HASH_IN_NAME = re.compile(r"-(?=[0-9]*[a-f])([0-9a-f]{8,64})\.")  # resnet50-11ad3fa6.pth: how torch.hub names files


def checksum(tree: Any) -> str:
    """XXH3 (128 bits, hex) over the names, types, shapes and values of nested dictionaries, lists and tensors.

    It does not depend on how the tree was stored. 14 GB/s on one core, where reading a file reaches 0.5 to 1.5.
    """
    digest = xxhash.xxh3_128()
    _feed(digest, tree)
    return digest.hexdigest()


def _feed(digest: Any, tree: Any) -> None:
    if isinstance(tree, dict | list | tuple):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        digest.update(f"{len(tree)} items\n".encode())
        for key, value in items:
            digest.update(f"{key!r}\n".encode())
            _feed(digest, value)
    elif isinstance(tree, torch.Tensor):
        digest.update(f"{tree.dtype} {list(tree.shape)}\n".encode())
        if tree.numel():
            digest.update(tree.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    else:
        digest.update(f"{tree!r}\n".encode())


def damage(path: Path) -> str | None:
    """What is wrong with a file by the checksums that it carries itself, or None: the CRC-32 of each entry of a zip
    archive, which torch.save writes, and the start of a SHA-256 in the file's name."""
    if found := _HASH_IN_NAME.search(path.name):
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        if not actual.startswith(found[1]):
            return f"its name says SHA-256 {found[1]}, its content has {actual[: len(found[1])]}"
    if not zipfile.is_zipfile(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            entry = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        return str(error).splitlines()[0][:120] if str(error) else type(error).__name__
    return f"the checksum of {entry} differs" if entry else None
