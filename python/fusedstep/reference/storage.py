"""How numbers that are computed in float32 are kept in 16 bits: rounding to nearest, by chance, and masters."""

from collections.abc import Hashable
from hashlib import blake2b
from numbers import Integral
from typing import Any

import numpy as np

__all__ = ["Noise", "joined", "philox", "rounded", "split", "stored", "unrounded", "widened"]


def philox(counter: Any, key: Any) -> Any:
    """
    Return the four words of Philox 4x32-10 for each counter.

    Parameters
    ----------
    counter : array of uint32, shape (4, n)
        The counters.
    key : array of uint32, shape (2,)
        The key, one for all counters.

    References
    ----------
    Salmon, Moraes, Dror & Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """
    c0, c1, c2, c3 = np.asarray(counter, np.uint64)
    k0, k1 = (int(word) for word in key)
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        a, b = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = b >> 32 ^ c1 ^ np.uint64(k0), b & low, a >> 32 ^ c3 ^ np.uint64(k1), a & low
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return np.array([c0, c1, c2, c3]).astype(np.uint32)


class Noise:
    """The random bits of one parameter in update number t."""

    def __init__(self, seed: float, t: int, key: Hashable) -> None:
        if isinstance(key, Integral):
            number = int(key) % 2**64
        else:
            text = key if isinstance(key, str) else repr(key)
            number = int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
        seed = int(seed)  # hyperparameters come as floats
        words = [t % 2**32, t >> 32, number % 2**32, number >> 32]
        self.key = philox(np.array(words).reshape(4, 1), [seed % 2**32, seed >> 32])[:2, 0]

    def bits(self, array: int, shape: tuple[int, ...]) -> Any:
        """Return 16 random bits for each element of array number 0 (parameter), 2, 3, 4, 6 (states) or 5 (average)."""
        size = int(np.prod(shape))
        counters = np.arange(-(-size // 256) * 32)
        zeros = np.zeros_like(counters)
        words = philox([counters, zeros, zeros + array, zeros], self.key)
        tiles = words.reshape(4, -1, 32).transpose(1, 0, 2)  # rows of 256: first words of 32 counters, second ones, ...
        halves = np.stack([tiles & 0xFFFF, tiles >> 16], axis=-1)  # the lower half of each word first
        return halves.reshape(-1)[:size].reshape(shape)


def widened(x: Any) -> Any:
    """Return a copy in the dtype of the arithmetic: float64 stays, everything else becomes float32."""
    return x.astype(np.float64 if x.dtype == np.float64 else np.float32)


def rounded(x: Any, dtype: Any, noise: Any = None) -> Any:
    """
    Return float32 numbers rounded to a dtype: to nearest, ties to even, or by chance with 16 bits of noise for each.

    The noise is added to the bits that the dtype lacks, which are then cut off: a number is rounded away from zero with
    the probability that its position between two neighbours asks for.
    """
    if noise is None:
        return x.astype(dtype)
    bits = x.view(np.uint32)
    sign, magnitude = bits >> 16 & 0x8000, bits & 0x7FFFFFFF
    if dtype == np.float16:
        tiny = magnitude < 0x38800000  # below 2^-14, a unit in the last place of float16 is 2^-24
        units = (np.where(tiny, abs(x), 0) * np.float32(2.0**40)).astype(np.int64)
        h = np.where(tiny, units + noise >> 16, magnitude.astype(np.int64) + (noise >> 3) - 0x38000000 >> 13)
        h = np.where(magnitude >= 0x47800000, 0x7C00, h)  # infinity, from 2^16 on
    else:
        h = magnitude + noise >> 16
    h = np.where(np.isnan(x), 0x7FFF, h)
    return (h | sign).astype(np.uint16).view(dtype)


def stored(x: Any, dtype: Any, noise: Noise | None, array: int) -> Any:
    """Return numbers as they are stored in array number `array`; noise rounds only what has 16 bits."""
    return rounded(x, dtype, noise.bits(array, x.shape) if noise and dtype.itemsize == 2 else None)


def split(x: Any, dtype: Any) -> tuple[Any, Any]:
    """Return the nearest bfloat16 of float32 numbers, away from zero in a tie, and the 16 bits that it lacks."""
    bits = np.where(np.isnan(x), np.uint32(0x7FC00000), x.view(np.uint32))
    return (bits + np.uint32(0x8000) >> 16).astype(np.uint16).view(dtype), bits.astype(np.uint16)


def joined(p: Any, remainder: Any) -> Any:
    """Return the float32 numbers of a bfloat16 parameter and its remainder: what `split` was given."""
    high, low = p.view(np.uint16).astype(np.uint32), remainder.astype(np.uint32)
    bits = (high - (low >> 15) << 16) | low
    # `split` gives a zero a remainder below 0x8000, and an infinity 0 or one from 0x8000 on. Beside any other
    # remainder, the zero or infinity was set by the caller, and counts without the remainder.
    zero, infinity = (high & 0x7FFF == 0) & (low >= 0x8000), (high & 0x7FFF == 0x7F80) & (low < 0x8000)
    return np.where(zero | infinity, high << 16, bits).astype(np.uint32).view(np.float32)


def unrounded(p: Any, s: dict[str, Any]) -> Any:
    """Return a parameter in the dtype of the arithmetic, from its master in the state `s` where there is one."""
    if "remainder" in s:
        return joined(p, s["remainder"])
    if "master" in s:  # where the parameter is not the rounded master, the caller has changed it, and it counts
        same = rounded(s["master"], p.dtype).view(np.uint16) == p.view(np.uint16)
        return np.where(same, s["master"], widened(p))
    return widened(p)
