"""Figures: the house style, and the one way in which a picture is shown, never without words for it."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image

from delib.suite.explorer import Frame

Array = Any  # whatever numpy turns into an array: lists, arrays, tensors on the CPU
# Okabe and Ito's colours, told apart by colour-blind readers too; yellow is left out, it vanishes on a projector.
BLACK, BLUE, SKY, GREEN = "#000000", "#0072B2", "#56B4E9", "#009E73"
ORANGE, VERMILION, PURPLE = "#E69F00", "#D55E00", "#CC79A7"
PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
# Neighbours differ in all three; each further round of seven shifts markers against colours, so that no two are alike.
LINES = [
    {"color": PALETTE[i], "marker": MARKERS[(i + turn) % 7], "linestyle": DASHES[(i + turn) % 7]}
    for turn, i in itertools.product(range(7), repeat=2)
]
CSS_DPI = 96  # a browser's pixels an inch
SHARPNESS = 2  # pixels stored per browser pixel
TILTED = 16  # bars whose names are tilted where they do not fit; of more they stand upright
WITHIN = 5  # lines whose legend finds room within the axes; that of more stands beside them
LABELS = 75  # letters that fit side by side below an axis; more are slanted
STYLE: Any = {  # matplotlib's own type for it lists every key of one version
    "axes.prop_cycle": cycler(**{key: [line[key] for line in LINES] for key in LINES[0]}),
    "figure.figsize": (8, 4.5),
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "font.size": 13,
    "axes.titlesize": 15,
    "axes.titlelocation": "left",
    "axes.labelsize": 13,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "image.cmap": "viridis",
    "lines.linewidth": 2.0,
    "lines.markersize": 6,
    "legend.frameon": False,
}


def png(figure: Figure) -> bytes:
    """The figure as a PNG, sharp on high-density screens; the figure is closed."""
    drawn, stored = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=CSS_DPI * SHARPNESS)
    plt.close(figure)
    Image.open(drawn).convert("RGB").save(stored, "PNG", optimize=True)  # a sixth smaller without its transparency
    return stored.getvalue()


def show(figure: Figure | bytes, alt: str) -> None:
    """Display a figure or a PNG with ``alt``, what it shows in words, for those who do not see it; figures are closed.

    A PNG is shown pixel by pixel, or as wide as there is room.

    Raises ValueError if ``alt`` is empty.
    """
    from IPython.display import display

    if not alt.strip():
        raise ValueError("a figure needs an alt: say in words what it shows")
    picture = Frame("figure", figure, alt, density=1 if isinstance(figure, bytes) else SHARPNESS)
    html = (
        f'<img class="delib-figure" alt="{escape(alt)}" width="{picture.width}" '
        f'style="max-width:100%;height:auto;background:#fff" src="{picture.source}">'
    )
    display({"text/html": html, "text/plain": f"[figure: {alt}]"}, raw=True)


def _tiles(count: int, columns: int, width: float, height: float, margin: float = 0) -> tuple[Figure, Any]:
    """A figure of empty places for ``count`` images, each [width, height] in inches, and the places in their order."""
    rows = math.ceil(count / columns)
    size = (width * columns + margin, height * rows)
    # Without ticks: the layout would measure each one's label, though none is drawn.
    bare: dict[str, Any] = {"xticks": [], "yticks": []}
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, subplot_kw=bare)
    for axis in axes.flat:
        axis.set_axis_off()
    return figure, axes.flat


def maps(
    panels: Mapping[str, Array],
    label: str,
    *,
    columns: int = 10,
    colours: str = "viridis",
    centred: bool = False,
    tile: tuple[float, float] = (1.15, 1.35),
    missing: str = "white",
) -> Figure:
    """Images side by side, one a title, on one colour scale whose bar says what ``label`` is measured in.

    ``panels`` maps titles to arrays [height, width], each shown in a ``tile`` of that many inches. ``centred`` puts
    zero at the middle of the scale; NaN gets the colour ``missing``.
    """
    values = np.stack([np.asarray(panel, float) for panel in panels.values()])
    scale = plt.get_cmap(colours).with_extremes(bad=missing)
    high = np.nanmax(np.abs(values)) if centred else np.nanmax(values)
    with plt.rc_context(STYLE):
        figure, places = _tiles(len(panels), columns, *tile, margin=1.2)
        for axis, title, panel in zip(places, panels, values, strict=False):
            shown = axis.imshow(panel, cmap=scale, vmin=-high if centred else 0, vmax=high)
            axis.set_title(title, fontsize=12, loc="center")
        figure.colorbar(shown, ax=figure.axes, label=label, shrink=0.9)
    return figure


def layer(weight: Array, died: Array, teacher: Array, student: Array) -> Figure:
    """A layer at a glance: its weights [rows, columns], the generations in which they ``died`` (0: alive), and the
    probabilities [classes] that teacher and student give for one input."""
    weight, died = np.asarray(weight, float), np.asarray(died, float)
    high, last = np.abs(weight).max() or 1.0, max(died.max(), 2)
    with plt.rc_context(STYLE):
        figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), width_ratios=(1.2, 1.2, 1))
        kept = left.imshow(weight, cmap="RdBu", vmin=-high, vmax=high, aspect="auto", interpolation="nearest")
        gone = np.where(died > 0, died, np.nan)
        dead = middle.imshow(gone, vmin=1, vmax=last, aspect="auto", interpolation="nearest")
        for axis, shown, title in ((left, kept, "weights"), (middle, dead, "generation of death (white: alive)")):
            axis.set(title=title, xlabel="inputs", ylabel="outputs")
            axis.grid(visible=False)
            figure.colorbar(shown, ax=axis, shrink=0.9, ticks=MaxNLocator(integer=True) if shown is dead else None)
        at = np.arange(len(teacher))
        right.bar(at - 0.2, teacher, 0.4, label="teacher", color=BLUE)
        right.bar(at + 0.2, student, 0.4, label="student", color=VERMILION, hatch="//", edgecolor="white")
        right.set(ylabel="probability", xticks=at)
        right.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    return figure


def curves(
    lines: Mapping[str, tuple[Array, Array]],
    x: str,
    y: str,
    *,
    percent: str = "xy",
    level: tuple[str, float] | None = None,
    logarithmic: str = "",
    points: bool = False,
    band: tuple[str, float, float] | None = None,
) -> Figure:
    """Lines by name, each (x values, y values), no two alike in colour, marker and dash; or clouds of ``points``.

    ``percent`` and ``logarithmic`` name the axes ("x", "y", "xy" or "") that are shares shown in percent, or on a
    logarithmic scale. ``level`` (name, value) draws a horizontal line to compare with, ``band`` (name, from, to) shades
    a range of x.
    """
    many = len(lines) > WITHIN
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(10, 4.5) if many else None)
        cloud: Any = {"linestyle": "", "markersize": 4, "alpha": 0.5} if points else {}
        for name, (xs, ys) in lines.items():
            axis.plot(xs, ys, label=name, **cloud)
        if level is not None:
            axis.axhline(level[1], color="0.35", linewidth=1.5, linestyle=(0, (6, 3)))
            axis.annotate(
                level[0], (0.01, level[1]), xycoords=("axes fraction", "data"), va="bottom", fontsize=11, color="0.25"
            )
        if band is not None:
            axis.axvspan(*band[1:], color="0.5", alpha=0.15, linewidth=0, label=band[0])
        axis.set(xlabel=x, ylabel=y, **{f"{name}scale": "log" for name in logarithmic})
        for name in percent:
            getattr(axis, f"{name}axis").set_major_formatter(PercentFormatter(1.0))
        if "x" not in logarithmic + percent and all(float(x).is_integer() for xs, _ in lines.values() for x in xs):
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))  # there is no layer 2.5
        if many:
            figure.legend(loc="outside right center")
        elif band is not None:
            figure.legend(loc="outside upper center", ncols=2)
        elif len(lines) > 1:
            axis.legend()
    return figure


def ranges(lines: Mapping[str, tuple[Array, Array, Array, Array]], x: str, y: str) -> Figure:
    """Lines by name, each (x values, means, least, greatest), with the range between as a band and bars."""
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots()
        for name, (xs, means, least, greatest) in lines.items():
            (line,) = axis.plot(xs, means, label=name)
            axis.fill_between(xs, least, greatest, color=line.get_color(), alpha=0.15, linewidth=0)
            axis.vlines(xs, least, greatest, color=line.get_color(), linewidth=1.5)
        axis.set(xlabel=x, ylabel=y)
        if len(lines) > 1:
            axis.legend()
    return figure


def smoothed(rows: Array, names: Sequence[str], points: int = 60) -> dict[str, tuple[Array, Array]]:
    """Columns of ``rows`` [steps, names], averaged over a twentieth of all steps, as lines for ``curves``."""
    table = pd.DataFrame(rows, columns=list(names))
    table = table.rolling(max(1, len(table) // 20), min_periods=1).mean()[:: max(1, len(table) // points)]
    return {name: (table.index.to_numpy(), table[name].to_numpy()) for name in names}


def bars(groups: Mapping[str, Mapping[str, float]], y: str, *, highlight: str = "", percent: bool = False) -> Figure:
    """Bars: for every outer name a group, within it one bar an inner name, none where a group lacks that name.

    In a single group the bar named ``highlight`` stands out.
    """
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    single = len(groups) == 1
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(8, 4))
        width = 0.8 / (1 if single else len(names))
        for i, name in enumerate(names):
            colour = (VERMILION if name == highlight else BLUE) if single else PALETTE[i]
            at = [i] if single else np.arange(len(groups)) + (i - (len(names) - 1) / 2) * width
            hatch = "//" if (name == highlight if single else i % 2) else None
            heights = [group.get(name, math.nan) for group in groups.values()]
            axis.bar(at, heights, width, color=colour, hatch=hatch, edgecolor="white", label=None if single else name)
        words = names if single else list(groups)
        crowded = sum(map(len, words)) + 2 * len(words) > LABELS
        angle = 0 if not crowded else 30 if len(words) <= TILTED else 90
        axis.set_xticks(range(len(words)), words, rotation=angle, ha="right" if angle == 30 else "center")
        axis.set_ylabel(y)
        axis.grid(axis="x", visible=False)
        if percent:
            axis.yaxis.set_major_formatter(PercentFormatter(1.0))
        if not single:
            axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(names))  # above: bars fill the axes
    return figure


def histogram(values: Array, marks: Array, edges: Array, x: str) -> Figure:
    """How often values [n] occur, on a logarithmic scale; ``marks`` as lines, ``edges`` as dotted ones."""
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(8, 3.4))
        axis.hist(np.asarray(values).ravel(), 201, color=BLUE, log=True)
        for edge in edges:
            axis.axvline(edge, color="0.5", linestyle=":", linewidth=1.5)
        for mark in marks:
            axis.axvline(mark, color=VERMILION, linewidth=1.5)
        axis.set(xlabel=x, ylabel="weights")
    return figure


def classified(images: Array, read: Array, true: Array, *, columns: int = 12, tile: float = 0.8) -> Figure:
    """Images [n, height, width] in tiles of ``tile`` inches, each under the class that the network reads: the class
    alone where it is right, a marked frame and "read → true ✗" where it is wrong."""
    with plt.rc_context(STYLE):
        figure, places = _tiles(len(images), columns, tile, tile + 0.22)
        for axis, image, got, label in zip(places, images, np.asarray(read), np.asarray(true), strict=False):
            wrong = str(got) != str(label)
            axis.set_axis_on()
            axis.set(xticks=[], yticks=[])
            axis.grid(visible=False)
            axis.imshow(np.asarray(image), cmap="Oranges" if wrong else "gray_r")
            for spine in axis.spines.values():
                spine.set(visible=True, color=VERMILION if wrong else "0.8", linewidth=3 if wrong else 0.8)
            axis.set_title(f"{got} → {label} ✗" if wrong else str(got), fontsize=11, loc="center", pad=3)
    return figure


def curve(
    evolved: Any, measure: Callable[[Any], float], *, above: float = 0.0, every: int = 1
) -> tuple[list[float], list[float]]:
    """Sparsities along an evolution, and what ``measure`` gives for its student at each: a line for ``curves``.

    From the cycle that reaches the sparsity ``above``, every ``every`` cycles.
    """
    cycles = range(evolved.cycle_at(above), evolved.cycle + 1, every)
    return [evolved.sparsities[cycle] for cycle in cycles], [measure(evolved.at_cycle(cycle)) for cycle in cycles]
