"""Exercises: what is right, what is not, and that the right answer is never told."""

from typing import Any

import pytest

from delib.suite import check


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [
        (5.7, 5.73, True),
        (6.3, 5.73, False),
        (3, 3, True),
        (" Error", "error", True),
        ("errors", "error", False),
        (True, True, True),
        (1, True, False),
        (True, 1.0, False),
        ("5.73", 5.73, False),
        ([1, 2], [1, 2], True),
        (float("nan"), 5.73, False),
    ],
)
def test_right_or_not_yet(answer: Any, truth: Any, right: bool, capsys: pytest.CaptureFixture[str]) -> None:
    for given in (truth, lambda: truth):
        check(answer, given, "Think of the shares.")
        said = capsys.readouterr().out.strip()
        assert said == ("Right." if right else "Not yet. Think of the shares.")


def test_without_an_answer_nothing_is_computed_or_told(capsys: pytest.CaptureFixture[str]) -> None:
    check(None, lambda: pytest.fail("computed"), "hint")
    assert "None" in capsys.readouterr().out


def test_numbers_within_none_must_be_exact(capsys: pytest.CaptureFixture[str]) -> None:
    check(3.1, 3, "hint", within=0)
    assert "Not yet" in capsys.readouterr().out
