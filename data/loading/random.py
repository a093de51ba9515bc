"""Random numbers as pure functions of their purpose.

Counter-based: every number is a hash of (seed, epoch, stream, sample, counter). No state, library version, thread or
rank has an influence. The hash is splitmix64's finaliser, once per key (Steele, Lea and Flood, "Fast Splittable
Pseudorandom Number Generators", 2014).
"""

from enum import IntEnum
from typing import Final

import numpy as np

BETA_DRAWS: Final = 50
_GAMMA: Final = 0x9E3779B97F4A7C15
_MASK: Final = (1 << 64) - 1


class Stream(IntEnum):
    """What numbers are drawn for. Two streams never share numbers."""

    ORDER = 1
    CROP = 2
    FLIP = 3
    ERASING = 4
    MIX = 5
    NOISE = 7
    POLICY = 8
    JITTER = 9
    RESIZE = 10
    PHOTOMETRIC = 11


def _mix(bits: np.ndarray) -> np.ndarray:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def hashes(seed: int, epoch: int, stream: Stream, samples: np.ndarray) -> np.ndarray:
    """(n,) uint64, one per sample: a bijection for fixed (seed, epoch, stream), so without collisions."""
    key = np.zeros(1, dtype=np.uint64)
    for part in (seed, epoch, int(stream)):
        key = _mix(key + np.uint64((part + _GAMMA) & _MASK))
    return _mix(key + samples.astype(np.uint64) + np.uint64(_GAMMA))


def uniforms(seed: int, epoch: int, stream: Stream, samples: np.ndarray, count: int) -> np.ndarray:
    """Independent uniforms in [0, 1) for n samples: (n, count) float64 with 53 random bits."""
    counters = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GAMMA)
    bits = _mix(hashes(seed, epoch, stream, samples)[:, None] + counters)
    return (bits >> np.uint64(11)) * 2.0**-53


def normals(uniform: np.ndarray) -> np.ndarray:
    """Standard normals (..., n) from uniforms (..., 2 n) (Box and Muller, 1958)."""
    first, second = np.split(uniform, 2, axis=-1)
    return np.sqrt(-2 * np.log1p(-first)) * np.cos(2 * np.pi * second)


def beta(alpha: float, uniform: np.ndarray) -> np.ndarray:
    """Beta(alpha, alpha) variates (n,) from uniforms (n, BETA_DRAWS)."""
    logs = [_log_gamma_variate(alpha, half) for half in np.split(uniform, 2, axis=-1)]
    return 1 / (1 + np.exp(np.clip(logs[1] - logs[0], -700, 700)))


def _log_gamma_variate(shape: float, uniform: np.ndarray) -> np.ndarray:
    """Logarithms (n,) of Gamma(shape) variates: Marsaglia and Tsang (2000), with Gamma(a) = Gamma(a + 1) U^(1 / a).

    The first accepted of eight candidates; each is accepted with probability above 0.95.
    """
    boost, rest = uniform[:, 0], uniform[:, 1:]
    tries = rest.shape[1] // 3
    d = shape + 1 - 1 / 3
    normal = normals(rest[:, : 2 * tries])
    cube = np.maximum(1 + normal / np.sqrt(9 * d), 1e-12) ** 3
    chance = np.log1p(-rest[:, 2 * tries : 3 * tries])
    accepted = chance < normal**2 / 2 + d - d * cube + d * np.log(cube)
    first = np.take_along_axis(cube, accepted.argmax(axis=1)[:, None], axis=1)[:, 0]
    return np.log(d * first) + np.log1p(-boost) / shape
