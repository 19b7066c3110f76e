"""Figures draw what they are given, say it in words, and are closed."""

from __future__ import annotations

import io
import itertools
import math
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from delib.suite import figures

LINES = {"evolution": ([0.0, 0.5, 0.9], [0.99, 0.98, 0.9]), "magnitude": ([0.0, 0.5, 0.9], [0.99, 0.97, 0.5])}


@pytest.fixture(autouse=True)
def every_figure_is_closed_afterwards():
    yield
    plt.close("all")


@pytest.fixture
def displayed(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """What would be shown in a notebook."""
    shown: list[dict[str, str]] = []

    def display(data: dict[str, str], raw: bool = False) -> None:
        assert raw
        shown.append(data)

    monkeypatch.setattr("IPython.display.display", display)
    return shown


def decoded(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    image.load()
    return image


def test_a_png_is_twice_as_fine_as_the_screen_and_the_figure_is_closed() -> None:
    image = decoded(figures.png(figures.curves(LINES, "sparsity", "accuracy")))
    assert image.size == (8 * 96 * 2, 4.5 * 96 * 2)
    assert image.convert("L").getextrema() == (0, 255), "ink on white"
    assert plt.get_fignums() == []


def test_the_same_figure_gives_the_same_bytes() -> None:
    first, second = (figures.png(figures.curves(LINES, "sparsity", "accuracy")) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("alt", ["", "  \n"])
def test_a_figure_without_words_is_refused(displayed: list[dict[str, str]], alt: str) -> None:
    with pytest.raises(ValueError, match="alt"):
        figures.show(figures.curves(LINES, "x", "y"), alt)
    assert displayed == []


def test_a_shown_figure_carries_its_words_escaped_and_its_size_on_the_screen(displayed: list[dict[str, str]]) -> None:
    figures.show(figures.curves(LINES, "x", "y"), 'Accuracy "falls" & x < 1')
    (data,) = displayed
    assert 'alt="Accuracy &quot;falls&quot; &amp; x &lt; 1"' in data["text/html"]
    assert 'width="768"' in data["text/html"]
    assert 'src="data:image/png;base64,' in data["text/html"]
    assert data["text/plain"] == '[figure: Accuracy "falls" & x < 1]'
    assert plt.get_fignums() == []


def test_curves_are_the_given_points_under_the_given_names() -> None:
    (axis,) = figures.curves(LINES, "sparsity", "accuracy", level=("teacher", 0.992)).axes
    drawn = {line.get_label(): line for line in axis.lines if not str(line.get_label()).startswith("_")}
    assert list(drawn) == list(LINES)
    for name, (xs, ys) in LINES.items():
        np.testing.assert_array_equal(drawn[name].get_xdata(), xs)
        np.testing.assert_array_equal(drawn[name].get_ydata(), ys)
    assert [text.get_text() for text in axis.get_legend().get_texts()] == list(LINES)
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("sparsity", "accuracy")
    assert [text.get_text() for text in axis.texts] == ["teacher"]
    (level,) = [line for line in axis.lines if line not in drawn.values()]
    assert set(level.get_ydata()) == {0.992}


def test_a_band_shades_a_range_of_x_under_its_name() -> None:
    figure = figures.curves(
        {"a": ([1, 100], [1.0, 0.5])}, "times smaller", "kept", percent="y", band=("claimed", 40, 80)
    )
    (axis,) = figure.axes
    (band,) = axis.patches
    assert (band.get_x(), band.get_x() + band.get_width(), band.get_label()) == (40, 80, "claimed")
    assert [line.get_label() for line in axis.get_lines()] == ["a"], "the band is no line"


@pytest.mark.parametrize("count", [7, 13, 49])
def test_no_two_curves_share_colour_marker_and_dash(count: int) -> None:
    (axis,) = figures.curves({str(i): ([0, 1], [i, i]) for i in range(count)}, "x", "y").axes
    looks = [(line.get_color(), line.get_marker(), str(line._dash_pattern)) for line in axis.lines]
    assert len(set(looks)) == count
    assert len({look[:2] for look in looks}) == count, "markers are seen where dashes are too short"
    for one, other in itertools.pairwise(looks[:7]):
        assert all(a != b for a, b in zip(one, other, strict=True))


def ticks(axis: Any, values: list[float]) -> list[str]:
    return [axis.get_major_formatter()(value) for value in values]


def test_shares_are_written_in_percent_and_only_where_asked() -> None:
    both, x_only = (figures.curves(LINES, "x", "y", percent=percent).axes[0] for percent in ("xy", "x"))
    for axis in (both.xaxis, both.yaxis, x_only.xaxis):
        assert [text.replace(".0", "") for text in ticks(axis, [0.5])] == ["50%"]
    assert "%" not in ticks(x_only.yaxis, [0.5])[0]
    assert (both.get_xscale(), both.get_yscale()) == ("linear", "linear")
    (axis,) = figures.curves(LINES, "x", "y", logarithmic="y").axes
    assert (axis.get_xscale(), axis.get_yscale()) == ("linear", "log")


def heights(axis: Any) -> list[float]:
    return [bar.get_height() for bar in axis.patches]


def test_bars_of_one_group_stand_for_their_values_and_one_stands_out() -> None:
    (axis,) = figures.bars({"": {"1": 3.0, "2": 1.0, "3": 2.0}}, "nats", highlight="2").axes
    assert heights(axis) == [3.0, 1.0, 2.0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["1", "2", "3"]
    assert axis.get_ylabel() == "nats"
    looks = [(bar.get_facecolor(), bar.get_hatch()) for bar in axis.patches]
    assert looks[0] == looks[2]
    assert looks[1][0] != looks[0][0], "by colour"
    assert looks[1][1] != looks[0][1], "and not by colour alone"


def test_bars_of_several_groups_are_named_in_the_legend_and_do_not_overlap() -> None:
    groups = {"lenet300": {"weights": 10.0, "biases": 2.0}, "lenet5": {"weights": 8.0, "biases": 3.0}}
    (axis,) = figures.bars(groups, "bytes", percent=True).axes
    assert sorted(heights(axis)) == [2.0, 3.0, 8.0, 10.0]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["weights", "biases"]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["lenet300", "lenet5"]
    spans = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in axis.patches)
    assert all(left[1] <= right[0] + 1e-9 for left, right in itertools.pairwise(spans))
    assert "%" in ticks(axis.yaxis, [0.5])[0]


@pytest.mark.parametrize("length", [2, 9, 16])
def test_words_below_bars_do_not_run_into_each_other(length: int) -> None:
    figure = figures.bars({"kept": {f"{i:x}" * length: 0.5 for i in range(10)}}, "share")
    figure.canvas.draw()
    labels = figure.axes[0].get_xticklabels()
    slanted = labels[0].get_rotation() != 0
    boxes = [label.get_window_extent() for label in labels]
    if not slanted:
        assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
    assert slanted == (length > 2)


def test_groups_need_not_have_the_same_bars() -> None:
    (axis,) = figures.bars({"lenet300": {"fc1": 1.0}, "lenet5": {"fc1": 2.0, "conv1": 3.0}}, "sparsity").axes
    assert sorted(height for height in heights(axis) if not math.isnan(height)) == [1.0, 2.0, 3.0]


def test_maps_share_one_colour_scale_that_a_bar_explains() -> None:
    panels = {"0": torch.zeros(2, 3), "1": torch.tensor([[1.0, 2, 3], [4, 5, -6]]), "2": torch.ones(2, 3)}
    *axes, bar = figures.maps(panels, "weight", columns=2, centred=True).axes
    shown = [axis for axis in axes if axis.images]
    assert [axis.get_title() for axis in shown] == ["0", "1", "2"]
    assert {axis.images[0].get_clim() for axis in shown} == {(-6.0, 6.0)}
    np.testing.assert_array_equal(shown[1].images[0].get_array(), panels["1"])
    assert bar.get_ylabel() == "weight"
    plain = figures.maps(panels, "cycle", columns=3).axes[0]
    assert plain.images[0].get_clim() == (0.0, 5.0)


def test_maps_with_survivors_left_blank() -> None:
    (axis, _) = figures.maps({"0": [[math.nan, 1.0], [2.0, math.nan]]}, "cycle", columns=1).axes
    assert axis.images[0].get_clim() == (0.0, 2.0)
    assert np.ma.getmaskarray(axis.images[0].get_array()).tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize(
    ("read", "true", "titles"),
    [
        (torch.tensor([7, 1, 0]), torch.tensor([7, 2, 0]), ["7", "1 → 2 ✗", "0"]),
        (["coat", "shirt", "bag"], ["coat", "dress", "bag"], ["coat", "shirt → dress ✗", "bag"]),
    ],
)
def test_misread_images_are_marked_in_words_too(read: Any, true: Any, titles: list[str]) -> None:
    images = torch.rand(3, 28, 28)
    figure = figures.classified(images, read, true, columns=2)
    shown = [axis for axis in figure.axes if axis.images]
    assert [axis.get_title() for axis in shown] == titles
    right, wrong, _ = (axis.spines["left"] for axis in shown)
    assert wrong.get_linewidth() > right.get_linewidth()
    np.testing.assert_allclose(shown[1].images[0].get_array(), images[1])
    assert sum(not axis.axison for axis in figure.axes) == 1, "the empty place shows nothing"


def test_a_cloud_has_a_point_a_weight() -> None:
    lines = {"weights": ([1, 2, 3], [0.1, 0.01, 0.001])}
    (axis,) = figures.curves(lines, "magnitude", "divergence", percent="", logarithmic="y", points=True).axes
    (cloud,) = axis.lines
    assert cloud.get_xydata().tolist() == [[1, 0.1], [2, 0.01], [3, 0.001]]
    assert (cloud.get_linestyle(), cloud.get_marker()) == ("None", "o")
    assert (axis.get_xlabel(), axis.get_ylabel(), axis.get_yscale()) == ("magnitude", "divergence", "log")


class Evolved:
    """Five cycles, each zeroing a tenth; its student at a cycle is the cycle."""

    cycle, sparsities = 5, (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)

    def cycle_at(self, sparsity: float) -> int:
        return next(i for i, s in enumerate(self.sparsities) if s >= sparsity)

    def at_cycle(self, cycle: int) -> int:
        return cycle


def test_a_curve_measures_the_students_along_an_evolution() -> None:
    assert figures.curve(Evolved(), lambda student: 1 - student / 10) == (
        [0.0, 0.1, 0.2, 0.3, 0.4, 0.5],
        pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6, 0.5]),
    )
    assert figures.curve(Evolved(), float, above=0.1, every=2) == ([0.1, 0.3, 0.5], [1.0, 3.0, 5.0])


def test_the_house_style_does_not_leak() -> None:
    before = dict(plt.rcParams)
    figures.curves(LINES, "x", "y")
    assert dict(plt.rcParams) == before
