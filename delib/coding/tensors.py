"""What the container holds: plain arrays, and sparse quantised weights as mask, indices and codebook."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

DTYPES = ("float16", "float32", "float64", "bool", "uint8", "int8", "int16", "int32", "int64")
MAX_LEVELS = 1 << 16


class DelibError(ValueError):
    """The bytes are not a whole, undamaged `.delib` file."""


@dataclass(frozen=True, eq=False)
class LevelTensor:
    """A sparse quantised weight.

    ``mask`` [the weight's shape, bool] is True for survivors; ``indices`` [survivors] names each one's level, in the
    mask's row-major order; ``codebook`` [levels, float32] holds the levels. With ``scales`` [mask's first axis,
    float16] the levels of each output are multiplied by its scale. Raises ValueError if they disagree.
    """

    mask: NDArray[np.bool_]
    indices: NDArray[np.integer]
    codebook: NDArray[np.float32]
    scales: NDArray[np.float16] | None = None

    def __post_init__(self) -> None:
        if self.mask.dtype != bool or self.mask.ndim == 0:
            raise ValueError("the mask must be an array of bool with at least one dimension")
        if self.indices.shape != (int(self.mask.sum()),):
            raise ValueError(f"{self.indices.size} indices for {int(self.mask.sum())} survivors")
        if self.codebook.dtype != np.float32 or self.codebook.ndim != 1 or len(self.codebook) > MAX_LEVELS:
            raise ValueError(f"the codebook must be a vector of at most {MAX_LEVELS} float32 levels")
        if self.indices.size and not 0 <= int(self.indices.min()) <= int(self.indices.max()) < len(self.codebook):
            raise ValueError("an index lies outside the codebook")
        if self.scales is not None and (self.scales.dtype != np.float16 or self.scales.shape != self.mask.shape[:1]):
            raise ValueError(f"the scales must be a vector of {len(self.mask)} float16 values, one for each output")

    def reshaped(self, shape: tuple[int, ...]) -> LevelTensor:
        """The same weight in another shape whose first axis is as long."""
        return replace(self, mask=self.mask.reshape(shape))

    def dense(self) -> NDArray[np.float32]:
        """The weight itself: the level of every survivor, times its output's scale if there are any; zero elsewhere."""
        weight = np.zeros(self.mask.shape, np.float32)
        values = self.codebook[self.indices]
        if self.scales is not None:
            survivors = self.mask.sum(tuple(range(1, self.mask.ndim)))
            values = values * np.repeat(self.scales.astype(np.float32), survivors)
        weight[self.mask] = values
        return weight


Tensors = Mapping[str, "NDArray[Any] | LevelTensor"]


def index_type(levels: int) -> type[np.integer]:
    """The smallest dtype that holds an index into a codebook of this many levels."""
    return np.uint8 if levels <= 256 else np.uint16
