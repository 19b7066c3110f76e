"""Weights zeroed by hand in a page: what the page computes is the divergence that torch computes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from delib.nn import kl
from delib.suite import ByHand

CLASSES, SIDE = 4, 3


@pytest.fixture
def layer() -> dict[str, Any]:
    chance = np.random.default_rng(0)
    return {
        "weight": chance.normal(size=(CLASSES, SIDE * SIDE)).astype(np.float32),
        "bias": chance.normal(size=CLASSES).astype(np.float32),
        "images": chance.integers(0, 256, (50, SIDE * SIDE)) / 255,
        "generations": chance.integers(0, 5, (CLASSES, SIDE * SIDE)),
    }


def divergence(layer: dict[str, Any], zeroed: list[int]) -> float:
    """Of the layer with those weights zeroed from the layer as it is."""
    images, bias = torch.from_numpy(layer["images"]).float(), torch.from_numpy(layer["bias"])
    teacher = torch.from_numpy(layer["weight"])
    student = teacher.flatten().index_fill(0, torch.tensor(zeroed, dtype=torch.long), 0).view_as(teacher)
    return float(kl(images @ student.T + bias, images @ teacher.T + bias))


@pytest.fixture
def page(layer: dict[str, Any], tmp_path: Path, browser: Any) -> Any:
    (tmp_path / "board.html").write_text(
        f"<!doctype html><html lang=en><title>Board</title>{ByHand(**layer, title='A board')._repr_html_()}"
    )
    visit = browser.open(tmp_path / "board.html")
    assert visit.requests == visit.complaints == []
    return visit.page


def told(page: Any) -> list[float]:
    """How many are zeroed, the divergence, evolution's, as the board says them."""
    text = page.locator("output").inner_text()
    found = re.match(r"(\d+) of 36 .*?: ([\d.]+) nats\. Evolution's first \d+: ([\d.]+) nats", text)
    assert found, text
    return [float(number) for number in found.groups()]


def evolved(layer: dict[str, Any]) -> list[int]:
    """The weights in the order in which they died, smaller ones first within a generation, survivors last."""
    generation, size = layer["generations"].ravel(), np.abs(layer["weight"]).ravel()
    return sorted(range(len(size)), key=lambda i: (generation[i] == 0, generation[i], size[i]))


def test_the_page_computes_what_torch_does(layer: dict[str, Any], page: Any) -> None:
    cells = page.locator(".map button")
    assert cells.count() == CLASSES * SIDE * SIDE
    zeroed = [0, 7, 20]
    for i in zeroed:
        cells.nth(i).click()
    theirs = evolved(layer)
    assert told(page) == pytest.approx([3, divergence(layer, zeroed), divergence(layer, theirs[:3])], abs=6e-5)
    cells.nth(7).click()  # and back
    assert told(page) == pytest.approx([2, divergence(layer, [0, 20]), divergence(layer, theirs[:2])], abs=6e-5)
    page.get_by_role("button", name="Start over").click()
    assert "Nothing is zeroed" in page.locator("output").inner_text()
    page.get_by_role("button", name="As evolution would").click()
    assert told(page)[0] == 18
    assert "Level." in page.locator("output").inner_text()
    page.get_by_role("button", name="The smallest").click()
    smallest = np.argsort(np.abs(layer["weight"]).ravel())[:18].tolist()
    assert told(page)[1] == pytest.approx(divergence(layer, smallest), abs=6e-5)


def test_it_is_played_by_keys_alone(layer: dict[str, Any], page: Any) -> None:
    first = page.get_by_role("group", name="weights of class 1").get_by_role("button").first
    first.focus()
    page.keyboard.press("ArrowUp")  # nothing is there
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("row 2, column 2: ")
    assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
    assert told(page)[1] == pytest.approx(divergence(layer, [SIDE * SIDE + SIDE + 1]), abs=6e-5)


def test_what_does_not_fit_is_said(layer: dict[str, Any]) -> None:
    for wrong in ({"bias": layer["bias"][1:]}, {"generations": layer["generations"].ravel()}):
        with pytest.raises(ValueError, match="a bias and a generation"):
            ByHand(**(layer | wrong), title="A board")
    with pytest.raises(ValueError, match=r"images must be \[n, 9\]"):
        ByHand(**(layer | {"images": layer["images"][:, 1:]}), title="A board")
