"""Every random number has a position, so that no generator state is ever saved.

A key is a 64-bit mix of the run's seed, the name of a stream and a position (phase, epoch, micro-batch, pass).
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, device

_MASK = 0xFFFFFFFFFFFFFFFF


@lru_cache(maxsize=1024)
def stream(seed: int, name: str) -> int:
    """Return the 64-bit key of a named stream: the first 8 bytes, little endian, of blake2b over `seed:name`."""
    return int.from_bytes(blake2b(f"{seed}:{name}".encode(), digest_size=8).digest(), "little")


def mix(key: int, *parts: int) -> int:
    """Return the 64-bit key of a position within a stream, good in its low 32 bits.

    Torch's CPU generator looks at the low 32 bits alone. Each part is folded in by key = (key xor part) * M and
    key ^= key >> 32, a bijection of the part; the end is the finaliser of splitmix64 (Steele, Lea and Flood 2014).
    """
    for part in parts:
        key = ((key ^ part) * 0x9E3779B97F4A7C15) & _MASK
        key ^= key >> 32
    key = ((key ^ (key >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    key = ((key ^ (key >> 27)) * 0x94D049BB133111EB) & _MASK
    return key ^ (key >> 31)


def torch_generator(seed: int, name: str, *parts: int, device: str | device = "cpu") -> Generator:
    """Return a generator that stands at the beginning of a position's own stream."""
    from torch import Generator

    generator = Generator(device)
    generator.manual_seed(mix(stream(seed, name), *parts))
    return generator
