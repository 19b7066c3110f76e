"""Figures: the house style, and the one way in which a picture is shown, never without words for it."""

from __future__ import annotations

import base64
import io
from contextlib import AbstractContextManager
from html import escape
from typing import Any

import matplotlib.pyplot as plt
from cycler import cycler
from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind readers too; yellow is left out, it vanishes on a projector.
BLACK, BLUE, SKY, GREEN = "#000000", "#0072B2", "#56B4E9", "#009E73"
ORANGE, VERMILION, PURPLE = "#E69F00", "#D55E00", "#CC79A7"
PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))

CSS_DPI = 96  # a browser's pixels an inch
SHARPNESS = 2  # pixels stored per browser pixel

STYLE: Any = {  # matplotlib's own type for it lists every key of one version
    # No two lines differ by colour alone.
    "axes.prop_cycle": cycler(color=PALETTE) + cycler(marker=MARKERS) + cycler(linestyle=LINES),
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


def house_style() -> AbstractContextManager[None]:
    """The house style, for a ``with`` block."""
    return plt.rc_context(STYLE)


def png(figure: Figure) -> bytes:
    """The figure as a PNG, sharp on high-density screens; the figure is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=CSS_DPI * SHARPNESS)
    plt.close(figure)
    return buffer.getvalue()


def show(figure: Figure, alt: str) -> None:
    """Display a figure with ``alt``, what it shows in words, for those who do not see it; the figure is closed.

    Raises ValueError if ``alt`` is empty.
    """
    from IPython.display import display

    if not alt.strip():
        raise ValueError("a figure needs an alt: say in words what it shows")
    width = round(figure.get_figwidth() * CSS_DPI)
    source = base64.b64encode(png(figure)).decode()
    html = (
        f'<img class="delib-figure" alt="{escape(alt)}" width="{width}" '
        f'style="max-width:100%;height:auto;background:#fff" src="data:image/png;base64,{source}">'
    )
    display({"text/html": html, "text/plain": f"[figure: {alt}]"}, raw=True)
