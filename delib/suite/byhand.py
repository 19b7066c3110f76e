"""Weights to be zeroed by hand: a small layer's maps in a page, whose divergence the page computes itself."""

from __future__ import annotations

import base64
import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delib.suite.explorer import template

_numbers = itertools.count(1)


class ByHand:
    """A linear classifier on small images as a board to play on: whoever clicks a weight zeroes it.

    The board says how far the student's class probabilities are from the teacher's, as ``nn.kl`` would, and how far
    they would be with as many weights zeroed in the order of an evolution's ``generations`` (within one generation the
    smaller first). It needs no kernel and no network: the same HTML serves a live notebook and the report.

    Parameters
    ----------
    weight, bias : array [classes, side * side], [classes]
        Of the layer.
    images : array [n, side * side]
        In 0..1, on which divergence is measured; each value takes a byte of the page, so some hundred are enough.
    generations : array [classes, side * side]
        The cycle in which an evolution zeroed each weight; 0: it survived.
    title : str
        Below the board.

    Raises
    ------
    ValueError
        If the shapes do not fit each other.
    """

    def __init__(
        self,
        weight: NDArray[np.floating],
        bias: NDArray[np.floating],
        images: NDArray[np.floating],
        generations: NDArray[np.integer],
        title: str,
    ) -> None:
        classes, inputs = weight.shape
        side = round(inputs**0.5)
        if side * side != inputs or bias.shape != (classes,) or generations.shape != weight.shape:
            raise ValueError(f"a bias and a generation for each of {classes} square images of weights are needed")
        if images.ndim != 2 or images.shape[1] != inputs:
            raise ValueError(f"images must be [n, {inputs}], got {list(images.shape)}")
        self.title, self.classes, self.side = title, classes, side
        order = np.lexsort((np.abs(weight).ravel(), np.where(generations == 0, np.iinfo(int).max, generations).ravel()))
        self.data = {
            "weight": _packed(weight.astype("<f4")),
            "bias": _packed(bias.astype("<f4")),
            "images": _packed(np.round(255 * np.clip(images, 0, 1)).astype("u1")),
            "order": _packed(order.astype("<u2")),
        }

    def _repr_html_(self) -> str:
        """The board, with all that it needs inlined."""
        return str(template("byhand.html.j2").render(name=f"by-hand-{next(_numbers)}", **vars(self)))


def _packed(array: NDArray[Any]) -> str:
    return base64.b64encode(array.tobytes()).decode()
