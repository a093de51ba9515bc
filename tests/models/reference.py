"""Weights and inputs made from names, and the reference numbers that the authors' code gave for them."""

import functools
import gzip
import hashlib
import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parents[1] / "golden"
MASK = np.uint64(0xFFFFFFFF)


@functools.cache
def read(name):
    return json.loads(gzip.decompress((GOLDEN / name).read_bytes()))


def uniform(key, count):
    """`count` float64 values in (-1, 1) that depend on the key alone (32-bit integer finaliser of MurmurHash3)."""
    h = (np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B1) + np.uint64(zlib.crc32(key.encode()))) & MASK
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h = ((h ^ (h >> np.uint64(shift))) * np.uint64(factor)) & MASK
    h ^= h >> np.uint64(16)
    return (2.0 * h.astype(np.float64) + 1.0) / 2.0**32 - 1.0


def spread(key, shape):
    """(base, amplitude) of a state-dict entry."""
    block = int(key.split(".")[-3]) if key.endswith("bn3.weight") and key.count(".") >= 2 else 0
    scale = 1 / math.sqrt(1 + block)
    gain = {"fc.weight": 0.35, "head.weight": 4.0}.get(key, 2.0)
    rules = (
        (key.endswith("running_var"), (1.0, 0.3)),
        (key.endswith("running_mean"), (0.0, 0.1)),
        ("pos_embed" in key or "cls_token" in key, (0.0, 0.5)),
        (len(shape) >= 2, (0.0, math.sqrt(3.0 * gain / max(math.prod(shape[1:]), 1)))),
        (key.endswith("bn3.weight"), (0.5 * scale, 0.15 * scale)),
        (key.endswith("embed.4.weight") and "patch" not in key, (0.35, 0.1)),
        (key.endswith("weight"), (1.0, 0.2)),
    )
    return next((values for matches, values in rules if matches), (0.0, 0.1))


def entry(key, shape):
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, dtype=np.int64)
    base, amplitude = spread(key, shape)
    return (base + amplitude * uniform(key, math.prod(shape))).astype(np.float32).reshape(shape)


def fill(model):
    """Overwrite every entry of the model's state dict; the model is returned."""
    for key, tensor in model.state_dict().items():
        tensor.copy_(torch.from_numpy(np.array(entry(key, tuple(tensor.shape)))))
    return model


def fill_sha256(model):
    digest = hashlib.sha256()
    for key, tensor in model.state_dict().items():
        digest.update(key.encode())
        digest.update(np.ascontiguousarray(entry(key, tuple(tensor.shape))).tobytes())
    return digest.hexdigest()


def image(count, channels, height, width):
    """Images with structure at four scales, (count, channels, height, width) float64 that float32 holds exactly."""
    out = np.zeros((count, channels, height, width))
    for cell, amplitude in ((0, 0.8), (32, 1.0), (8, 0.7), (1, 0.5)):
        rows, columns = (-(-height // cell), -(-width // cell)) if cell else (1, 1)
        noise = uniform(f"input.{cell}", count * channels * rows * columns).reshape(count, channels, rows, columns)
        if cell > 1:
            noise = noise.repeat(cell, axis=2).repeat(cell, axis=3)[:, :, :height, :width]
        out += amplitude * noise
    return torch.from_numpy(out.astype(np.float32)).double()


def noise(tag, shape, amplitude=1.0):
    values = (amplitude * uniform(tag, math.prod(shape))).astype(np.float32)
    return torch.from_numpy(values.reshape(shape)).double()
