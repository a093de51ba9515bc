"""Checksums of weights: of tensors, of zip entries, and in file names."""

import hashlib
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

_HASH_IN_NAME = re.compile(r"-(?=[0-9]*[a-f])([0-9a-f]{8,64})\.")  # resnet50-11ad3fa6.pth: how torch.hub names files


def checksum(tree: Any) -> str:
    """XXH3 (128 bits, hex) over the names, types, shapes and values of nested dictionaries, lists and tensors.

    It does not depend on how the tree was stored.
    """
    digest = xxhash.xxh3_128()
    told: list[str] = []
    for name, leaf in leaves(tree):
        told.append(name)
        if not isinstance(leaf, torch.Tensor):
            told.append(repr(leaf))
            continue
        told.append(f"{leaf.dtype} {leaf.shape}")
        values = leaf.view(torch.int16) if leaf.dtype == torch.bfloat16 else leaf  # NumPy has no bfloat16
        digest.update(np.ascontiguousarray(values.numpy(force=True)).data)
    digest.update("\n".join(told).encode())
    return digest.hexdigest()


def leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is no container, and the size of each container, by name."""
    if not isinstance(tree, dict | list | tuple):
        yield name, tree
        return
    yield name, len(tree)
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield from leaves(value, f"{name}.{key!r}")


def damage(path: Path) -> str | None:
    """Why a file is damaged, or None, by its own checksums: the CRC-32 of each entry of a zip archive (torch.save's
    format), and the first digits of a SHA-256 in its name."""
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
