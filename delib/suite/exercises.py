"""Exercises that check themselves: right or not yet, with a hint; the right answer is never shown."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any


def check(answer: Any, truth: Any | Callable[[], Any], hint: str, *, within: float = 0.05) -> None:
    """Print whether an exercise's answer is right, and the hint where it is not.

    Parameters
    ----------
    answer : number, str, bool or None
        The reader's; None as long as there is none.
    truth : the same, or a function () -> the same
        A function is called only once there is an answer.
    hint : str
        What to think of; it must not give the answer away.
    within : float
        Numbers are right that differ from the truth by at most this share of it; all else must be the same, letters'
        case and spaces around them aside.
    """
    if answer is None:
        print("An exercise: write your answer in place of None and run the cell.")
    elif _same(answer, truth() if callable(truth) else truth, within):
        print("Right.")
    else:
        print(f"Not yet. {hint}")


def _same(answer: Any, truth: Any, within: float) -> bool:
    if isinstance(truth, str):
        return isinstance(answer, str) and answer.strip().lower() == truth.strip().lower()
    if isinstance(truth, bool) or isinstance(answer, bool) or not isinstance(answer, Real):
        return bool(answer is truth or (type(answer) is type(truth) and answer == truth))
    return math.isclose(float(answer), float(truth), rel_tol=within)
