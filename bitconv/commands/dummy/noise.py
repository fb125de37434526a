"""Random numbers at the speed of memory: the same for a seed on every machine and with every version of numpy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from bitconv import _kernels
from bitconv.checkpoint.stored_tensor import ITEMSIZE
from bitconv.layouts.layout import Bytes

_BLOCK = 1 << 17  # words of 64 bits in a block, which is 1 MB
_WORDS = np.dtype("<u8")


class Noise:
    """Two pools of random words. A block is their exclusive or at two random offsets, so that few repeat.

    Only the raw words of a bit generator are used, which numpy promises never to change.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        pools = np.random.PCG64(seed).random_raw(4 * _BLOCK).astype(_WORDS)
        self._first, self._second = pools[: 2 * _BLOCK], pools[2 * _BLOCK :]

    def stream(self, number: int) -> Stream:
        """The random numbers of one tensor, which depend on the seed and on nothing but its number."""
        return Stream(self._first, self._second, np.random.PCG64([self.seed, number]))


class Stream:
    def __init__(self, first: npt.NDArray[np.uint64], second: npt.NDArray[np.uint64], draws: np.random.PCG64) -> None:
        self._first = first
        self._second = second
        self._draws = draws

    def magnitude(self) -> float:
        """A mean magnitude of a tensor's weights: 0.01 to 0.03."""
        return 0.01 + 0.02 * (int(self._draws.random_raw()) % 1024) / 1024

    def floats(self, count: int, dtype: str, mean: float, center: float = 0.0) -> Iterator[Bytes]:
        """`count` values of a float dtype around `center`, off by `mean` on average and by 4 * mean at most.

        Their distribution is that of the product of two even ones: as peaked as trained weights, so that 38 % of
        them are zero by the absmean rule.
        """
        scale = np.float32(mean / (1 << 28))
        for words in self._blocks(-(-count // 2)):
            left, right = words.view("<i2").reshape(2, -1)
            values = np.multiply(left, right, dtype=np.float32)
            values *= scale
            if center:
                values += np.float32(center)
            values = values[:count]
            count -= values.size
            data = np.empty(values.size * ITEMSIZE[dtype], np.uint8)
            _kernels.convert_floats(values.view(np.uint8), "f32", data, dtype)
            yield data

    def packed_trits(self, count: int) -> Iterator[Bytes]:
        """`count` bytes of four codes, 0 to 2, in two bits each. One of two trits is zero."""
        for words in self._blocks(-(-count // 8)):
            threes = words & words >> np.uint64(1) & np.uint64(0x5555_5555_5555_5555)
            data = (words ^ threes << np.uint64(1)).view(np.uint8)[:count]
            count -= data.size
            yield data

    def _blocks(self, words: int) -> Iterator[npt.NDArray[np.uint64]]:
        """At least `words` random words, a block at a time."""
        while words > 0:
            size = min(words, _BLOCK)
            first, second = (int(draw) % _BLOCK for draw in self._draws.random_raw(2))
            yield self._first[first : first + size] ^ self._second[second : second + size]
            words -= size
